"""The views of orders: each order, customers with totals, revenue a month.

Collections::

    orders.view.orders     {_id: order id, version, trace, customer, day, product, quantity, cents,
                            discount, return_days, status, payment}
    orders.view.customers  {_id: "customer:partition", customer, orders, quantity, cents}
    orders.view.months     {_id: "yyyy-mm:partition", month, orders, cents}

A cancelled or returned order stays in ``orders`` and leaves the sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labkit.messages import Document, Event
from labkit.service import At, Documents, KeyedView, View
from labkit.services.orders.messages import (
    OrderCancelled,
    OrderPaid,
    OrderPlaced,
    OrderReturned,
    OrderShipped,
)

#: The events that change the sums, with what they do to them.
SIGNS: dict[type, int] = {OrderPlaced: +1, OrderCancelled: -1, OrderReturned: -1}


class Orders(View):
    """One order."""

    indexes = (("customer", "day", "_id"), ("customer", "cents", "_id"))

    def apply(self, document: Any, event: Any) -> Document:
        """Fold one event."""
        match event:
            case OrderPlaced():
                return order_document(event)
            case OrderPaid():
                document["payment"] = "paid"
            case OrderShipped():
                document["status"] = "shipped"
            case OrderCancelled() | OrderReturned():
                cancelled = isinstance(event, OrderCancelled)
                document["status"] = "cancelled" if cancelled else "returned"
                if document["payment"] == "paid":
                    document["payment"] = "refunded"
        return document  # type: ignore[no-any-return]


def order_document(event: OrderPlaced) -> Document:
    """An order that was just placed."""
    return {
        "_id": event.order_id,
        "version": 0,
        "customer": event.customer_id,
        "day": event.day,
        "product": event.product_id,
        "quantity": event.quantity,
        "cents": event.cents,
        "discount": event.discount,
        "return_days": event.return_days,
        "status": "placed",
        "payment": "unpaid",
    }


class Customers(KeyedView):
    """What the orders of a customer add up to, by partition."""

    # With all that a sum reads, so that it does not fetch the documents.
    indexes = (("customer", "orders", "quantity", "cents"),)

    def keys(self, event: Event, at: At) -> Iterable[str]:
        """The customer."""
        if type(event) in SIGNS:
            yield f"{event.customer_id}:{at.partition}"  # type: ignore[attr-defined]

    def change(self, documents: Documents, event: Any, at: At) -> None:
        """Add the order, or take it out."""
        if (sign := SIGNS.get(type(event))) is None:
            return
        id, customer = f"{event.customer_id}:{at.partition}", event.customer_id
        sums = documents.get(id) or documents.add(
            {"_id": id, "customer": customer, "orders": 0, "quantity": 0, "cents": 0}
        )
        assert at.document is not None
        sums["orders"] += sign
        sums["quantity"] += sign * at.document["quantity"]
        sums["cents"] += sign * event.cents


class Months(KeyedView):
    """Revenue by month and partition."""

    indexes = (("month", "orders", "cents"),)

    def keys(self, event: Event, at: At) -> Iterable[str]:
        """The month of the order."""
        if type(event) in SIGNS:
            yield f"{event.day[:7]}:{at.partition}"  # type: ignore[attr-defined]

    def change(self, documents: Documents, event: Any, at: At) -> None:
        """Add the order, or take it out."""
        if (sign := SIGNS.get(type(event))) is None:
            return
        month = event.day[:7]
        id = f"{month}:{at.partition}"
        sums = documents.get(id) or documents.add(
            {"_id": id, "month": month, "orders": 0, "cents": 0}
        )
        sums["orders"] += sign
        sums["cents"] += sign * event.cents
