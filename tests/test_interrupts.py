"""Ctrl-C may come anywhere: what is kept goes on where it was, and hears everything once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from labkit.adapters.memory_source import MemorySource
from labkit.lab import Lab
from labkit.services.orders import OrdersOf, PlaceOrder
from tests.test_service import project, work

#: What an interrupted client is like: the next call on it never ends.
BROKEN = "a poll of a reader that was interrupted"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=["orders"], partitions=2) as made:
        yield made


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Add to the list, and so many polls are interrupted after the client has taken the records."""
    left: list[int] = []
    broken: set[int] = set()
    poll, ends = MemorySource.poll, MemorySource.ends

    def interrupted(self: Any, limit: int, timeout: float) -> Any:
        assert id(self) not in broken, BROKEN
        found = poll(self, limit, timeout)
        if left:
            left.pop()
            broken.add(id(self))
            kept.append(self)  # or another reader might get its id
            raise KeyboardInterrupt
        return found

    def asked(self: Any) -> Any:
        assert id(self) not in broken, BROKEN
        return ends(self)

    kept: list[Any] = []
    monkeypatch.setattr(MemorySource, "poll", interrupted)
    monkeypatch.setattr(MemorySource, "ends", asked)
    yield left
    assert not left, "it was not interrupted"


def place(n: int) -> PlaceOrder:
    return PlaceOrder(f"o{n}", "ann", "1997-01-31", 1, 5)


def test_the_bus_hears_every_answer_once(lab: Lab, interrupt: list[int]) -> None:
    lab.bus.listen("orders")
    tokens = [lab.bus.send(place(n)).token() for n in range(20)]
    work(lab, wait=0)
    for _ in range(2):
        interrupt.append(1)
        with pytest.raises(KeyboardInterrupt):
            lab.bus.answer(tokens[-1])
    heard = lab.bus.hear("orders", 0)
    assert sorted(c.stream for c in heard) == sorted(f"o{n}" for n in range(20))
    assert all(lab.bus.answer(token, timeout=1).accepted for token in tokens)


def test_a_reading_of_the_log_begins_anew(lab: Lab, interrupt: list[int]) -> None:
    for n in range(20):
        lab.bus.send(place(n))
    work(lab, wait=0)
    log = lab.log()
    interrupt.append(1)
    with pytest.raises(KeyboardInterrupt):
        log.state("o1")
    assert len(list(log.commits())) == 20
    assert log.state("o1").cents == 5


def test_the_query_bus_hears_its_answer(lab: Lab, interrupt: list[int]) -> None:
    lab.bus.send(place(1))
    work(lab, wait=0)
    project(lab, wait=0)
    handler = lab.by_hand("query", "orders")
    question = lab.query_bus.send(OrdersOf("ann"))
    while not handler.step(0):
        pass
    interrupt.append(1)
    with pytest.raises(KeyboardInterrupt):
        lab.query_bus.hear(0, "orders")
    assert [row["_id"] for row in lab.query_bus.answer(question).rows] == ["o1"]


def test_the_ends_of_a_log_are_asked_for_anew(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.bus.send(place(1)).token()
    ends, used = MemorySource.ends, list[Any]()

    def interrupted(self: Any) -> Any:
        used.append(self)
        if len(used) == 1:
            raise KeyboardInterrupt
        return ends(self)

    monkeypatch.setattr(MemorySource, "ends", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.ends("orders.commands")
    assert sum(lab.ends("orders.commands").values()) == 1
    assert used[0] is not used[1]
