"""Accounts: what the clients may expect to see, from their commands and the replies alone.

A second, independent telling of the business rules, in plain dicts and without events: comparing a
view with a fold over its own log would hide that a command took effect twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Protocol

from labkit.domain import orders
from labkit.messages import Command
from labkit.ports import Document
from labkit.views import OrderViews


class Account(Protocol):
    """A second, independent telling of a context's rules: plain values, no events."""

    def apply(self, state: Document | None, command: Command) -> Document | None:
        """The stream after an accepted command; ``None`` where the rules say no."""

    def shown(self, document: Document) -> Document:
        """A stream as its document in the view tells it."""

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """The differences between the views and these streams."""


class OrderAccount:
    """Orders, as a bookkeeper would keep them."""

    _fields = ("customer", "day", "product", "quantity", "cents", "status", "payment", "version")

    def apply(self, state: Document | None, command: Command) -> Document | None:
        """What the customer may expect."""
        match command:
            case orders.PlaceOrder():
                sensible = (
                    command.order_id != ""
                    and command.customer_id != ""
                    and 0 < command.quantity <= 1_000_000
                    and 0 <= command.cents <= 1_000_000_000_000
                    and _is_day(command.day)
                )
                if state is not None or not sensible:
                    return None
                return {
                    "customer": command.customer_id,
                    "day": command.day,
                    "product": command.product_id,
                    "quantity": command.quantity,
                    "cents": command.cents,
                    "status": "placed",
                    "payment": "unpaid",
                    "version": 1,
                }
            case orders.PayOrder():
                needs, change = ("placed", "unpaid"), {"payment": "paid"}
                if state is not None and command.cents != state["cents"]:
                    return None
            case orders.ShipOrder():
                needs, change = ("placed", "paid"), {"status": "shipped"}
            case orders.ReturnOrder():
                needs = ("shipped", "paid")
                change = {"status": "returned", "payment": "refunded"}
            case orders.CancelOrder():
                paid = state is not None and state["payment"] == "paid"
                needs = ("placed", "paid" if paid else "unpaid")
                change = {"status": "cancelled", "payment": "refunded" if paid else "unpaid"}
            case _:
                raise TypeError(f"no account is kept of {command!r}")
        if state is None or (state["status"], state["payment"]) != needs:
            return None
        return {**state, **change, "version": state["version"] + 1}

    def shown(self, document: Document) -> Document:
        """Without the trace, which is about the message."""
        return {field: document.get(field) for field in self._fields}

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """Orders one by one; then customers and months, summed over their partitions."""
        shown = {d["_id"]: self.shown(d) for d in views[OrderViews.orders]}
        customers: dict[str, dict[str, int]] = {}
        months: dict[str, dict[str, int]] = {}
        for order in streams.values():
            stands = order["status"] in ("placed", "shipped")
            for sums, key in ((customers, order["customer"]), (months, order["day"][:7])):
                total = sums.setdefault(key, {"orders": 0, "cents": 0})
                total["orders"] += stands
                total["cents"] += order["cents"] * stands
            total = customers[order["customer"]]
            total["quantity"] = total.get("quantity", 0) + order["quantity"] * stands
        fields = ("orders", "cents")
        shown_customers = _sum(views[OrderViews.customers], "customer", (*fields, "quantity"))
        shown_months = _sum(views[OrderViews.months], "month", fields)
        return [
            *_differences("order", streams, shown),
            *_differences("customer", customers, shown_customers),
            *_differences("month", months, shown_months),
        ]


#: Of which contexts an account is kept.
ACCOUNTS: dict[str, Account] = {"orders": OrderAccount()}


def _is_day(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII)) and bool(
            datetime.strptime(text, "%Y-%m-%d")
        )
    except ValueError:
        return False


def _differences(kind: str, wanted: dict[str, Any], shown: dict[str, Any]) -> Iterator[str]:
    for key in sorted(wanted.keys() | shown.keys()):
        if wanted.get(key) != shown.get(key):
            yield f"{kind} {key!r}: the account says {wanted.get(key)}, the view {shown.get(key)}"


def _sum(documents: list[Document], by: str, fields: tuple[str, ...]) -> dict[str, dict[str, int]]:
    sums: dict[str, dict[str, int]] = {}
    for document in documents:
        total = sums.setdefault(document[by], dict.fromkeys(fields, 0))
        for name in fields:
            total[name] += document[name]
    return sums
