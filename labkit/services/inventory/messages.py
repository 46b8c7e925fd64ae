"""The commands and events of the stock."""

from __future__ import annotations

from labkit.errors import Refused
from labkit.messages import Command, Event
from labkit.services.bounds import (
    MAX_QUANTITY,
    Difference,
    Name,
    OrderId,
    Pieces,
    ProductId,
    check_id,
    check_within,
)

# --- commands


class StockCommand(Command, frozen=True):
    """Any command to the stock of a product."""

    product_id: ProductId

    def validate(self) -> None:
        """The product is named."""
        check_id("product_id", self.product_id)


class ReservationCommand(StockCommand, frozen=True):
    """Any command about what an order holds."""

    order_id: OrderId

    def validate(self) -> None:
        """The product and the order are named."""
        super().validate()
        check_id("order_id", self.order_id)


class ReceiveStock(StockCommand, frozen=True):
    """Pieces came in."""

    quantity: Pieces

    def validate(self) -> None:
        """At least one piece."""
        super().validate()
        check_within("quantity", self.quantity, 1, MAX_QUANTITY)


class ReserveStock(ReservationCommand, frozen=True):
    """Set pieces aside for an order."""

    quantity: Pieces

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

    quantity: Difference
    reason: Name

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


EVENTS = StockReceived | StockReserved | StockReleased | StockShipped | StockAdjusted
