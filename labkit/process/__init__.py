"""Processes and notices: readers of an events topic that send messages of their own."""
