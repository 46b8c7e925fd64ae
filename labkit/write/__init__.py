"""The write side: the command bus and the handler, from a command to its commit."""
