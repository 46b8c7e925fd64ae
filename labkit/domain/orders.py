"""Orders: place, pay, ship, cancel, return.

Two pure functions a command meets: its ``decide`` (state, command -> events, or ``Refused``) and
``evolve`` (state, event -> state). Money is in integer cents.

::

    placed, unpaid ──pay──> placed, paid ──ship──> shipped, paid ──return──> returned, refunded
       └──cancel──> cancelled, unpaid  └──cancel──> cancelled, refunded
"""

from __future__ import annotations

from datetime import date
from typing import Literal

from msgspec import Struct, structs

from labkit.errors import Refused
from labkit.messages import Command, Decisions, Event

MAX_CENTS = 10**12  #: Ten thousand million of the currency: anything above is a mistake.
MAX_QUANTITY = 10**6

Status = Literal["placed", "shipped", "cancelled", "returned"]
Payment = Literal["unpaid", "paid", "refunded"]


class Order(Struct, frozen=True, gc=False):
    """The state that decisions need."""

    customer_id: str
    day: str
    cents: int
    status: Status = "placed"
    payment: Payment = "unpaid"


# --- commands


class OrderCommand(Command, frozen=True):
    """Any command to an order."""

    order_id: str

    @property
    def stream(self) -> str:
        """The order's id."""
        return self.order_id


class PlaceOrder(OrderCommand, frozen=True):
    """Order ``quantity`` pieces of a product for ``cents`` in all; ``day`` is an ISO date."""

    customer_id: str
    day: str
    quantity: int
    cents: int
    product_id: str = "cd"


class PayOrder(OrderCommand, frozen=True):
    """Pay exactly what the order costs."""

    cents: int


class ShipOrder(OrderCommand, frozen=True):
    """Send the goods."""


class CancelOrder(OrderCommand, frozen=True):
    """Call the order off before it is shipped; what was paid is refunded."""

    reason: str = ""


class ReturnOrder(OrderCommand, frozen=True):
    """Send the goods back; the payment is refunded."""

    reason: str = ""


# --- events


class OrderEvent(Event, frozen=True):
    """What every order event carries, so that a view needs no second look."""

    order_id: str
    customer_id: str
    day: str
    cents: int


class OrderPlaced(OrderEvent, frozen=True):
    """The order stands."""

    quantity: int
    product_id: str


class OrderPaid(OrderEvent, frozen=True):
    """The customer paid."""


class OrderShipped(OrderEvent, frozen=True):
    """The goods are on their way."""


class OrderCancelled(OrderEvent, frozen=True):
    """The order was called off; ``refund`` cents go back."""

    refund: int
    reason: str


class OrderReturned(OrderEvent, frozen=True):
    """The goods came back; ``refund`` cents go back."""

    refund: int
    reason: str


COMMANDS = PlaceOrder | PayOrder | ShipOrder | CancelOrder | ReturnOrder
EVENTS = OrderPlaced | OrderPaid | OrderShipped | OrderCancelled | OrderReturned

# --- decide


def place(order: Order | None, c: PlaceOrder) -> tuple[Event, ...]:
    """A new order; free of charge is fine, a negative amount is not."""
    if order is not None:
        raise Refused(f"order {c.order_id!r} exists")
    if not c.order_id or not c.customer_id:
        raise Refused("an order needs an order id and a customer id, got an empty one")
    if not 1 <= c.quantity <= MAX_QUANTITY:
        raise Refused(f"quantity must be between 1 and {MAX_QUANTITY}, got {c.quantity}")
    if not _is_iso_date(c.day):
        raise Refused(f"day must be a date like 1997-01-31, got {c.day!r}")
    if not 0 <= c.cents <= MAX_CENTS:
        raise Refused(f"cents must be between 0 and {MAX_CENTS}, got {c.cents}")
    return (OrderPlaced(c.order_id, c.customer_id, c.day, c.cents, c.quantity, c.product_id),)


def pay(order: Order | None, c: PayOrder) -> tuple[Event, ...]:
    """Only once, only while it stands, only the exact amount."""
    order = _existing(order, c)
    if order.status != "placed":
        raise Refused(f"order {c.order_id!r} is {order.status}")
    if order.payment != "unpaid":
        raise Refused(f"order {c.order_id!r} is {order.payment} already")
    if c.cents != order.cents:
        raise Refused(f"order {c.order_id!r} costs {order.cents} cents, got {c.cents}")
    return (OrderPaid(c.order_id, order.customer_id, order.day, order.cents),)


def ship(order: Order | None, c: ShipOrder) -> tuple[Event, ...]:
    """Only what is paid."""
    order = _existing(order, c)
    if order.status != "placed" or order.payment != "paid":
        raise Refused(f"order {c.order_id!r} is {order.status} and {order.payment}")
    return (OrderShipped(c.order_id, order.customer_id, order.day, order.cents),)


def cancel(order: Order | None, c: CancelOrder) -> tuple[Event, ...]:
    """Only before it is shipped."""
    order = _existing(order, c)
    if order.status != "placed":
        raise Refused(f"order {c.order_id!r} is {order.status}")
    refund = order.cents if order.payment == "paid" else 0
    return (
        OrderCancelled(c.order_id, order.customer_id, order.day, order.cents, refund, c.reason),
    )


def send_back(order: Order | None, c: ReturnOrder) -> tuple[Event, ...]:
    """Only what was shipped."""
    order = _existing(order, c)
    if order.status != "shipped":
        raise Refused(f"order {c.order_id!r} is {order.status}, only a shipped one can come back")
    return (
        OrderReturned(c.order_id, order.customer_id, order.day, order.cents, order.cents, c.reason),
    )


def _is_iso_date(day: str) -> bool:
    try:
        return date.fromisoformat(day).isoformat() == day
    except ValueError:
        return False


def _existing(order: Order | None, c: OrderCommand) -> Order:
    if order is None:
        raise Refused(f"order {c.order_id!r} does not exist")
    return order


DECIDE: Decisions = {
    PlaceOrder: place,
    PayOrder: pay,
    ShipOrder: ship,
    CancelOrder: cancel,
    ReturnOrder: send_back,
}

# --- evolve


def evolve(order: Order | None, event: Event) -> Order:
    """Fold one event into the state."""
    if isinstance(event, OrderPlaced):
        return Order(event.customer_id, event.day, event.cents)
    assert order is not None, f"{event} before OrderPlaced"
    match event:
        case OrderPaid():
            return structs.replace(order, payment="paid")
        case OrderShipped():
            return structs.replace(order, status="shipped")
        case OrderCancelled():
            payment: Payment = "refunded" if order.payment == "paid" else order.payment
            return structs.replace(order, status="cancelled", payment=payment)
        case OrderReturned():
            return structs.replace(order, status="returned", payment="refunded")
    raise TypeError(f"not an order event: {event!r}")
