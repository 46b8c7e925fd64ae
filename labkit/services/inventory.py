"""The stock of a product: receive, reserve, release, ship, adjust; one stream a product.

::

                receive, adjust              reserve                  ship
    (outside) ──────────────────> on hand ──────────────> reserved ──────────> shipped
                                     └───────release─────────┘

Nothing is ever negative, and nothing gets lost::

    on hand + reserved + shipped = received + adjusted
"""

from __future__ import annotations

from msgspec import Struct, field, structs

from labkit.errors import Refused
from labkit.messages import Command, Decisions, Event
from labkit.services.bounds import MAX_QUANTITY, check_id, check_within

#: Orders that may hold a part of one product: the state is one document, of 16 MB at most.
MAX_RESERVATIONS = 10_000


class Stock(Struct, frozen=True, gc=False):
    """The state that decisions need; all in pieces, ``reserved`` by order."""

    on_hand: int = 0
    shipped: int = 0
    received: int = 0
    adjusted: int = 0
    reserved: dict[str, int] = field(default_factory=dict)


# --- commands


class StockCommand(Command, frozen=True):
    """Any command to the stock of a product."""

    product_id: str

    @property
    def stream(self) -> str:
        """The product's id."""
        return self.product_id

    def validate(self) -> None:
        """The product is named."""
        check_id("product_id", self.product_id)


class ReservationCommand(StockCommand, frozen=True):
    """Any command about what an order holds."""

    order_id: str

    def validate(self) -> None:
        """The product and the order are named."""
        super().validate()
        check_id("order_id", self.order_id)


class ReceiveStock(StockCommand, frozen=True):
    """Pieces came in."""

    quantity: int

    def validate(self) -> None:
        """At least one piece."""
        super().validate()
        check_within("quantity", self.quantity, 1, MAX_QUANTITY)


class ReserveStock(ReservationCommand, frozen=True):
    """Set pieces aside for an order."""

    quantity: int

    def validate(self) -> None:
        """At least one piece."""
        super().validate()
        check_within("quantity", self.quantity, 1, MAX_QUANTITY)


class ReleaseStock(ReservationCommand, frozen=True):
    """Give back what an order holds."""


class ShipStock(ReservationCommand, frozen=True):
    """Send what an order holds."""


class AdjustStock(StockCommand, frozen=True):
    """Correct the books after a count: by ``quantity`` pieces, up or down."""

    quantity: int
    reason: str

    def validate(self) -> None:
        """A difference, and why there is one."""
        super().validate()
        check_within("quantity", self.quantity, -MAX_QUANTITY, MAX_QUANTITY)
        if self.quantity == 0 or not self.reason:
            raise Refused(
                f"an adjustment needs a quantity and a reason, "
                f"got {self.quantity} and {self.reason!r}"
            )


# --- events


class StockEvent(Event, frozen=True):
    """How many pieces moved, and how many are on hand after that."""

    product_id: str
    quantity: int
    on_hand: int


class StockReceived(StockEvent, frozen=True):
    """Pieces came in."""


class StockReserved(StockEvent, frozen=True):
    """An order holds pieces."""

    order_id: str


class StockReleased(StockEvent, frozen=True):
    """An order gave its pieces back."""

    order_id: str


class StockShipped(StockEvent, frozen=True):
    """An order's pieces left; those on hand stay as they are."""

    order_id: str


class StockAdjusted(StockEvent, frozen=True):
    """The books were corrected; ``quantity`` has a sign."""

    reason: str


COMMANDS = ReceiveStock | ReserveStock | ReleaseStock | ShipStock | AdjustStock
EVENTS = StockReceived | StockReserved | StockReleased | StockShipped | StockAdjusted

# --- decide


def receive(stock: Stock | None, c: ReceiveStock) -> tuple[Event, ...]:
    """Always welcome: the first delivery makes the stream."""
    on_hand = stock.on_hand if stock else 0
    return (StockReceived(c.product_id, c.quantity, on_hand + c.quantity),)


def reserve(stock: Stock | None, c: ReserveStock) -> tuple[Event, ...]:
    """Only what is on hand, only once an order, only so many orders."""
    stock = stock or Stock()
    if c.order_id in stock.reserved:
        raise Refused(f"order {c.order_id!r} holds {stock.reserved[c.order_id]} already")
    if c.quantity > stock.on_hand:
        raise Refused(
            f"product {c.product_id!r} has {stock.on_hand} pieces on hand, got {c.quantity}"
        )
    if len(stock.reserved) >= MAX_RESERVATIONS:
        raise Refused(f"product {c.product_id!r} is held by {MAX_RESERVATIONS} orders, no more fit")
    return (StockReserved(c.product_id, c.quantity, stock.on_hand - c.quantity, c.order_id),)


def release(stock: Stock | None, c: ReleaseStock) -> tuple[Event, ...]:
    """Only what the order holds, all of it."""
    stock, quantity = _held(stock, c)
    return (StockReleased(c.product_id, quantity, stock.on_hand + quantity, c.order_id),)


def ship(stock: Stock | None, c: ShipStock) -> tuple[Event, ...]:
    """Only what the order holds, all of it."""
    stock, quantity = _held(stock, c)
    return (StockShipped(c.product_id, quantity, stock.on_hand, c.order_id),)


def adjust(stock: Stock | None, c: AdjustStock) -> tuple[Event, ...]:
    """Never below nothing; what is reserved is not touched."""
    on_hand = stock.on_hand if stock else 0
    if on_hand + c.quantity < 0:
        raise Refused(f"product {c.product_id!r} has {on_hand} pieces on hand, got {c.quantity}")
    return (StockAdjusted(c.product_id, c.quantity, on_hand + c.quantity, c.reason),)


def _held(stock: Stock | None, c: ReservationCommand) -> tuple[Stock, int]:
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


def evolve(stock: Stock | None, event: Event) -> Stock:
    """Fold one event into the state."""
    stock = stock or Stock()
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
