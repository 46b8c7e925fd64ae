"""The query path: what the views answer, and the one wait for freshness.

Each query takes a ``Fresh`` (``freshness.py``), whose goals ``until`` waits for. One wait serves
them all: a token, a version of a stream, and what the log holds at the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Literal, TypeVar

from labkit.errors import Conflict, Parked, TimedOut, UsageError
from labkit.messages import Token
from labkit.ports.store import Checkpoint, Document, Store
from labkit.read.freshness import EVENTUAL, Fresh, Goal, Position, Version, words
from labkit.read.generations import Views
from labkit.read.pages import Page, Sorting, page
from labkit.read.projection import parked_in
from labkit.services.views import PROJECTIONS, BankViews, CatalogViews, InventoryViews, OrderViews

#: Between two looks at a checkpoint: at first often, then a twentieth of the time waited so far,
#: since a look takes time from those who are waited for.
SHORTEST_LOOK_SECONDS = 0.001
LONGEST_LOOK_SECONDS = 0.02
T = TypeVar("T")


class Queries:
    """Answers from the views of one run.

    ``ends(service)`` tells the high watermarks of a service's events, by partition: where the
    commits are kept, open transactions included.

    Each query takes ``fresh``; it raises ``TimedOut`` where the views are not that fresh in time.
    """

    def __init__(
        self,
        store: Store,
        pump: Callable[[], None] = lambda: None,
        ends: Callable[[str], Mapping[int, int]] = lambda service: {},
    ) -> None:
        self._store = store
        self._pump = pump
        self._ends = ends

    # --- orders

    def order(self, order_id: str, fresh: Fresh = EVENTUAL) -> Document | None:
        """One order, or ``None`` where the view has not seen it."""
        return self._one(fresh, "orders", OrderViews.orders, order_id)

    def orders(self, order_ids: Iterable[str], fresh: Fresh = EVENTUAL) -> dict[str, Document]:
        """Those of the orders that the view has seen, in one read."""
        wanted = list(order_ids)
        return self._ask(fresh, ["orders"], lambda views: views.load(OrderViews.orders, wanted))

    def orders_of(
        self,
        customer: str,
        *,
        status: str = "",
        payment: str = "",
        sort: Literal["day", "cents"] = "day",
        descending: bool = False,
        limit: int = 100,
        cursor: str = "",
        fresh: Fresh = EVENTUAL,
    ) -> Page:
        """A page of the orders of a customer: those of a status and a payment, if one is given.

        By ``day`` or by ``cents``; those that are alike, by id. Raises ``UsageError``.
        """
        if sort not in ("day", "cents"):
            raise UsageError(f"sort must be day or cents, got {sort!r}")
        where = {"customer": customer, "status": status, "payment": payment}
        where = {field: value for field, value in where.items() if value or field == "customer"}
        direction = -1 if descending else 1
        sorting = [(sort, direction), ("_id", direction)]
        return self._page(fresh, "orders", OrderViews.orders, where, sorting, limit, cursor)

    def customer(self, customer: str, fresh: Fresh = EVENTUAL) -> Document | None:
        """One customer (``_id``) with ``orders``, ``quantity``, ``cents``; ``None``: unheard of."""
        found = self._customers(fresh, 0, {"customer": customer})
        return found[0] if found else None

    def customers(self, limit: int = 0, fresh: Fresh = EVENTUAL) -> list[Document]:
        """Customers (``_id``) with ``orders``, ``quantity``, ``cents``; the best first.

        Their sums are made on read, and so is their order: it goes over all of the index.
        """
        return self._customers(fresh, limit, {})

    def _customers(self, fresh: Fresh, limit: int, where: Document) -> list[Document]:
        fields = ["orders", "quantity", "cents"]
        name = OrderViews.customers
        return self._ask(
            fresh,
            ["orders"],
            lambda views: views.totals(name, "customer", fields, "cents", limit, where),
        )

    def revenue_by_month(self, fresh: Fresh = EVENTUAL) -> list[Document]:
        """Months (``_id``, as yyyy-mm) with ``orders`` and ``cents``, in order."""
        fields = ["orders", "cents"]
        return self._ask(
            fresh, ["orders"], lambda views: views.totals(OrderViews.months, "month", fields)
        )

    def orders_seen(self, fresh: Fresh = EVENTUAL) -> int:
        """How many orders the view holds."""
        return self._ask(fresh, ["orders"], lambda views: views.count(OrderViews.orders))

    # --- catalog and inventory

    def products(self, fresh: Fresh = EVENTUAL) -> list[Document]:
        """The products that are listed."""
        name, where = CatalogViews.entries, {"kind": "product"}
        return self._ask(fresh, ["catalog"], lambda views: views.find(name, where, [("id", 1)]))

    def entry(self, stream: str, fresh: Fresh = EVENTUAL) -> Document | None:
        """A product or a customer of the catalog by its stream (``product-cd``), or ``None``."""
        return self._one(fresh, "catalog", CatalogViews.entries, stream)

    def stock(self, product_id: str, fresh: Fresh = EVENTUAL) -> Document | None:
        """The stock of one product, or ``None`` where the view has not seen it."""
        return self._one(fresh, "inventory", InventoryViews.stock, product_id)

    def low_stock(
        self, threshold: int, *, limit: int = 100, cursor: str = "", fresh: Fresh = EVENTUAL
    ) -> Page:
        """A page of the products of which at most ``threshold`` pieces are free, the fewest first.

        Free is what is ``on_hand``: what orders hold is taken off already.
        """
        rising = [("on_hand", 1), ("_id", 1)]
        most = {"on_hand": threshold}
        name = InventoryViews.stock
        return self._page(fresh, "inventory", name, {}, rising, limit, cursor, most)

    def order_with_stock(self, order_id: str, fresh: Fresh = EVENTUAL) -> Document | None:
        """An order across services: ``order`` (with its payment), ``held`` and ``stock``.

        ``held`` is what it holds, or held, of each product; ``stock`` that of the product ordered.
        Each part is of its own service: projectors of two services would undo each other's
        transactions in one document, so it is joined here. Eventually read, one part may be ahead
        of the other (goods are held, and the order not seen: ``order`` is ``None``); with a token
        of each, or linearizable, none is behind what was asked for. ``None``: nobody knows it.
        """

        def read(views: Views) -> Document | None:
            order = views.load(OrderViews.orders, [order_id]).get(order_id)
            by_product = [("product", 1)]
            held = views.find(InventoryViews.held, {"order": order_id}, by_product)
            if order is None and not held:
                return None
            product = order["product"] if order else held[0]["product"]
            stock = views.load(InventoryViews.stock, [product]).get(product)
            return {"_id": order_id, "order": order, "held": held, "stock": stock}

        return self._ask(fresh, ["orders", "inventory"], read)

    # --- bank

    def account(self, account_id: str, fresh: Fresh = EVENTUAL) -> Document | None:
        """One account with its balance, or ``None`` where the view has not seen it."""
        return self._one(fresh, "bank", BankViews.accounts, account_id)

    def balances(self, *, limit: int = 100, cursor: str = "", fresh: Fresh = EVENTUAL) -> Page:
        """A page of all accounts with their balances, by id."""
        return self._page(fresh, "bank", BankViews.accounts, {}, [("_id", 1)], limit, cursor)

    def statement(
        self,
        account_id: str,
        *,
        descending: bool = False,
        limit: int = 100,
        cursor: str = "",
        fresh: Fresh = EVENTUAL,
    ) -> Page:
        """A page of the transactions of an account, by its versions."""
        where, by_version = {"account": account_id}, [("version", -1 if descending else 1)]
        name = BankViews.transactions
        return self._page(fresh, "bank", name, where, by_version, limit, cursor)

    def _one(self, fresh: Fresh, service: str, collection: str, stream: str) -> Document | None:
        found = self._ask(
            fresh, [service], lambda views: views.load(collection, [stream]), stream=stream
        )
        return found.get(stream)

    def _page(
        self,
        fresh: Fresh,
        service: str,
        collection: str,
        where: Document,
        sort: Sorting,
        limit: int,
        cursor: str,
        at_most: Mapping[str, int] | None = None,
    ) -> Page:
        def read(views: Views) -> Page:
            return page(views, collection, where, sort, limit, cursor, at_most)

        return self._ask(fresh, [service], read)

    # --- freshness

    def _ask(
        self, fresh: Fresh, services: list[str], read: Callable[[Views], T], stream: str = ""
    ) -> T:
        """The way of every query: be as fresh as asked, then read, all of it at one instant.

        A query about one ``stream`` that asks for more than what is there raises ``Parked`` where
        the view holds that stream back.
        """
        goals = self._goals(fresh, services)
        streams = {(service, stream) for service in services if stream and goals}
        return self._wait(goals, fresh.timeout, read, streams=streams)

    def _goals(self, fresh: Fresh, services: list[str]) -> list[Goal]:
        """What the views must have reached; linearizable: all that is in their logs by now."""
        if fresh.strategy != "linearizable":
            return list(fresh.goals)
        return [
            Position(service, partition, end)
            for service in services
            for partition, end in self._ends(service).items()
            if end > 0
        ]

    def checkpoints(self, service: str) -> dict[int, Checkpoint]:
        """By partition, how far the view of a service is."""
        return Views(self._store).checkpoints(PROJECTIONS[service].name)

    def reached(self, service: str) -> dict[int, int]:
        """By partition, the highest command offset that the views of a service have applied."""
        return {p: checkpoint.command for p, checkpoint in self.checkpoints(service).items()}

    def until(
        self,
        goals: Iterable[Goal],
        timeout: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until the views have reached the ``goals``.

        ``meanwhile`` is called between two looks. Raises ``TimedOut`` with what is still missing.
        """
        self._wait(list(goals), timeout, lambda views: None, meanwhile)

    def behind(self, goals: Iterable[Goal]) -> dict[Goal, int]:
        """One look, for who must not wait here: the goals not reached, each with what is."""
        wanted = list(goals)
        with suppress(Conflict), self._store.snapshot() as reads:
            return dict(_behind(Views(reads), wanted))
        return dict.fromkeys(wanted, -1)

    def _wait(
        self,
        goals: list[Goal],
        timeout: float,
        read: Callable[[Views], T],
        meanwhile: Callable[[], None] = lambda: None,
        streams: Iterable[tuple[str, str]] = (),
    ) -> T:
        """The one wait of all freshness: each look is at one instant, and so is what it reads."""
        streams = {*streams, *((g.service, g.stream) for g in goals if isinstance(g, Version))}
        began = time.monotonic()
        if goals:
            self._pump()
        while True:
            behind: list[tuple[Goal, int]] = []
            with suppress(Conflict), self._store.snapshot() as reads:
                views = Views(reads)
                _check_parked(views, streams)
                behind = _behind(views, goals)
                if not behind:
                    return read(views)
            goals = [goal for goal, _ in behind] or goals
            waited = time.monotonic() - began
            if behind and waited > timeout:
                goal, at = behind[0]
                raise TimedOut(
                    f"the view of {goal.service!r} did not reach {words(goal)} within "
                    f"{timeout:g} s, it is at {at}; is its projector running?"
                )
            meanwhile()
            self._pump()
            time.sleep(min(max(waited / 20, SHORTEST_LOOK_SECONDS), LONGEST_LOOK_SECONDS))


def _behind(views: Views, goals: list[Goal]) -> list[tuple[Goal, int]]:
    """The goals that are not reached, each with what is."""
    places = {g.service for g in goals if not isinstance(g, Version)}
    checkpoints = {service: views.checkpoints(PROJECTIONS[service].name) for service in places}
    streams: dict[str, set[str]] = {}
    for goal in goals:
        if isinstance(goal, Version):
            streams.setdefault(goal.service, set()).add(goal.stream)
    versions = {
        service: views.load(PROJECTIONS[service].streams, ids) for service, ids in streams.items()
    }
    behind = []
    for goal in goals:
        if isinstance(goal, Version):
            at = versions[goal.service].get(goal.stream, {}).get("version", 0)
            wanted = goal.version
        else:
            checkpoint = checkpoints[goal.service].get(goal.partition, Checkpoint("", 0))
            is_token = isinstance(goal, Token)
            at, wanted = checkpoint.command if is_token else checkpoint.position, goal.offset
        if at < wanted:
            behind.append((goal, at))
    return behind


def _check_parked(views: Views, streams: Iterable[tuple[str, str]]) -> None:
    """Raises ``Parked`` where a view holds one of the streams back: no wait would end well."""
    for service, stream in streams:
        view = PROJECTIONS[service].name
        if not any(checkpoint.parked for checkpoint in views.checkpoints(view).values()):
            continue
        if letter := views.load(parked_in(view), [stream]).get(stream):
            raise Parked(
                f"{stream!r} is parked in {view!r} since offset {letter['offset']} of partition "
                f"{letter['partition']}: {letter['reason']}; see `labkit dead-letters`"
            )
