"""Orders: place, pay, ship, cancel, return.

Two pure functions a command meets: its ``decide`` (state, command -> events, or ``Refused``) and
``evolve`` (state, event -> state). Money is in integer cents.

::

    placed, unpaid ──pay──> placed, paid ──ship──> shipped, paid ──return──> returned, refunded
       └──cancel──> cancelled, unpaid  └──cancel──> cancelled, refunded

Rules change, the log stays. Which rule an order falls under is read off a table by the order's own
day, once, when it is placed; what applied is written in the event. So a new row never alters what
was promised before, and no fold ever looks at the tables.
"""

from __future__ import annotations

from datetime import date
from typing import Literal

from msgspec import Struct, structs

from labkit.errors import Refused
from labkit.messages import Decisions, Event, State
from labkit.services.orders.messages import (
    CancelOrder,
    CancelUnpaid,
    OrderCancelled,
    OrderCommand,
    OrderPaid,
    OrderPlaced,
    OrderReturned,
    OrderShipped,
    PayOrder,
    PlaceOrder,
    ReturnOrder,
    ShipOrder,
)

Status = Literal["placed", "shipped", "cancelled", "returned"]
Payment = Literal["unpaid", "paid", "refunded"]


class OrderState(State, frozen=True):
    """The state that decisions need."""

    customer_id: str
    day: str
    cents: int
    status: Status = "placed"
    payment: Payment = "unpaid"
    return_days: int | None = None


# --- the rules that change: each holds for orders from its day on, until the next


class Rules(Struct, frozen=True):
    """``return_days`` after its own day an order can no longer be returned (``None``: always can);
    ``percent`` are taken off from ``bulk`` pieces on."""

    since: str
    return_days: int | None = None
    bulk: int = 0
    percent: int = 0

    def discount(self, quantity: int, cents: int) -> int:
        """In whole cents, rounded down: the shop keeps the fraction."""
        return cents * self.percent // 100 if quantity >= self.bulk else 0


RULES = (
    Rules(since="0001-01-01"),
    Rules(since="1998-07-01", return_days=30, bulk=10, percent=10),
)


def rules(day: str) -> Rules:
    """Those that an order of this day (ISO) is placed under."""
    return next(rule for rule in reversed(RULES) if rule.since <= day)


# --- decide


def place(order: OrderState | None, c: PlaceOrder) -> tuple[Event, ...]:
    """A new order, under the rules of its day."""
    if order is not None:
        raise Refused(f"order {c.order_id!r} exists")
    now = rules(c.day)
    discount = now.discount(c.quantity, c.cents)
    return (
        OrderPlaced(
            order_id=c.order_id,
            customer_id=c.customer_id,
            day=c.day,
            cents=c.cents - discount,
            quantity=c.quantity,
            product_id=c.product_id,
            discount=discount,
            return_days=now.return_days,
        ),
    )


def pay(order: OrderState | None, c: PayOrder) -> tuple[Event, ...]:
    """Only once, only while it stands, only the exact amount."""
    order = _existing(order, c)
    if order.status != "placed":
        raise Refused(f"order {c.order_id!r} is {order.status}")
    if order.payment != "unpaid":
        raise Refused(f"order {c.order_id!r} is {order.payment} already")
    if c.cents != order.cents:
        raise Refused(f"order {c.order_id!r} costs {order.cents} cents, got {c.cents}")
    return (OrderPaid(c.order_id, order.customer_id, order.day, order.cents),)


def ship(order: OrderState | None, c: ShipOrder) -> tuple[Event, ...]:
    """Only what is paid."""
    order = _existing(order, c)
    if order.status != "placed" or order.payment != "paid":
        raise Refused(f"order {c.order_id!r} is {order.status} and {order.payment}")
    return (OrderShipped(c.order_id, order.customer_id, order.day, order.cents),)


def cancel(order: OrderState | None, c: CancelOrder) -> tuple[Event, ...]:
    """Only before it is shipped."""
    order = _existing(order, c)
    if order.status != "placed":
        raise Refused(f"order {c.order_id!r} is {order.status}")
    refund = order.cents if order.payment == "paid" else 0
    return (
        OrderCancelled(c.order_id, order.customer_id, order.day, order.cents, refund, c.reason),
    )


def cancel_unpaid(order: OrderState | None, c: CancelUnpaid) -> tuple[Event, ...]:
    """Only what stands and is not paid: whoever paid in time keeps the order."""
    order = _existing(order, c)
    if order.status != "placed":
        raise Refused(f"order {c.order_id!r} is {order.status}")
    if order.payment != "unpaid":
        raise Refused(f"order {c.order_id!r} is {order.payment}, only an unpaid one expires")
    return cancel(order, CancelOrder(c.order_id, "not paid in time"))


def send_back(order: OrderState | None, c: ReturnOrder) -> tuple[Event, ...]:
    """Only what was shipped, and not too late."""
    order = _existing(order, c)
    if order.status != "shipped":
        raise Refused(f"order {c.order_id!r} is {order.status}, only a shipped one can come back")
    if order.return_days is not None:
        _check_in_time(order, order.return_days, c)
    facts = (c.order_id, order.customer_id, order.day, order.cents)
    return (OrderReturned(*facts, order.cents, c.reason, c.day),)


def _check_in_time(order: OrderState, days: int, c: ReturnOrder) -> None:
    if not c.day:
        raise Refused(f"order {c.order_id!r} can be returned for {days} days: say on which day")
    passed = (date.fromisoformat(c.day) - date.fromisoformat(order.day)).days
    if not 0 <= passed <= days:
        raise Refused(
            f"order {c.order_id!r} is of {order.day} and can be returned for {days} days, "
            f"got {c.day}"
        )


def _existing(order: OrderState | None, c: OrderCommand) -> OrderState:
    if order is None:
        raise Refused(f"order {c.order_id!r} does not exist")
    return order


DECIDE: Decisions = {
    PlaceOrder: place,
    PayOrder: pay,
    ShipOrder: ship,
    CancelOrder: cancel,
    CancelUnpaid: cancel_unpaid,
    ReturnOrder: send_back,
}

# --- evolve


def evolve(order: OrderState | None, event: Event) -> OrderState:
    """Fold one event into the state."""
    if isinstance(event, OrderPlaced):
        return OrderState(event.customer_id, event.day, event.cents, return_days=event.return_days)
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
