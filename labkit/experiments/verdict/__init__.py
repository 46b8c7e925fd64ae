"""The balance of CQRS: each claim, for and against it, with a figure and a verdict."""
