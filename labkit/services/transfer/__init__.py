"""Transfers between two accounts: a process of the bank."""

from labkit.services.transfer.process import Transfer, Transferring

TRANSFER = Transfer()

__all__ = ["TRANSFER", "Transfer", "Transferring"]
