"""The only modules that import a client."""
