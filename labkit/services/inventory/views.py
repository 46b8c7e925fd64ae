"""The views of the stock: each product in pieces, and what each order holds, or held, of it.

Collections::

    inventory.view.stock  {_id: product id, version, trace, on_hand, reserved, shipped, received,
                           adjusted}
    inventory.view.held   {_id: "order<NUL>product", order, product, quantity, status, version}

What is ``on_hand`` is free: a reservation takes its pieces off. In ``held`` the ``status`` is
reserved, released or shipped, and ``version`` the product's at the last change. No id holds a NUL
(``services.bounds``), so the two in one key cannot be mistaken.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labkit.messages import Document, Event
from labkit.service import At, Documents, KeyedView, View
from labkit.services.inventory.messages import (
    StockAdjusted,
    StockReceived,
    StockReleased,
    StockReserved,
    StockShipped,
)

#: What has become of the pieces that an order held.
STATUS: dict[type, str] = {
    StockReserved: "reserved",
    StockReleased: "released",
    StockShipped: "shipped",
}


class Stock(View):
    """The stock of one product."""

    indexes = (("on_hand", "_id"),)

    def apply(self, document: Any, event: Any) -> Document:
        """Fold one event."""
        stock: Document = document or dict.fromkeys(
            ("on_hand", "reserved", "shipped", "received", "adjusted"), 0
        )
        match event:
            case StockReceived():
                stock["received"] += event.quantity
            case StockAdjusted():
                stock["adjusted"] += event.quantity
            case StockReserved():
                stock["reserved"] += event.quantity
            case StockReleased():
                stock["reserved"] -= event.quantity
            case StockShipped():
                stock["reserved"] -= event.quantity
                stock["shipped"] += event.quantity
        stock["on_hand"] = event.on_hand
        return stock


class Held(KeyedView):
    """What an order holds, or held, of a product."""

    indexes = (("order", "product"),)

    def keys(self, event: Event, at: At) -> Iterable[str]:
        """The order and the product."""
        if type(event) in STATUS:
            yield _key(event)

    def change(self, documents: Documents, event: Any, at: At) -> None:
        """Note what has become of the pieces."""
        if (status := STATUS.get(type(event))) is None:
            return
        held = documents.get(_key(event)) or documents.add(
            {"_id": _key(event), "order": event.order_id, "product": event.product_id}
        )
        held.update(quantity=event.quantity, status=status, version=at.version)


def _key(event: Any) -> str:
    return f"{event.order_id}\0{event.product_id}"
