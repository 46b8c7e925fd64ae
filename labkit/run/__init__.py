"""A run: its settings, its parts wired together, and its worker processes."""
