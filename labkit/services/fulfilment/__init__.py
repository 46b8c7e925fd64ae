"""Order fulfilment: a process between orders and the inventory."""

from labkit.services.fulfilment.process import Fulfilling, Fulfilment

FULFILMENT = Fulfilment()
#: Unpaid orders are called off after seconds: for runs that have to come to an end.
IMPATIENT = Fulfilment(pay_within=10.0)

__all__ = ["FULFILMENT", "IMPATIENT", "Fulfilling", "Fulfilment"]
