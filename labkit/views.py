"""The read models: what a commit does to documents, and the indexes that queries need.

Aggregates over many streams keep one document for each (key, source partition) and are summed on
read: projectors of different partitions then never write the same document.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from labkit.domain import catalog
from labkit.domain.orders import (
    OrderCancelled,
    OrderEvent,
    OrderPaid,
    OrderPlaced,
    OrderReturned,
    OrderShipped,
)
from labkit.messages import Commit
from labkit.ports import Document
from labkit.projections import Docs, Indexes, Projection


class OrderViews:
    """One order, the orders of a customer, customers with totals, revenue a month.

    Collections::

        orders.view.orders     {_id: order id, version, customer, day, quantity, cents, status,
                                payment, trace: {sent, polled, decided, fetched, applied, ...}}
        orders.view.customers  {_id: "customer:partition", customer, orders, quantity, cents}
        orders.view.months     {_id: "yyyy-mm:partition", month, orders, cents}

    A cancelled or returned order stays in ``orders`` and leaves the sums.
    """

    name = "orders.view"
    orders = streams = "orders.view.orders"
    customers = "orders.view.customers"
    months = "orders.view.months"
    indexes: ClassVar[Indexes] = {
        orders: [[("customer", 1), ("day", 1), ("_id", 1)]],
        customers: [],
        months: [],
    }

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """The sums that change."""
        for event in commit.events:
            if isinstance(event, OrderPlaced | OrderCancelled | OrderReturned):
                yield self.customers, f"{event.customer_id}:{partition}"
                yield self.months, f"{event.day[:7]}:{partition}"

    def apply(self, commit: Commit[Any], docs: Docs, fetched: int, now: int) -> None:
        """Fold the commit's events."""
        partition = commit.partition
        for event in commit.events:
            match event:
                case OrderPlaced():
                    docs.add(self.orders, _order(event))
                    self._add(docs, event, partition, +1, event.quantity)
                case OrderPaid():
                    self._change(docs, event, payment="paid")
                case OrderShipped():
                    self._change(docs, event, status="shipped")
                case OrderCancelled() | OrderReturned():
                    cancelled = isinstance(event, OrderCancelled)
                    status = "cancelled" if cancelled else "returned"
                    order = self._change(docs, event, status=status)
                    if order["payment"] == "paid":
                        order["payment"] = "refunded"
                    self._add(docs, event, partition, -1, -order["quantity"])
        document = docs.get(self.orders, commit.stream)
        assert document is not None
        document["trace"] = {
            "id": commit.id,
            "partition": partition,
            "command": commit.offset,
            "intended": commit.intended,
            "sent": commit.sent,
            "polled": commit.polled,
            "decided": commit.decided,
            "fetched": fetched,
            "applied": now,
        }

    def _change(self, docs: Docs, event: OrderEvent, **fields: str) -> Document:
        order = docs.get(self.orders, event.order_id)
        assert order is not None
        order.update(fields)
        return order

    def _add(self, docs: Docs, event: OrderEvent, partition: int, sign: int, quantity: int) -> None:
        id = f"{event.customer_id}:{partition}"
        customer = docs.get(self.customers, id) or docs.add(
            self.customers,
            {"_id": id, "customer": event.customer_id, "orders": 0, "quantity": 0, "cents": 0},
        )
        customer["orders"] += sign
        customer["quantity"] += quantity
        customer["cents"] += sign * event.cents
        month = event.day[:7]
        id = f"{month}:{partition}"
        revenue = docs.get(self.months, id) or docs.add(
            self.months, {"_id": id, "month": month, "orders": 0, "cents": 0}
        )
        revenue["orders"] += sign
        revenue["cents"] += sign * event.cents


def _order(event: OrderPlaced) -> Document:
    return {
        "_id": event.order_id,
        "version": 0,
        "customer": event.customer_id,
        "day": event.day,
        "product": event.product_id,
        "quantity": event.quantity,
        "cents": event.cents,
        "status": "placed",
        "payment": "unpaid",
    }


class CatalogViews:
    """Customers and products.

    Collection ``catalog.view.entries``: {_id: stream, version, kind, id, name, cents}.
    """

    name = "catalog.view"
    entries = streams = "catalog.view.entries"
    indexes: ClassVar[Indexes] = {entries: [[("kind", 1), ("id", 1)]]}

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """Nothing but the stream's own document."""
        return ()

    def apply(self, commit: Commit[Any], docs: Docs, fetched: int, now: int) -> None:
        """Fold the commit's events."""
        for event in commit.events:
            match event:
                case catalog.CustomerRegistered():
                    fields = {"kind": "customer", "id": event.customer_id, "name": event.name}
                    docs.add(self.entries, {"_id": commit.stream, "version": 0, **fields})
                case catalog.ProductListed():
                    fields = {"kind": "product", "id": event.product_id, "name": event.name}
                    product = {"_id": commit.stream, "version": 0, **fields, "cents": event.cents}
                    docs.add(self.entries, product)
                case catalog.PriceChanged():
                    entry = docs.get(self.entries, commit.stream)
                    assert entry is not None
                    entry["cents"] = event.cents


#: The projection of each context.
PROJECTIONS: dict[str, Projection] = {"orders": OrderViews(), "catalog": CatalogViews()}
