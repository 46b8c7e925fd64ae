"""From the conditions of a query, as somebody writes them, to what the views are asked.

::

    plan("orders_of", {"customer": "ann", "status": "PAID", "sort": "-amount"})
    -> queries.orders_of("ann", payment="paid", sort="cents", descending=True, ...)

Each query is a struct with its conditions, strict and typed, and pure: its ``plan`` says which
method of ``Queries`` to call with what, and which documents the answer is read from. The table at
the end names them all. This is the article's query consumer: conditions are transformed on the way,
by whoever reads the topic, so that a requester needs to know neither the views nor their fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from labkit.errors import UsageError
from labkit.ports.store import Watched
from labkit.read.freshness import EVENTUAL, Fresh
from labkit.read.pages import MAX_PAGE, Page
from labkit.read.queries import Queries
from labkit.services.views import PROJECTIONS, BankViews, CatalogViews, InventoryViews, OrderViews

#: Ids in one query at most.
MAX_IDS = 1_000

Key = Annotated[str, Meta(min_length=1, max_length=200)]
Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE)]
Pieces = Annotated[int, Meta(ge=0, le=2**31)]
Month = Annotated[str, Meta(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]

#: An order has a status and a payment; whoever asks for one of these words means one of the two.
STATUSES = ("placed", "shipped", "cancelled", "returned")
PAYMENTS = ("unpaid", "paid", "refunded")
#: What orders can be sorted by, under the names that people have for it.
SORTS: Mapping[str, Literal["day", "cents"]] = {
    "day": "day",
    "date": "day",
    "cents": "cents",
    "amount": "cents",
    "price": "cents",
}


class Plan(Struct):
    """A query as it is asked: a method of ``Queries`` and its arguments.

    ``watched`` are the documents of views that the answer is read from. ``picked`` is the id of the
    one row that is meant, of all that the method gives.
    """

    method: str
    arguments: dict[str, Any]
    watched: Watched
    picked: str | None = None

    @property
    def services(self) -> list[str]:
        """Whose views are read."""
        return sorted({name.partition(".")[0] for name in self.watched})

    def ask(self, queries: Queries, fresh: Fresh = EVENTUAL) -> Any:
        """The answer; raises what ``Queries`` raises."""
        answer = getattr(queries, self.method)(**self.arguments, fresh=fresh)
        if self.picked is None:
            return answer
        return next((row for row in answer if row["_id"] == self.picked), None)


class Conditions(Struct, frozen=True, forbid_unknown_fields=True):
    """What may be asked for; the root of the structs below."""

    def plan(self) -> Plan:
        """What the views are asked; raises ``UsageError`` for words that nobody knows."""
        raise NotImplementedError


class Order(Conditions, frozen=True):
    """One order."""

    order: Key

    def plan(self) -> Plan:
        """By its id."""
        return Plan("order", {"order_id": self.order}, {OrderViews.orders: [self.order]})


class Orders(Conditions, frozen=True):
    """Several orders, by their ids: a list, or one text with commas."""

    orders: Annotated[list[Key], Meta(max_length=MAX_IDS)] | Annotated[str, Meta(max_length=50_000)]

    def plan(self) -> Plan:
        """Each id once."""
        given = self.orders.split(",") if isinstance(self.orders, str) else self.orders
        ids = list(dict.fromkeys(id for part in given if (id := part.strip())))
        if len(ids) > MAX_IDS:
            raise UsageError(f"orders must name at most {MAX_IDS}, got {len(ids)}")
        return Plan("orders", {"order_ids": ids}, {OrderViews.orders: ids})


class OrdersOf(Conditions, frozen=True):
    """A page of a customer's orders; ``-day`` is the newest first."""

    customer: Key
    status: str = ""
    payment: str = ""
    sort: str = "day"
    limit: Limit = 100
    cursor: str = ""

    def plan(self) -> Plan:
        """A status that is about money is a payment, whatever its case."""
        status, payment = self.status.strip().lower(), self.payment.strip().lower()
        if status in PAYMENTS and payment in ("", status):
            status, payment = "", status
        _one_of("status", status, ("", *STATUSES), self.status, (*STATUSES, *PAYMENTS))
        _one_of("payment", payment, ("", *PAYMENTS), self.payment)
        sort = self.sort.strip().lower()
        field = sort.removeprefix("-")
        _one_of("sort", field, SORTS, self.sort, (*SORTS, *(f"-{name}" for name in SORTS)))
        arguments = {
            "customer": self.customer,
            "status": status,
            "payment": payment,
            "sort": SORTS[field],
            "descending": sort.startswith("-"),
            "limit": self.limit,
            "cursor": self.cursor,
        }
        return Plan("orders_of", arguments, {OrderViews.orders: None})


class Customer(Conditions, frozen=True):
    """One customer, with totals."""

    customer: Key

    def plan(self) -> Plan:
        """Sums over partitions, so no single document says whether it has changed."""
        return Plan("customer", {"customer": self.customer}, {OrderViews.customers: None})


class Customers(Conditions, frozen=True):
    """The best customers."""

    limit: Limit = 100

    def plan(self) -> Plan:
        """All are summed up for it."""
        return Plan("customers", {"limit": self.limit}, {OrderViews.customers: None})


class Revenue(Conditions, frozen=True):
    """Revenue by month, or of one month (yyyy-mm)."""

    month: Month | None = None

    def plan(self) -> Plan:
        """One month is picked from all."""
        return Plan("revenue_by_month", {}, {OrderViews.months: None}, self.month)


class Products(Conditions, frozen=True):
    """The products that are listed."""

    def plan(self) -> Plan:
        """All of them."""
        return Plan("products", {}, {CatalogViews.entries: None})


class Stock(Conditions, frozen=True):
    """The stock of one product."""

    product: Key

    def plan(self) -> Plan:
        """By its id."""
        return Plan("stock", {"product_id": self.product}, {InventoryViews.stock: [self.product]})


class LowStock(Conditions, frozen=True):
    """A page of the products of which few are left."""

    at_most: Pieces = 10
    limit: Limit = 100
    cursor: str = ""

    def plan(self) -> Plan:
        """The fewest first."""
        arguments = {"threshold": self.at_most, "limit": self.limit, "cursor": self.cursor}
        return Plan("low_stock", arguments, {InventoryViews.stock: None})


class OrderWithStock(Conditions, frozen=True):
    """An order with its stock and its payment, across services."""

    order: Key

    def plan(self) -> Plan:
        """What it holds and the stock are found on the way, under ids that nobody knows before."""
        watched: Watched = {
            OrderViews.orders: [self.order],
            InventoryViews.held: None,
            InventoryViews.stock: None,
        }
        return Plan("order_with_stock", {"order_id": self.order}, watched)


class Account(Conditions, frozen=True):
    """One account with its balance."""

    account: Key

    def plan(self) -> Plan:
        """By its id."""
        return Plan("account", {"account_id": self.account}, {BankViews.accounts: [self.account]})


class Balances(Conditions, frozen=True):
    """A page of all accounts."""

    limit: Limit = 100
    cursor: str = ""

    def plan(self) -> Plan:
        """By id."""
        arguments = {"limit": self.limit, "cursor": self.cursor}
        return Plan("balances", arguments, {BankViews.accounts: None})


class Statement(Conditions, frozen=True):
    """A page of what happened to an account."""

    account: Key
    order: str = "oldest first"
    limit: Limit = 100
    cursor: str = ""

    def plan(self) -> Plan:
        """The oldest first, or the newest."""
        order = self.order.strip().lower().replace("_", " ").removesuffix(" first")
        _one_of("order", order, ("oldest", "newest"), self.order)
        arguments = {
            "account_id": self.account,
            "descending": order == "newest",
            "limit": self.limit,
            "cursor": self.cursor,
        }
        return Plan("statement", arguments, {BankViews.transactions: None})


def _one_of(
    name: str, value: str, known: Any, given: str, words: Sequence[str] | None = None
) -> None:
    if value not in known:
        choice = ", ".join(word for word in words or known if word)
        raise UsageError(f"{name} must be one of {choice}, got {given[:60]!r}")


# --- The table of queries: whom each goes to, its conditions, and what its answer is.


class Asked(Struct, frozen=True):
    """``service`` is whose topic it goes to, ``answer`` the type that its value is read as.

    ``beside`` are the services whose views are read, too.
    """

    service: str
    conditions: type[Conditions]
    answer: Any = Any
    beside: tuple[str, ...] = ()


QUERIES: dict[str, Asked] = {
    "order": Asked("orders", Order),
    "orders": Asked("orders", Orders),
    "orders_of": Asked("orders", OrdersOf, Page),
    "customer": Asked("orders", Customer),
    "customers": Asked("orders", Customers),
    "revenue": Asked("orders", Revenue),
    "order_with_stock": Asked("orders", OrderWithStock, beside=("inventory",)),
    "products": Asked("catalog", Products),
    "stock": Asked("inventory", Stock),
    "low_stock": Asked("inventory", LowStock, Page),
    "account": Asked("bank", Account),
    "balances": Asked("bank", Balances, Page),
    "statement": Asked("bank", Statement, Page),
}


def asked(name: str) -> Asked:
    """The row of a query; raises ``UsageError`` for a name that nobody knows."""
    if name not in QUERIES:
        raise UsageError(f"no query {name[:60]!r}; known: {', '.join(QUERIES)}")
    return QUERIES[name]


def watched_by(service: str) -> Watched:
    """All that the answers to the queries of a service are read from."""
    beside = {c for row in QUERIES.values() if row.service == service for c in row.beside}
    return {name: None for c in sorted({service, *beside}) for name in PROJECTIONS[c].indexes}


def plan(name: str, params: Mapping[str, Any]) -> Plan:
    """What the views are asked; raises ``UsageError`` that names the condition and what it takes.

    Numbers may come as text, as people type them and as addresses carry them.
    """
    row = asked(name)
    if unknown := sorted(set(params) - set(row.conditions.__struct_fields__)):
        takes = ", ".join(row.conditions.__struct_fields__) or "no conditions"
        raise UsageError(f"query {name!r} has no condition {unknown[0][:60]!r}; it takes {takes}")
    try:
        return msgspec.convert(dict(params), row.conditions, strict=False).plan()
    except msgspec.ValidationError as error:
        raise UsageError(f"query {name!r}: {error}, got {str(dict(params))[:200]}") from None
