"""Accounts: what the clients may expect to see, from their commands and the replies alone.

A second, independent telling of the business rules, in plain dicts and without events: comparing a
view with a fold over its own log would hide that a command took effect twice. Nothing of the domain
but its commands is used here; bounds and dates are told again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, ClassVar, Protocol, cast

from labkit.messages import Command
from labkit.ports.store import Document
from labkit.services import bank, inventory, orders
from labkit.services.views import BankViews, InventoryViews, OrderViews

#: Orders of this day and later: 10 % off from ten pieces on, returns within 30 days.
NEW_RULES = "1998-07-01"


class ReferenceModel(Protocol):
    """A second, independent telling of a service's rules: plain values, no events."""

    def apply(self, state: Document | None, command: Command) -> Document | None:
        """The stream after an accepted command; ``None`` where the rules say no."""

    def shown(self, document: Document) -> Document:
        """A stream as its document in the view tells it."""

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """The differences between the views and these streams."""


class OrdersModel:
    """Orders, as a bookkeeper would keep them."""

    _fields = ("customer", "day", "product", "quantity", "cents", "status", "payment", "version")

    def apply(self, state: Document | None, command: Command) -> Document | None:
        """What the customer may expect."""
        match command:
            case orders.PlaceOrder():
                sensible = (
                    _named(command.order_id, command.customer_id, command.product_id)
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
            case orders.PayOrder():
                needs, change = ("placed", "unpaid"), {"payment": "paid"}
                if state is not None and command.cents != state["cents"]:
                    return None
            case orders.ShipOrder():
                needs, change = ("placed", "paid"), {"status": "shipped"}
            case orders.ReturnOrder():
                needs = ("shipped", "paid")
                change = {"status": "returned", "payment": "refunded"}
                if command.day != "" and not _is_day(command.day):
                    return None
                if state is not None and not _in_time(state["day"], command.day):
                    return None
            case orders.CancelOrder():
                paid = state is not None and state["payment"] == "paid"
                needs = ("placed", "paid" if paid else "unpaid")
                change = {"status": "cancelled", "payment": "refunded" if paid else "unpaid"}
            case orders.CancelUnpaid():
                needs, change = ("placed", "unpaid"), {"status": "cancelled"}
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


class _Books(dict[str, Any]):
    """What a view shows, as items; and beside them, by id, the amounts that are open.

    Books are never changed: ``book`` makes new ones. A stream may have thousands of open amounts
    and of commands, so they lie on many small shelves, of which a new entry copies one.
    """

    def __init__(
        self, shown: Document, shelves: tuple[dict[str, int], ...] = ({},) * 256, count: int = 0
    ) -> None:
        super().__init__(shown)
        self.shelves = shelves
        self.count = count

    def amount(self, id: str) -> int:
        """The open amount; 0 if there is none."""
        return self.shelves[hash(id) % 256].get(id, 0)

    def book(self, id: str = "", amount: int = 0, **changes: int) -> _Books:
        """One version later, with ``changes`` added, and ``amount`` open under ``id``."""
        shown = {**self, "version": self["version"] + 1}
        for field, change in changes.items():
            shown[field] += change
        if id == "":
            return _Books(shown, self.shelves, self.count)
        place = hash(id) % 256
        shelf = {**self.shelves[place], id: amount}
        if amount == 0:
            del shelf[id]
        count = self.count + len(shelf) - len(self.shelves[place])
        return _Books(shown, (*self.shelves[:place], shelf, *self.shelves[place + 1 :]), count)


class InventoryModel:
    """Stock, as a store-keeper would keep it."""

    _fields = ("on_hand", "reserved", "shipped", "received", "adjusted", "version")

    def apply(self, state: Document | None, command: Command) -> Document | None:
        """What the shelf holds after it."""
        books = cast(_Books, state) or _Books(dict.fromkeys(self._fields, 0))
        match command:
            case inventory.ReceiveStock(product, pieces):
                if _named(product) and 0 < pieces <= 1_000_000:
                    return books.book(on_hand=pieces, received=pieces)
            case inventory.AdjustStock(product, pieces, reason):
                sensible = _named(product) and reason != "" and 0 < abs(pieces) <= 1_000_000
                if sensible and books["on_hand"] + pieces >= 0:
                    return books.book(on_hand=pieces, adjusted=pieces)
            case inventory.ReserveStock(product, order, pieces):
                sensible = _named(product, order) and 0 < pieces <= 1_000_000
                free = books.amount(order) == 0 and books.count < 10_000
                if sensible and free and books["on_hand"] >= pieces:
                    return books.book(order, pieces, on_hand=-pieces, reserved=pieces)
            case inventory.ReleaseStock(_, order):
                if (held := books.amount(order)) > 0:
                    return books.book(order, on_hand=held, reserved=-held)
            case inventory.ShipStock(_, order):
                if (held := books.amount(order)) > 0:
                    return books.book(order, reserved=-held, shipped=held)
            case _:
                raise TypeError(f"no account is kept of {command!r}")
        return None

    def shown(self, document: Document) -> Document:
        """The numbers."""
        return {field: document.get(field) for field in self._fields}

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """Product by product; and what orders hold of it adds up to what is reserved."""
        shown = {d["_id"]: self.shown(d) for d in views[InventoryViews.stock]}
        held = dict.fromkeys(streams, 0)
        for entry in views[InventoryViews.held]:
            pieces = entry["quantity"] * (entry["status"] == "reserved")
            held[entry["product"]] = held.get(entry["product"], 0) + pieces
        reserved = {product: books["reserved"] for product, books in streams.items()}
        return [
            *_differences("product", streams, shown),
            *_differences("what orders hold of product", reserved, held),
        ]


class BankModel:
    """Accounts, as a clerk would keep them."""

    _fields = ("owner", "balance", "open", "version")
    _signs: ClassVar = {"deposited": 1, "withdrawn": -1, "sent": -1, "received": 1, "taken back": 1}

    def apply(self, state: Document | None, command: Command) -> Document | None:
        """What the pass-book says after it."""
        if isinstance(command, bank.OpenAccount):
            if state is not None or not _named(command.account_id, command.owner):
                return None
            return _Books({"owner": command.owner, "balance": 0, "open": 0, "version": 1})
        if not isinstance(command, bank.AccountCommand):
            raise TypeError(f"no account is kept of {command!r}")
        if state is None:
            return None
        books = cast(_Books, state)
        if isinstance(command, bank.ConfirmSent):
            cents = books.amount(command.transfer_id)
            return books.book(command.transfer_id, open=-cents) if cents else None
        assert isinstance(command, bank.MoneyCommand)
        cents = command.cents
        if not 0 < cents <= 10**12:
            return None
        fits = books["balance"] + books["open"] + cents <= 10**15
        match command:
            case bank.Deposit() if fits:
                return books.book(balance=cents)
            case bank.Withdraw() if cents <= books["balance"]:
                return books.book(balance=-cents)
            case bank.SendMoney(me, _, to, transfer) if cents <= books["balance"]:
                sensible = _named(to, transfer) and to != me
                if sensible and books.amount(transfer) == 0 and books.count < 10_000:
                    return books.book(transfer, cents, balance=-cents, open=cents)
            case bank.ReceiveMoney(me, _, sender, transfer) if fits:
                if _named(sender, transfer) and sender != me:
                    return books.book(balance=cents)
            case bank.TakeBack(_, _, transfer) if books.amount(transfer) == cents:
                return books.book(transfer, balance=cents, open=-cents)
        return None

    def shown(self, document: Document) -> Document:
        """Without what is about the message."""
        return {field: document.get(field) for field in self._fields}

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """Account by account; and its transactions, one after the other, add up to its balance."""
        shown = {d["_id"]: self.shown(d) for d in views[BankViews.accounts]}
        balances = dict.fromkeys(streams, 0)
        wrong = list(_differences("account", streams, shown))
        for entry in sorted(views[BankViews.transactions], key=lambda t: int(t["version"])):
            account = entry["account"]
            balance = balances.get(account, 0) + self._signs[entry["kind"]] * entry["cents"]
            balances[account] = balance
            if balance != entry["balance"]:
                wrong.append(
                    f"transaction {entry['_id']!r} shows {entry['balance']}, not {balance}"
                )
        told = {account: books["balance"] for account, books in streams.items()}
        return [*wrong, *_differences("the transactions of account", told, balances)]


#: Of which services an account is kept.
MODELS: dict[str, ReferenceModel] = {
    "orders": OrdersModel(),
    "inventory": InventoryModel(),
    "bank": BankModel(),
}


def _named(*ids: str) -> bool:
    return all(0 < len(id.encode()) <= 64 and "\0" not in id for id in ids)


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
