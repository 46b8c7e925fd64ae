"""Every query on real MongoDB uses an index: what the server was sent is explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
from msgspec import structs
from pymongo.monitoring import CommandListener

from labkit import stack
from labkit.lab import Lab
from labkit.ports.store import Document, Writes
from labkit.read.standard import All
from labkit.service import Query
from labkit.services.bank import Balances, Statement
from labkit.services.inventory import LowStock
from labkit.services.orders import BestCustomers, OrdersOf, OrderWithStock, Revenue
from tests.built_in import PROJECTIONS, SERVICES
from tests.test_freshness import QUERIES

COUNT = 300
CONTEXTS = list(PROJECTIONS)


class Heard(CommandListener):
    """The reads of views that a client sent, as they went out: checkpoints are read as a whole."""

    def __init__(self) -> None:
        self.reads: list[dict[str, Any]] = []

    def started(self, event: Any) -> None:
        read = event.command_name in ("find", "aggregate")
        if read and not event.command[event.command_name].endswith(".checkpoints"):
            self.reads.append(dict(event.command))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


def documents() -> dict[str, list[Document]]:
    """Enough of each view that a wrong index would not do as well."""
    some = range(COUNT)
    return {
        "orders.view.orders": [
            {"_id": f"o{n}", "version": 1, "customer": "ann" if n % 2 else f"c{n}"}
            | {"day": f"1997-01-{n % 28 + 1:02}", "cents": n % 7, "product": "cd"}
            | {"status": "placed" if n % 3 else "shipped", "payment": "paid"}
            for n in some
        ],
        "orders.view.customers": [
            {"_id": f"c{n}:{p}", "customer": f"c{n}", "orders": n, "quantity": n, "cents": n % 9}
            for n in some
            for p in (0, 1)
        ],
        "orders.view.months": [
            {"_id": f"m{n}:0", "month": f"m{n}", "orders": n, "cents": n} for n in some
        ],
        "catalog.view.entries": [
            {"_id": f"{kind}-{n}", "version": 1, "kind": kind, "id": f"{n}"}
            for n in some
            for kind in ("product", "customer")
        ],
        "inventory.view.stock": [{"_id": f"p{n}", "version": 1, "on_hand": n % 9} for n in some],
        "inventory.view.held": [
            {"_id": f"o{n}\0cd", "order": f"o{n}", "product": "cd"} for n in some
        ],
        "bank.view.accounts": [{"_id": f"a{n}", "version": 1, "balance": n} for n in some],
        "bank.view.transactions": [
            {"_id": f"a{n % 5}:{n}", "account": "a" if n % 2 else f"a{n % 5}", "version": n}
            | {"transfer_id": ""}
            for n in some
        ],
    }


@pytest.fixture(scope="module")
def lab(servers: stack.Servers) -> Iterator[Lab]:
    with Lab(services=list(SERVICES)) as made:
        made.store.advance("t.checkpoints", [], Writes(documents()))
        yield made
        made.drop()


@pytest.fixture
def heard(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """The store's reads go through a client that is listened to."""
    assert lab.servers is not None
    listener = Heard()
    store: Any = lab.store
    with pymongo.MongoClient[Document](lab.servers.mongo_uri, event_listeners=[listener]) as client:
        monkeypatch.setattr(store, "_client", client)  # its sessions are of one client
        monkeypatch.setattr(store, "_db", client[store._db.name])
        yield listener


def stages(plan: Any) -> Iterator[str]:
    """The names of all stages, at whatever depth the server shows them."""
    if isinstance(plan, dict):
        if isinstance(stage := plan.get("stage"), str):
            yield stage
        for key, value in plan.items():
            if key not in ("rejectedPlans", "command", "slotBasedPlan"):
                yield from stages(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from stages(value)


def explained(lab: Lab, read: dict[str, Any]) -> set[str]:
    """The stages of a read, as the server plans it."""
    store: Any = lab.store
    command = {k: v for k, v in read.items() if k not in ("lsid", "$clusterTime", "$db")}
    command.pop("readConcern", None)
    plan = store._db.command("explain", command, verbosity="queryPlanner")
    return set(stages(plan))


def by_index(found: set[str]) -> bool:
    return bool(found & {"IXSCAN", "IDHACK", "COUNT_SCAN"}) and not found & {"COLLSCAN", "SORT"}


MORE: dict[str, Query] = {
    "OrdersOf by cents": OrdersOf("ann", sort="cents"),
    "OrdersOf, newest": OrdersOf("ann", sort="-day"),
    "OrdersOf of a status": OrdersOf("ann", status="placed", payment="paid", sort="-cents"),
    "Statement, newest": Statement("a", order="newest"),
    "Revenue of a month": Revenue("1997-01"),
}
#: Queries in pages: the second page is asked for, too.
PAGED: dict[str, Query] = {
    "OrdersOf": OrdersOf("ann", limit=5),
    "OrdersOf by cents": OrdersOf("ann", limit=5, sort="-cents"),
    "LowStock": LowStock(3, limit=5),
    "Balances": Balances(limit=5),
    "Statement": Statement("a", limit=5),
    "All": All("catalog.entries", limit=5),
}


@pytest.mark.servers
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_uses_an_index(lab: Lab, heard: Heard, name: str) -> None:
    lab.ask(QUERIES[name][1])
    assert heard.reads
    for read in heard.reads:
        assert by_index(explained(lab, read)), (read, explained(lab, read))


@pytest.mark.servers
@pytest.mark.parametrize("name", MORE)
def test_every_way_of_asking_uses_an_index(lab: Lab, heard: Heard, name: str) -> None:
    lab.ask(MORE[name])
    (read,) = heard.reads
    assert by_index(explained(lab, read)), (read, explained(lab, read))


@pytest.mark.servers
@pytest.mark.parametrize("name", PAGED)
def test_a_later_page_uses_an_index(lab: Lab, heard: Heard, name: str) -> None:
    first = lab.ask(PAGED[name])
    second = lab.ask(structs.replace(PAGED[name], cursor=first.cursor))
    assert len(first.rows) == len(second.rows) == 5
    assert not {r["_id"] for r in first.rows} & {r["_id"] for r in second.rows}
    for read in heard.reads:
        assert by_index(explained(lab, read)), (read, explained(lab, read))


@pytest.mark.servers
def test_the_sums_of_customers_fetch_no_document(lab: Lab, heard: Heard) -> None:
    lab.ask(BestCustomers(limit=3))
    (read,) = heard.reads
    assert "FETCH" not in explained(lab, read), explained(lab, read)


@pytest.mark.servers
def test_a_missing_index_is_seen(lab: Lab, heard: Heard) -> None:
    """The test of the tests: the same queries without their indexes."""
    store: Any = lab.store
    asked = {
        "orders.view.orders": lambda: lab.ask(OrdersOf("ann")),
        "orders.view.customers": lambda: lab.ask(BestCustomers()),
        "inventory.view.stock": lambda: lab.ask(LowStock(3)),
        "inventory.view.held": lambda: lab.ask(OrderWithStock("o1")),
        "bank.view.transactions": lambda: lab.ask(Statement("a")),
    }
    for collection, ask in asked.items():
        service = collection.partition(".")[0]
        store._db[collection].drop_indexes()
        try:
            heard.reads.clear()
            ask()
            assert not all(by_index(explained(lab, read)) for read in heard.reads), collection
        finally:
            for keys in PROJECTIONS[service].indexes[collection]:
                store.index(collection, keys)


@pytest.mark.parametrize("service", PROJECTIONS)
def test_every_collection_has_a_shard_key(service: str) -> None:
    """MongoDB wants an index that begins with it; for ``_id`` hashed it makes one itself."""
    indexes = PROJECTIONS[service].indexes
    views = {SERVICES[service].collection(view): view for view in SERVICES[service].views}
    assert set(views) == set(indexes)
    for collection, view in views.items():
        key = list(view.shard_key)
        if key != [("_id", "hashed")]:
            assert any(keys[: len(key)] == key for keys in indexes[collection])
