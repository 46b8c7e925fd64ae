"""The read models: what a commit does to documents, and the indexes that queries need.

Aggregates over many streams keep one document for each (key, source partition) and are summed on
read: projectors of different partitions then never write the same document. For the same reason a
view across services is joined on read: each service keeps documents of its own, under the key that
the join asks for (``InventoryViews.held`` for an order).

Beside its indexes each view declares the shard keys of its collections. What is written by its id
is spread by a hash of that, so that a write goes to one shard; what is only inserted lies with the
others of its kind, so that a page of them comes from one shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

from labkit.messages import Commit
from labkit.ports.store import Document
from labkit.read.projection import Indexes, Projection
from labkit.read.unit_of_work import UnitOfWork
from labkit.services import bank, catalog, inventory
from labkit.services.orders import (
    OrderCancelled,
    OrderEvent,
    OrderPaid,
    OrderPlaced,
    OrderReturned,
    OrderShipped,
)

#: Collection -> the fields of its shard key, each with a direction or ``"hashed"``.
ShardKeys = dict[str, list[tuple[str, int | str]]]
BY_ID: list[tuple[str, int | str]] = [("_id", "hashed")]


class View(Projection, Protocol):
    """A projection that queries read."""

    shard_keys: ClassVar[ShardKeys]


class OrderViews:
    """One order, the orders of a customer, customers with totals, revenue a month.

    Collections::

        orders.view.orders     {_id: order id, version, customer, day, product, quantity, cents,
                                discount, return_days, status, payment,
                                trace: {sent, polled, decided, fetched, applied, ...}}
        orders.view.customers  {_id: "customer:partition", customer, orders, quantity, cents}
        orders.view.months     {_id: "yyyy-mm:partition", month, orders, cents}

    A cancelled or returned order stays in ``orders`` and leaves the sums.
    """

    name = "orders.view"
    orders = streams = "orders.view.orders"
    customers = "orders.view.customers"
    months = "orders.view.months"
    indexes: ClassVar[Indexes] = {
        orders: [
            [("customer", 1), ("day", 1), ("_id", 1)],
            [("customer", 1), ("cents", 1), ("_id", 1)],
        ],
        # With all that a sum reads: the documents themselves are not fetched for it.
        customers: [[("customer", 1), ("orders", 1), ("quantity", 1), ("cents", 1)]],
        months: [[("month", 1), ("orders", 1), ("cents", 1)]],
    }
    shard_keys: ClassVar[ShardKeys] = {orders: BY_ID, customers: BY_ID, months: BY_ID}

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """The sums that change."""
        for event in commit.events:
            if isinstance(event, SUMMED):
                yield self.customers, f"{event.customer_id}:{partition}"
                yield self.months, f"{event.day[:7]}:{partition}"

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        """Fold the commit's events."""
        partition = commit.partition
        for event in commit.events:
            match event:
                case OrderPlaced():
                    docs.add(self.orders, order_document(event))
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

    def _change(self, docs: UnitOfWork, event: OrderEvent, **fields: str) -> Document:
        order = docs.get(self.orders, event.order_id)
        assert order is not None
        order.update(fields)
        return order

    def _add(
        self, docs: UnitOfWork, event: OrderEvent, partition: int, sign: int, quantity: int
    ) -> None:
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


#: What changes the sums.
SUMMED = (OrderPlaced, OrderCancelled, OrderReturned)


def order_document(event: OrderPlaced) -> Document:
    """An order that was just placed, without its trace; the runner will note the version."""
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


class CatalogViews:
    """Customers and products.

    Collection ``catalog.view.entries``: {_id: stream, version, kind, id, name, cents}.
    """

    name = "catalog.view"
    entries = streams = "catalog.view.entries"
    indexes: ClassVar[Indexes] = {entries: [[("kind", 1), ("id", 1)]]}
    shard_keys: ClassVar[ShardKeys] = {entries: BY_ID}

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """Nothing but the stream's own document."""
        return ()

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
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


class InventoryViews:
    """The stock of each product, in pieces; and what each order holds, or held, of it.

    Collections::

        inventory.view.stock  {_id: product id, version, on_hand, reserved, shipped, received,
                               adjusted}
        inventory.view.held   {_id: "order id<NUL>product id", order, product, quantity, status,
                               version}

    What is ``on_hand`` is free: a reservation takes its pieces off. In ``held`` the ``status`` is
    reserved, released or shipped, and ``version`` the product's, at the last change. No id holds a
    NUL (``domain.bounds``), so the two in one key cannot be mistaken.
    """

    name = "inventory.view"
    stock = streams = "inventory.view.stock"
    held = "inventory.view.held"
    indexes: ClassVar[Indexes] = {
        stock: [[("on_hand", 1), ("_id", 1)]],
        held: [[("order", 1), ("product", 1)]],
    }
    shard_keys: ClassVar[ShardKeys] = {stock: BY_ID, held: BY_ID}

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """What the orders hold."""
        for event in commit.events:
            if isinstance(event, RESERVATION):
                yield self.held, _held_id(event)

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        """Fold the commit's events."""
        stock = docs.get(self.stock, commit.stream) or docs.add(
            self.stock,
            {"_id": commit.stream, "version": 0, "on_hand": 0, "reserved": 0}
            | {"shipped": 0, "received": 0, "adjusted": 0},
        )
        for version, event in enumerate(commit.events, commit.first):
            if isinstance(event, RESERVATION):
                held = docs.get(self.held, _held_id(event)) or docs.add(
                    self.held,
                    {"_id": _held_id(event), "order": event.order_id, "product": event.product_id},
                )
                status = STATUS[type(event)]
                held.update(quantity=event.quantity, status=status, version=version)
            match event:
                case inventory.StockReceived():
                    stock["received"] += event.quantity
                case inventory.StockAdjusted():
                    stock["adjusted"] += event.quantity
                case inventory.StockReserved():
                    stock["reserved"] += event.quantity
                case inventory.StockReleased():
                    stock["reserved"] -= event.quantity
                case inventory.StockShipped():
                    stock["reserved"] -= event.quantity
                    stock["shipped"] += event.quantity
            stock["on_hand"] = event.on_hand


RESERVATION = (inventory.StockReserved, inventory.StockReleased, inventory.StockShipped)
#: What has become of the pieces that an order held.
STATUS = {
    inventory.StockReserved: "reserved",
    inventory.StockReleased: "released",
    inventory.StockShipped: "shipped",
}


def _held_id(
    event: inventory.StockReserved | inventory.StockReleased | inventory.StockShipped,
) -> str:
    return f"{event.order_id}\0{event.product_id}"


class BankViews:
    """Accounts, and what happened to each.

    Collections::

        bank.view.accounts      {_id: account id, version, owner, balance, open}
        bank.view.transactions  {_id: "account:version", account, version, kind, cents, balance,
                                 counterparty, transfer_id}

    All money is in cents; ``open`` is what is under way from the account. Transactions are only
    ever inserted, one for each event that changed the balance; ``balance`` is the one after it.
    """

    name = "bank.view"
    accounts = streams = "bank.view.accounts"
    transactions = "bank.view.transactions"
    indexes: ClassVar[Indexes] = {
        accounts: [],
        transactions: [[("account", 1), ("version", 1)], [("transfer_id", 1)]],
    }
    shard_keys: ClassVar[ShardKeys] = {accounts: BY_ID, transactions: [("account", 1)]}

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """Nothing but the stream's own document; transactions are new."""
        return ()

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        """Fold the commit's events."""
        for version, event in enumerate(commit.events, commit.first):
            if isinstance(event, bank.AccountOpened):
                account = {"_id": commit.stream, "version": 0, "owner": event.owner}
                docs.add(self.accounts, account | {"balance": 0, "open": 0})
                continue
            found = docs.get(self.accounts, commit.stream)
            assert found is not None
            found["balance"] = event.balance
            match event:
                case bank.MoneySent():
                    found["open"] += event.cents
                case bank.MoneyTakenBack():
                    found["open"] -= event.cents
                case bank.TransferConfirmed():
                    found["open"] -= event.cents
                    continue  # the balance stays
            docs.add(self.transactions, _transaction(event, version))


def _transaction(event: bank.MoneyEvent, version: int) -> Document:
    kind, counterparty, transfer_id = "", "", ""
    match event:
        case bank.Deposited():
            kind = "deposited"
        case bank.Withdrawn():
            kind = "withdrawn"
        case bank.MoneySent():
            kind, counterparty, transfer_id = "sent", event.to, event.transfer_id
        case bank.MoneyReceived():
            kind, counterparty, transfer_id = "received", event.sender, event.transfer_id
        case bank.MoneyTakenBack():
            kind, counterparty, transfer_id = "taken back", event.to, event.transfer_id
    return {
        "_id": f"{event.account_id}:{version}",
        "account": event.account_id,
        "version": version,
        "kind": kind,
        "cents": event.cents,
        "balance": event.balance,
        "counterparty": counterparty,
        "transfer_id": transfer_id,
    }


#: The projection of each service.
PROJECTIONS: dict[str, View] = {
    "orders": OrderViews(),
    "catalog": CatalogViews(),
    "inventory": InventoryViews(),
    "bank": BankViews(),
}
