"""The strategies: what each waits for, on all logs; a time-out says what was missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from labkit import stack
from labkit.errors import Conflict, TimedOut, UsageError
from labkit.lab import Lab
from labkit.messages import Token
from labkit.read.freshness import EVENTUAL, LINEARIZABLE, Fresh, Version
from labkit.read.standard import STANDARD, All, ById
from labkit.service import Query
from labkit.services.bank import AccountById, Balances, Statement
from labkit.services.catalog import CustomerById, ProductById, Products
from labkit.services.inventory import LowStock, StockOf
from labkit.services.orders import (
    BestCustomers,
    CustomerTotals,
    OrderById,
    OrdersById,
    OrdersOf,
    OrdersSeen,
    OrderWithStock,
    PayOrder,
    PlaceOrder,
    Revenue,
)
from tests.built_in import SERVICES

SOON = 0.02
PATIENCE = 30.0
ORDERS = [f"o{n}" for n in range(12)]  # in several partitions


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory") as made:
        yield made


def place(order: str) -> PlaceOrder:
    return PlaceOrder(order, "ann", "1997-01-31", 1, 100)


def linearizable(timeout: float = SOON) -> Fresh:
    return Fresh("linearizable", timeout=timeout)


def test_each_strategy_waits_for_its_own(lab: Lab) -> None:
    queries = lab.queries
    tokens = {order: lab.bus.send(place(order)).token() for order in ORDERS}
    token = Fresh("token", (tokens["o1"],), SOON)
    version = Fresh("version", (Version("orders", "o1", 1),), SOON)
    assert queries.ask(OrderById("o1"), fresh=EVENTUAL) is None
    assert queries.ask(OrderById("o1"), fresh=linearizable()) is None, "nothing is committed yet"
    for fresh in (token, version):
        with pytest.raises(TimedOut):
            queries.ask(OrderById("o1"), fresh=fresh)
    lab.handler.step(0)
    assert queries.ask(OrderById("o1"), fresh=EVENTUAL) is None
    for fresh in (token, version, linearizable()):
        with pytest.raises(TimedOut):
            queries.ask(OrderById("o1"), fresh=fresh)
    lab.projector.step(0)
    for fresh in (EVENTUAL, token, version, linearizable()):
        assert queries.ask(OrderById("o1"), fresh=fresh)


def test_a_time_out_says_what_it_waited_for(lab: Lab) -> None:
    first = lab.bus.send(place("o1")).token()
    lab.handler.step(0)
    second = lab.bus.send(place("o1")).token()
    partition = second.partition
    at = f"of partition {partition} within 0.02 s, it is at"
    asked: list[tuple[Fresh, str, str]] = [
        (Fresh("token", (second,), SOON), f"command 1 {at} -1", f"command 1 {at} 0"),
        (
            Fresh("version", (Version("orders", "o1", 2),), SOON),
            "version 2 of 'o1' within 0.02 s, it is at 0",
            "version 2 of 'o1' within 0.02 s, it is at 1",
        ),
    ]
    for fresh, before, _ in asked:
        with pytest.raises(TimedOut, match=f"the view of 'orders' did not reach {before}"):
            lab.ask(OrderById("o1"), fresh=fresh)
    with pytest.raises(TimedOut, match=f"did not reach position 2 {at} 0; is its projector"):
        lab.ask(OrderById("o1"), fresh=linearizable())
    lab.projector.step(0)
    lab.ask(OrderById("o1"), fresh=Fresh("token", (first,), SOON))
    for fresh, _, after in asked:
        with pytest.raises(TimedOut, match=f"the view of 'orders' did not reach {after}"):
            lab.ask(OrderById("o1"), fresh=fresh)


@pytest.mark.parametrize("fresh", [Fresh(timeout=0.0), Fresh("linearizable", timeout=1.5)])
def test_a_time_out_holds_whatever_is_in_the_way(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, fresh: Fresh
) -> None:
    @contextmanager
    def changing() -> Iterator[None]:
        raise Conflict("a collection has just changed; try again")
        yield

    lab.bus.send(place("o1"))
    lab.drive()
    monkeypatch.setattr(lab.store, "snapshot", changing)
    began = time.monotonic()
    with pytest.raises(TimedOut, match="a collection was being changed; ask again"):
        lab.ask(OrderById("o1"), fresh=fresh)
    assert time.monotonic() - began >= max(1.0, fresh.timeout)


def test_linearizable_waits_for_every_partition(lab: Lab) -> None:
    """One that nobody has read is behind, even if all others are there."""
    for order in ORDERS:
        lab.bus.send(place(order))
    lab.handler.step(0)
    ends = lab.queries._ends("orders")
    assert all(end > 0 for end in ends.values())
    projector = lab.projector
    for partition in range(lab.partitions - 1):
        projector._source.stop(partition)
    projector.step(0)
    with pytest.raises(TimedOut, match="position"):
        lab.ask(OrdersSeen(), fresh=linearizable())
    for partition in range(lab.partitions - 1):
        projector._source.start(partition, 0)
    projector.step(0)
    assert lab.ask(OrdersSeen(), fresh=linearizable()) == len(ORDERS)


def test_linearizable_looks_at_the_call_not_later(lab: Lab) -> None:
    """Who waits is not held up by what is committed meanwhile."""
    lab.bus.send(place("o1"))
    lab.handler.step(0)
    lab.projector.step(0)
    goals = lab.queries._goals(linearizable(), ["orders"])
    lab.bus.send(place("o1"))
    lab.handler.step(0)
    lab.queries.until(goals, SOON)
    with pytest.raises(TimedOut):
        lab.ask(OrderById("o1"), fresh=linearizable())


def test_a_view_across_services_waits_for_both() -> None:
    with Lab(backend="memory", services=["orders", "inventory"]) as lab:
        from labkit.services.inventory import ReceiveStock

        lab.bus.send(ReceiveStock("cd", 1))
        lab.by_hand("handler", "inventory").step(0)
        assert lab.ask(OrdersSeen(), fresh=linearizable()) == 0
        with pytest.raises(TimedOut, match="view of 'inventory'"):
            lab.ask(OrderWithStock("o1"), fresh=linearizable())
        lab.by_hand("projector", "inventory").step(0)
        assert lab.ask(OrderWithStock("o1"), fresh=linearizable()) is None


def test_what_the_run_does_not_have_cannot_be_waited_for(lab: Lab) -> None:
    for fresh in (EVENTUAL, LINEARIZABLE):
        with pytest.raises(UsageError, match="no service of this run has the query AccountById"):
            lab.ask(AccountById("a"), fresh=fresh)
    token = Fresh("token", (Token("bank", 0, 1),))
    with pytest.raises(UsageError, match="no views of 'bank' to wait for; this run has orders, ca"):
        lab.ask(OrderById("o1"), fresh=token)


@pytest.mark.parametrize(
    ("strategy", "goals"),
    [
        ("strong", ()),
        ("token", ()),
        ("version", ()),
        ("token", (Version("orders", "o", 1),)),
        ("version", (Token("orders", 0, 1),)),
        ("token", (Token("orders", 0, 1), Version("orders", "o", 1))),
        ("eventual", (Token("orders", 0, 1),)),
        ("linearizable", (Token("orders", 0, 1),)),
    ],
)
def test_goals_that_do_not_fit_are_refused(strategy: Any, goals: Any) -> None:
    with pytest.raises(UsageError, match=strategy):
        Fresh(strategy, goals)


@pytest.mark.parametrize("strategy", ["token", "version", "linearizable"])
def test_every_query_waits(strategy: str) -> None:
    """None of them forgets what it was asked for: with nobody projecting, each must time out."""
    with Lab(backend="memory", services=["orders", "inventory", "bank", "catalog"]) as lab:
        goals: dict[str, Fresh] = {}
        for service, command in commands().items():
            token = lab.bus.send(command).token()
            lab.by_hand("handler", service).step(0)
            version = Version(service, command.stream, 1)
            goals[service] = {
                "token": Fresh("token", (token,), SOON),
                "version": Fresh("version", (version,), SOON),
                "linearizable": linearizable(),
            }[strategy]
        for service, query in QUERIES.values():
            with pytest.raises(TimedOut, match=f"the view of '{service}'"):
                lab.ask(query, fresh=goals[service])
        for service in goals:
            lab.by_hand("projector", service).step(0)
        for service, query in QUERIES.values():
            lab.ask(query, fresh=goals[service])


def test_no_query_is_forgotten_here() -> None:
    own = {query for service in SERVICES.values() for query in service.queries.values()}
    assert {type(query) for _, query in QUERIES.values()} == own | set(STANDARD)


def commands() -> dict[str, Any]:
    from labkit.services.bank import OpenAccount
    from labkit.services.catalog import ListProduct
    from labkit.services.inventory import ReceiveStock

    return {
        "orders": place("o1"),
        "catalog": ListProduct("cd", "Disc", 1),
        "inventory": ReceiveStock("cd", 1),
        "bank": OpenAccount("a", "ann"),
    }


#: Every query by its name, with its service (of a query across services: the first).
QUERIES: dict[str, tuple[str, Query]] = {
    type(query).__name__: (service, query)
    for service, query in (
        ("orders", OrderById("o1")),
        ("orders", OrdersById(["o1"])),
        ("orders", OrdersOf("ann")),
        ("orders", CustomerTotals("ann")),
        ("orders", BestCustomers()),
        ("orders", Revenue()),
        ("orders", OrdersSeen()),
        ("orders", OrderWithStock("o1")),
        ("catalog", Products()),
        ("catalog", ProductById("cd")),
        ("catalog", CustomerById("ann")),
        ("catalog", ById("catalog.entries", "product-cd")),
        ("catalog", All("catalog.entries")),
        ("inventory", StockOf("cd")),
        ("inventory", LowStock(1)),
        ("bank", AccountById("a")),
        ("bank", Balances()),
        ("bank", Statement("a")),
    )
}


# --- real servers, both logs


@pytest.mark.servers
@pytest.mark.parametrize("log", ["kafka", "mongodb"])
def test_on_real_servers(servers: stack.Servers, log: str) -> None:
    """The writer never tells the reader of its write; the reader sees it all the same."""
    with Lab(log=log, services=["orders"]) as lab:
        lab.start()
        bus = lab.bus
        assert lab.ask(OrdersSeen(), fresh=linearizable(PATIENCE)) == 0
        with Lab(run=lab.run) as other:
            assert other.settings.log == log
            for number in range(20):
                assert other.bus.execute(place(f"o{number}")).accepted
                assert lab.ask(OrdersSeen(), fresh=linearizable(PATIENCE)) == number + 1
        token = bus.send(PayOrder("o1", 100)).token()
        order = lab.ask(OrderById("o1"), fresh=Fresh("token", (token,), PATIENCE))
        assert order is not None
        assert order["payment"] == "paid"
        answer = bus.execute(PayOrder("o2", 100))
        version = Version("orders", "o2", answer.version)
        order = lab.ask(OrderById("o2"), fresh=Fresh("version", (version,), PATIENCE))
        assert order is not None
        assert order["payment"] == "paid"
        lab.drop()


@pytest.mark.servers
def test_on_the_mongodb_log_the_relay_is_waited_for(servers: stack.Servers) -> None:
    """What Kafka does not hold yet is committed all the same: its own end would be too low."""
    with Lab(log="mongodb", services=["orders"]) as lab:
        lab.bus.send(place("o1")).token()
        while not lab.handler.step():
            pass
        with pytest.raises(TimedOut, match="did not reach position 1"):
            lab.ask(OrderById("o1"), fresh=linearizable(0.2))
        relay, projector = lab.by_hand("relay"), lab.projector

        def publish_and_project() -> None:
            while not relay.step():
                pass
            while not projector.step():
                pass

        thread = threading.Thread(target=publish_and_project)
        thread.start()
        assert lab.ask(OrderById("o1"), fresh=linearizable(PATIENCE))
        thread.join()
        lab.drop()
