"""The reference model of orders."""

from __future__ import annotations

import re
from datetime import datetime

from labkit.messages import Command, Document
from labkit.services.ledger import differences, named
from labkit.services.orders.messages import (
    CancelOrder,
    CancelUnpaid,
    PayOrder,
    PlaceOrder,
    ReturnOrder,
    ShipOrder,
)

#: Orders of this day and later: 10 % off from ten pieces on, returns within 30 days.
NEW_RULES = "1998-07-01"


class OrdersModel:
    """Orders, as a bookkeeper keeps them."""

    _fields = ("customer", "day", "product", "quantity", "cents", "status", "payment", "version")

    def apply(self, state: Document | None, command: Command) -> Document | None:
        match command:
            case PlaceOrder():
                sensible = (
                    named(command.order_id, command.customer_id, command.product_id)
                    and 0 < command.quantity <= 1_000_000
                    and 0 <= command.cents <= 1_000_000_000_000
                    and _is_day(command.day)
                )
                if state is not None or not sensible:
                    return None
                cheaper = command.day >= NEW_RULES and command.quantity >= 10
                return {
                    "customer": command.customer_id,
                    "day": command.day,
                    "product": command.product_id,
                    "quantity": command.quantity,
                    "cents": command.cents - cheaper * (command.cents // 10),
                    "status": "placed",
                    "payment": "unpaid",
                    "version": 1,
                }
            case PayOrder():
                needs, change = ("placed", "unpaid"), {"payment": "paid"}
                if state is not None and command.cents != state["cents"]:
                    return None
            case ShipOrder():
                needs, change = ("placed", "paid"), {"status": "shipped"}
            case ReturnOrder():
                needs = ("shipped", "paid")
                change = {"status": "returned", "payment": "refunded"}
                if command.day != "" and not _is_day(command.day):
                    return None
                if state is not None and not _in_time(state["day"], command.day):
                    return None
            case CancelOrder():
                paid = state is not None and state["payment"] == "paid"
                needs = ("placed", "paid" if paid else "unpaid")
                change = {"status": "cancelled", "payment": "refunded" if paid else "unpaid"}
            case CancelUnpaid():
                needs, change = ("placed", "unpaid"), {"status": "cancelled"}
            case _:
                raise TypeError(f"no account is kept of {command!r}")
        if state is None or (state["status"], state["payment"]) != needs:
            return None
        return {**state, **change, "version": state["version"] + 1}

    def shown(self, document: Document) -> Document:
        return {field: document.get(field) for field in self._fields}

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """Compare each order, then customers and months, summed over their partitions."""
        shown = {d["_id"]: self.shown(d) for d in views["orders.view.orders"]}
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
        shown_customers = _sum(views["orders.view.customers"], "customer", (*fields, "quantity"))
        shown_months = _sum(views["orders.view.months"], "month", fields)
        return [
            *differences("order", streams, shown),
            *differences("customer", customers, shown_customers),
            *differences("month", months, shown_months),
        ]


def _in_time(bought: str, returned: str) -> bool:
    if bought < NEW_RULES:
        return True
    first, last = (datetime.strptime(day or "0001-01-01", "%Y-%m-%d") for day in (bought, returned))
    return 0 <= (last - first).days <= 30


def _is_day(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII)) and bool(
            datetime.strptime(text, "%Y-%m-%d")
        )
    except ValueError:
        return False


def _sum(documents: list[Document], by: str, fields: tuple[str, ...]) -> dict[str, dict[str, int]]:
    sums: dict[str, dict[str, int]] = {}
    for document in documents:
        total = sums.setdefault(document[by], dict.fromkeys(fields, 0))
        for name in fields:
            total[name] += document[name]
    return sums
