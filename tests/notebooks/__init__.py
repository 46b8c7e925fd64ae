"""The notebooks: what they claim, and how they look."""
