"""The reference model of the stock."""

from __future__ import annotations

from typing import cast

from labkit.messages import Command, Document
from labkit.services.inventory.messages import (
    AdjustStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    ShipStock,
)
from labkit.services.ledger import Books, differences, named


class InventoryModel:
    """Stock, as a storekeeper counts it."""

    _fields = ("on_hand", "reserved", "shipped", "received", "adjusted", "version")

    def apply(self, state: Document | None, command: Command) -> Document | None:
        books = cast(Books, state) or Books(dict.fromkeys(self._fields, 0))
        match command:
            case ReceiveStock(product, pieces):
                if named(product) and 0 < pieces <= 1_000_000:
                    return books.book(on_hand=pieces, received=pieces)
            case AdjustStock(product, pieces, reason):
                sensible = named(product) and reason != "" and 0 < abs(pieces) <= 1_000_000
                if sensible and books["on_hand"] + pieces >= 0:
                    return books.book(on_hand=pieces, adjusted=pieces)
            case ReserveStock(product, order, pieces):
                sensible = named(product, order) and 0 < pieces <= 1_000_000
                free = books.amount(order) == 0 and books.count < 10_000
                if sensible and free and books["on_hand"] >= pieces:
                    return books.book(order, pieces, on_hand=-pieces, reserved=pieces)
            case ReleaseStock(_, order):
                if (held := books.amount(order)) > 0:
                    return books.book(order, on_hand=held, reserved=-held)
            case ShipStock(_, order):
                if (held := books.amount(order)) > 0:
                    return books.book(order, reserved=-held, shipped=held)
            case _:
                raise TypeError(f"no account is kept of {command!r}")
        return None

    def shown(self, document: Document) -> Document:
        return {field: document.get(field) for field in self._fields}

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """Compare each product, and the sum that orders hold of it with what is reserved."""
        shown = {d["_id"]: self.shown(d) for d in views["inventory.view.stock"]}
        held = dict.fromkeys(streams, 0)
        for entry in views["inventory.view.held"]:
            pieces = entry["quantity"] * (entry["status"] == "reserved")
            held[entry["product"]] = held.get(entry["product"], 0) + pieces
        reserved = {product: books["reserved"] for product, books in streams.items()}
        return [
            *differences("product", streams, shown),
            *differences("what orders hold of product", reserved, held),
        ]
