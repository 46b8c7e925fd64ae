"""The stock of a product: receive, reserve, release, ship, adjust; one stream a product.

::

                receive, adjust              reserve                  ship
    (outside) ──────────────────> on hand ──────────────> reserved ──────────> shipped
                                     └───────release─────────┘

Nothing is ever negative, and nothing gets lost::

    on hand + reserved + shipped = received + adjusted
"""

from __future__ import annotations

from msgspec import field, structs

from labkit.errors import Refused
from labkit.messages import Decisions, Event, State
from labkit.services.inventory.messages import (
    AdjustStock,
    ReceiveStock,
    ReleaseStock,
    ReservationCommand,
    ReserveStock,
    ShipStock,
    StockAdjusted,
    StockReceived,
    StockReleased,
    StockReserved,
    StockShipped,
)

#: Orders that may hold a part of one product: the state is one document, of 16 MB at most.
MAX_RESERVATIONS = 10_000


class StockState(State, frozen=True):
    """The state that decisions need; all in pieces, ``reserved`` by order."""

    on_hand: int = 0
    shipped: int = 0
    received: int = 0
    adjusted: int = 0
    reserved: dict[str, int] = field(default_factory=dict)


# --- decide


def receive(stock: StockState | None, c: ReceiveStock) -> tuple[Event, ...]:
    """Always welcome: the first delivery makes the stream."""
    on_hand = stock.on_hand if stock else 0
    return (StockReceived(c.product_id, c.quantity, on_hand + c.quantity),)


def reserve(stock: StockState | None, c: ReserveStock) -> tuple[Event, ...]:
    """Only what is on hand, only once an order, only so many orders."""
    stock = stock or StockState()
    if c.order_id in stock.reserved:
        raise Refused(f"order {c.order_id!r} holds {stock.reserved[c.order_id]} already")
    if c.quantity > stock.on_hand:
        raise Refused(
            f"product {c.product_id!r} has {stock.on_hand} pieces on hand, got {c.quantity}"
        )
    if len(stock.reserved) >= MAX_RESERVATIONS:
        raise Refused(f"product {c.product_id!r} is held by {MAX_RESERVATIONS} orders, no more fit")
    return (StockReserved(c.product_id, c.quantity, stock.on_hand - c.quantity, c.order_id),)


def release(stock: StockState | None, c: ReleaseStock) -> tuple[Event, ...]:
    """Only what the order holds, all of it."""
    stock, quantity = _held(stock, c)
    return (StockReleased(c.product_id, quantity, stock.on_hand + quantity, c.order_id),)


def ship(stock: StockState | None, c: ShipStock) -> tuple[Event, ...]:
    """Only what the order holds, all of it."""
    stock, quantity = _held(stock, c)
    return (StockShipped(c.product_id, quantity, stock.on_hand, c.order_id),)


def adjust(stock: StockState | None, c: AdjustStock) -> tuple[Event, ...]:
    """Never below nothing; what is reserved is not touched."""
    on_hand = stock.on_hand if stock else 0
    if on_hand + c.quantity < 0:
        raise Refused(f"product {c.product_id!r} has {on_hand} pieces on hand, got {c.quantity}")
    return (StockAdjusted(c.product_id, c.quantity, on_hand + c.quantity, c.reason),)


def _held(stock: StockState | None, c: ReservationCommand) -> tuple[StockState, int]:
    if stock is None or c.order_id not in stock.reserved:
        raise Refused(f"order {c.order_id!r} holds nothing of product {c.product_id!r}")
    return stock, stock.reserved[c.order_id]


DECIDE: Decisions = {
    ReceiveStock: receive,
    ReserveStock: reserve,
    ReleaseStock: release,
    ShipStock: ship,
    AdjustStock: adjust,
}

# --- evolve


def evolve(stock: StockState | None, event: Event) -> StockState:
    """Fold one event into the state."""
    stock = stock or StockState()
    match event:
        case StockReceived():
            received = stock.received + event.quantity
            return structs.replace(stock, on_hand=event.on_hand, received=received)
        case StockAdjusted():
            adjusted = stock.adjusted + event.quantity
            return structs.replace(stock, on_hand=event.on_hand, adjusted=adjusted)
        case StockReserved():
            reserved = {**stock.reserved, event.order_id: event.quantity}
            return structs.replace(stock, on_hand=event.on_hand, reserved=reserved)
        case StockReleased():
            reserved = _without(stock.reserved, event.order_id)
            return structs.replace(stock, on_hand=event.on_hand, reserved=reserved)
        case StockShipped():
            reserved = _without(stock.reserved, event.order_id)
            shipped = stock.shipped + event.quantity
            return structs.replace(stock, shipped=shipped, reserved=reserved)
    raise TypeError(f"not an inventory event: {event!r}")


def _without(reserved: dict[str, int], order_id: str) -> dict[str, int]:
    rest = dict(reserved)
    del rest[order_id]
    return rest
