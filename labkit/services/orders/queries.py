"""What the views of orders answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from labkit.errors import UsageError
from labkit.messages import Document
from labkit.service import Limit, Page, Query, Views
from labkit.services.bounds import CustomerId, OrderId
from labkit.services.inventory.views import Held, Stock
from labkit.services.orders.views import Customers, Months, Orders

#: Ids in one query at most.
MAX_IDS = 1_000

Month = Annotated[str, Meta(pattern=r"^\d{4}-(0[1-9]|1[0-2])$", examples=["1997-03"])]

#: An order has a status and a payment; a condition ``status="paid"`` means the payment.
STATUSES = ("placed", "shipped", "cancelled", "returned")
PAYMENTS = ("unpaid", "paid", "refunded")
#: What orders can be sorted by, under the names that people have for it.
SORTS: Mapping[str, str] = {
    "day": "day",
    "date": "day",
    "cents": "cents",
    "amount": "cents",
    "price": "cents",
}


class OrderById(Query, frozen=True):
    """One order; ``None`` if the view has not seen it."""

    order: OrderId
    path = "/orders/{order}"

    def read(self, views: Views) -> Document | None:
        """By its id."""
        return views.get(Orders, self.order)


class OrdersById(Query, frozen=True):
    """Several orders by their ids: a list, or one text with commas."""

    orders: Annotated[list[str], Meta(max_length=MAX_IDS)] | Annotated[str, Meta(max_length=50_000)]

    def read(self, views: Views) -> dict[str, Document]:
        """Those that the view has seen."""
        given = self.orders.split(",") if isinstance(self.orders, str) else self.orders
        ids = list(dict.fromkeys(id for part in given if (id := part.strip())))
        if len(ids) > MAX_IDS:
            raise UsageError(f"orders must name at most {MAX_IDS}, got {len(ids)}")
        return views.load(Orders, ids)


class OrdersOf(Query, frozen=True):
    """A page of a customer's orders; ``-day`` sorts the newest first."""

    customer: CustomerId
    status: str = ""
    payment: str = ""
    sort: str = "day"
    limit: Limit = 100
    cursor: str = ""
    path = "/customers/{customer}/orders"

    def read(self, views: Views) -> Page:
        """A status that is about money is a payment, whatever its case."""
        status, payment = self.status.strip().lower(), self.payment.strip().lower()
        if status in PAYMENTS and payment in ("", status):
            status, payment = "", status
        _one_of("status", status, ("", *STATUSES), self.status, (*STATUSES, *PAYMENTS))
        _one_of("payment", payment, ("", *PAYMENTS), self.payment, PAYMENTS)
        sort = self.sort.strip().lower()
        field = sort.removeprefix("-")
        _one_of("sort", field, SORTS, self.sort, (*SORTS, *(f"-{name}" for name in SORTS)))
        chosen: dict[str, Any] = {"customer": self.customer, "status": status, "payment": payment}
        return views.page(
            Orders,
            sort=("-" if sort.startswith("-") else "") + SORTS[field],
            limit=self.limit,
            cursor=self.cursor,
            **{name: value for name, value in chosen.items() if value},
        )


class OrderWithStock(Query, frozen=True):
    """An order across services: ``order``, ``held`` and ``stock``; ``None``: nobody knows it.

    ``held`` is what it holds, or held, of each product; ``stock`` that of the product ordered. Each
    part is of its own service: projectors of two services would undo each other's transactions in
    one document, so it is joined here. Eventually read, one part may be ahead of the other (goods
    are held, and the order is not seen: ``order`` is ``None``).
    """

    order: OrderId
    path = "/orders/{order}/fulfilment"
    reads = (Orders, Held, Stock)

    def read(self, views: Views) -> Document | None:
        """The order, then what it holds, then the stock of its product."""
        order = views.get(Orders, self.order)
        held = views.find(Held, order=self.order, sort="product")
        if order is None and not held:
            return None
        product = order["product"] if order else held[0]["product"]
        stock = views.get(Stock, product)
        return {"_id": self.order, "order": order, "held": held, "stock": stock}


class CustomerTotals(Query, frozen=True):
    """One customer (``_id``) with ``orders``, ``quantity`` and ``cents``; ``None``: unknown."""

    customer: CustomerId
    path = "/customers/{customer}/totals"

    def read(self, views: Views) -> Document | None:
        """Sums over partitions."""
        fields = ["orders", "quantity", "cents"]
        found = views.totals(Customers, "customer", fields, customer=self.customer)
        return found[0] if found else None


class BestCustomers(Query, frozen=True):
    """Customers (``_id``) with ``orders``, ``quantity`` and ``cents``; the best first."""

    limit: Limit = 100

    def read(self, views: Views) -> list[Document]:
        """All are summed up for it: it goes over the whole index."""
        fields = ["orders", "quantity", "cents"]
        return views.totals(Customers, "customer", fields, sort="cents", limit=self.limit)


class Revenue(Query, frozen=True):
    """Months (``_id``, as yyyy-mm) with ``orders`` and ``cents``, in order; or one of them."""

    month: Month | None = None

    def read(self, views: Views) -> list[Document]:
        """Sums over partitions."""
        chosen: dict[str, Any] = {} if self.month is None else {"month": self.month}
        return views.totals(Months, "month", ["orders", "cents"], **chosen)


class OrdersSeen(Query, frozen=True):
    """How many orders the view holds."""

    def read(self, views: Views) -> int:
        """A count of documents."""
        return views.count(Orders)


def _one_of(
    name: str,
    value: str,
    known: Sequence[str] | Mapping[str, str],
    given: str,
    takes: Sequence[str],
) -> None:
    if value not in known:
        raise UsageError(f"{name} must be one of {', '.join(takes)}, got {given[:60]!r}")


QUERIES: list[type[Query]] = [
    OrderById,
    OrdersById,
    OrdersOf,
    OrderWithStock,
    CustomerTotals,
    BestCustomers,
    Revenue,
    OrdersSeen,
]
