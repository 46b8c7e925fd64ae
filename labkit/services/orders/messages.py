"""The commands and events of orders. Money is in integer cents."""

from __future__ import annotations

from datetime import date
from functools import lru_cache

from msgspec import structs

from labkit.errors import Refused
from labkit.messages import Command, Event, Upcasts
from labkit.services.bounds import (
    MAX_CENTS,
    MAX_QUANTITY,
    Cents,
    CustomerId,
    Day,
    OrderId,
    Pieces,
    ProductId,
    Reason,
    check_id,
    check_within,
)

# --- commands


class OrderCommand(Command, frozen=True):
    """Any command to an order."""

    order_id: OrderId


class PlaceOrder(OrderCommand, frozen=True):
    """Order ``quantity`` pieces of a product for ``cents`` in all, before any discount; ``day`` is
    an ISO date."""

    customer_id: CustomerId
    day: Day
    quantity: Pieces
    cents: Cents
    product_id: ProductId = "cd"

    def validate(self) -> None:
        """Free of charge is fine, a negative amount is not."""
        check_id("order_id", self.order_id)
        check_id("customer_id", self.customer_id)
        check_id("product_id", self.product_id)
        check_within("quantity", self.quantity, 1, MAX_QUANTITY)
        check_date(self.day)
        check_within("cents", self.cents, 0, MAX_CENTS)


class PayOrder(OrderCommand, frozen=True):
    """Pay exactly what the order costs."""

    cents: Cents


class ShipOrder(OrderCommand, frozen=True):
    """Send the goods."""


class CancelOrder(OrderCommand, frozen=True):
    """Call the order off before it is shipped; what was paid is refunded."""

    reason: Reason = ""


class CancelUnpaid(OrderCommand, frozen=True):
    """Call the order off if it is not paid by now: a deadline."""


class ReturnOrder(OrderCommand, frozen=True):
    """Send the goods back; the payment is refunded. ``day`` (ISO) is needed where there is a
    limit."""

    reason: Reason = ""
    day: str = ""

    def validate(self) -> None:
        """A day, if one is given."""
        if self.day:
            check_date(self.day)


# --- events


class OrderEvent(Event, frozen=True):
    """What every order event carries, so that a view needs no second look."""

    order_id: str
    customer_id: str
    day: str
    cents: int


class OrderPlacedV1(OrderEvent, frozen=True, tag="OrderPlaced"):
    """The order stands, as it was written before there were discounts and limits."""

    quantity: int
    product_id: str


class OrderPlaced(OrderEvent, frozen=True, tag="OrderPlaced.v2"):
    """The order stands: ``cents`` are to pay, ``discount`` cents are taken off already, and it may
    be returned for ``return_days`` (``None``: without limit)."""

    quantity: int
    product_id: str
    discount: int
    return_days: int | None


class OrderPaid(OrderEvent, frozen=True):
    """The customer paid."""


class OrderShipped(OrderEvent, frozen=True):
    """The goods are on their way."""


class OrderCancelled(OrderEvent, frozen=True):
    """The order was called off; ``refund`` cents go back."""

    refund: int
    reason: str


class OrderReturned(OrderEvent, frozen=True):
    """The goods came back, on ``returned`` if that was said; ``refund`` cents go back.

    A field with a default needs no upcast: what was written without it is still read.
    """

    refund: int
    reason: str
    returned: str = ""


EVENTS = OrderPlaced | OrderPaid | OrderShipped | OrderCancelled | OrderReturned


def placed_v1(old: OrderPlacedV1) -> OrderPlaced:
    """Nothing was taken off then, and returns had no limit, whatever the day."""
    return OrderPlaced(**structs.asdict(old), discount=0, return_days=None)


UPCASTS: Upcasts = {OrderPlacedV1: placed_v1}


def check_date(day: str) -> None:
    if not _is_date(day):
        raise Refused(f"day must be a date like 1997-01-31, got {day!r}")


@lru_cache(4_096)
def _is_date(day: str) -> bool:
    """Orders of one day come together."""
    try:
        return date.fromisoformat(day).isoformat() == day
    except ValueError:
        return False
