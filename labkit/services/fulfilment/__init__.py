"""Order fulfilment: a process between orders and the inventory."""

from labkit.services.fulfilment.process import Fulfilling, Fulfilment

FULFILMENT = Fulfilment()

__all__ = ["FULFILMENT", "Fulfilling", "Fulfilment"]
