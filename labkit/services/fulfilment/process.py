"""Order fulfilment: goods are set aside for an order, then shipped or given back.

A process sees the events of each stream in order, but those of two streams in any order. So it does
not wait for a sequence: it keeps what it knows of each side, and what follows is read off a table.
A step is taken when its row is entered; neither side ever goes back, so that is once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.messages import Commit
from labkit.service import MAX_WAIT, Case, Process, Send, answers, begins
from labkit.services.fulfilment.audit import audit, begun
from labkit.services.inventory.messages import ReleaseStock, ReserveStock, ShipStock
from labkit.services.orders.messages import (
    CancelOrder,
    CancelUnpaid,
    OrderCancelled,
    OrderPaid,
    OrderPlaced,
    OrderShipped,
    ShipOrder,
)


class Fulfilling(Struct, frozen=True):
    """What is known of an order, and of the goods that are set aside for it."""

    product_id: str
    quantity: int
    order: Literal["placed", "paid", "shipped", "cancelled"] = "placed"
    stock: Literal["asked", "reserved", "gone"] = "asked"


class Fulfilment(Process, frozen=True):
    """Goods are set aside for an order, then shipped or given back; an instance is an order.

    ::

        order      stock      next
        placed     asked      ReserveStock
        placed     reserved   CancelUnpaid, ``pay_within`` seconds later
        paid       reserved   ShipOrder
        shipped    reserved   ShipStock
        cancelled  reserved   ReleaseStock
        (stands)   gone       CancelOrder: there was no stock

    It ends as shipped or cancelled, with its goods gone: shipped, released or never had. A refused
    ``ShipOrder``, ``CancelOrder`` or ``CancelUnpaid`` needs no answer: the event that made it moot
    stands earlier in the order's stream, so it is known. Goods that a customer returns are not put
    back: somebody has to look at them first, and then books them with ``ReceiveStock``.
    """

    name = "fulfilment"
    sources = ("orders", "inventory")
    state = Fulfilling

    #: Seconds that an order whose goods are reserved waits for its payment.
    pay_within: float = 900.0

    def __post_init__(self) -> None:
        if not 0 <= self.pay_within <= MAX_WAIT:
            raise UsageError(f"pay_within must be 0 to {MAX_WAIT:g} seconds, got {self.pay_within}")

    def begun(self, cases: Mapping[str, Case]) -> set[str]:
        return begun(cases)

    def audit(self, cases: Mapping[str, Case]) -> Iterable[str]:
        return audit(cases)

    def instance(self, service: str, commit: Commit[Any]) -> str | None:
        """The order: a stream of its own, and what our commands to the inventory carry."""
        if service == "orders":
            return commit.stream if commit.events else None
        return commit.correlation or None

    def react(
        self, state: Fulfilling | None, service: str, commit: Commit[Any]
    ) -> tuple[Fulfilling | None, tuple[Send, ...]]:
        """Note what is new, then read the next step off the table."""
        if service == "orders":
            after = self._of_order(state, commit)
            order_id = commit.stream
        else:
            after = self._of_stock(state, commit)
            order_id = commit.correlation
        if after is None or after == state:
            return after, ()
        return after, tuple(self._next(order_id, state, after))

    def ended(self, state: Fulfilling) -> bool:
        """Shipped or cancelled, and nothing is set aside any more."""
        return state.order in ("shipped", "cancelled") and state.stock == "gone"

    def _of_order(self, state: Fulfilling | None, commit: Commit[Any]) -> Fulfilling | None:
        for event in commit.events:
            match event:
                case OrderPlaced():
                    state = Fulfilling(event.product_id, event.quantity)
                case OrderPaid() if state:
                    state = structs.replace(state, order="paid")
                case OrderShipped() if state:
                    state = structs.replace(state, order="shipped")
                case OrderCancelled() if state:
                    state = structs.replace(state, order="cancelled")
        return state

    def _of_stock(self, state: Fulfilling | None, commit: Commit[Any]) -> Fulfilling | None:
        if state is None:
            return None
        if begins(self.name, commit.correlation, commit, "reserve"):
            stock: Literal["reserved", "gone"] = "reserved" if commit.events else "gone"
            return structs.replace(state, stock=stock)
        # Refused means that somebody else has shipped or released them: gone, in any case.
        if answers(self.name, commit.correlation, commit, "ship-stock", "release"):
            return structs.replace(state, stock="gone")
        return state

    def _next(self, order_id: str, before: Fulfilling | None, state: Fulfilling) -> list[Send]:
        product = state.product_id
        match state.order, state.stock:
            case _, "asked" if before is None:
                reserve = ReserveStock(product, order_id, state.quantity)
                return [Send("inventory", reserve, "reserve")]
            case "placed", "reserved":
                return [Send("orders", CancelUnpaid(order_id), "expire", after=self.pay_within)]
            case "paid", "reserved":
                return [Send("orders", ShipOrder(order_id), "ship")]
            case "shipped", "reserved":
                return [Send("inventory", ShipStock(product, order_id), "ship-stock")]
            case "cancelled", "reserved":
                return [Send("inventory", ReleaseStock(product, order_id), "release")]
            case "placed" | "paid", "gone" if before and before.stock != "gone":
                return [Send("orders", CancelOrder(order_id, "no stock"), "cancel")]
        return []
