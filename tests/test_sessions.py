"""Sessions: a read shows the session's own writes, and nothing that it has shown is taken back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labkit.adapters.memory_store import MemoryStore
from labkit.errors import TimedOut
from labkit.lab import Lab
from labkit.messages import Token
from labkit.read.freshness import Fresh, Version
from labkit.read.sessions import Session
from labkit.services.bank import AccountById, Deposit, OpenAccount
from labkit.services.orders import OrderById, OrdersOf, OrdersSeen, PayOrder, PlaceOrder
from labkit.teaching import Copy

SOON = Fresh(timeout=0.02)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=["orders", "bank"]) as made:
        yield made


def place(order: str) -> PlaceOrder:
    return PlaceOrder(order, "ann", "1997-01-31", 1, 100)


def work(lab: Lab, service: str = "orders") -> None:
    lab.by_hand("handler", service).step(0)
    lab.by_hand("projector", service).step(0)


def begin_anew(lab: Lab, service: str = "orders") -> None:
    """The view is lost, and its projector starts at the first record."""
    lab._by_hand.forget("projector", service)
    store = lab.store
    assert isinstance(store, MemoryStore)
    for name in store.collections():
        if name.startswith(f"{service}.view."):
            store._collections[name].clear()
    checkpoints = store._checkpoints[f"{service}.checkpoints"]
    for id in [id for id in checkpoints if id.startswith(f"{service}.view:")]:
        del checkpoints[id]


@pytest.mark.parametrize("by", ["token", "version"])
def test_a_session_reads_what_it_wrote(lab: Lab, by: str) -> None:
    session, other = Session(lab.queries), Session(lab.queries)
    session.ask(OrdersSeen(), fresh=SOON)
    token = lab.bus.send(place("o1")).token()
    session.wrote(token if by == "token" else Version("orders", "o1", 1))
    assert other.ask(OrderById("o1"), fresh=SOON) is None, "nobody promised anything to others"
    with pytest.raises(TimedOut):
        session.ask(OrderById("o1"), fresh=SOON)
    work(lab)
    assert session.ask(OrderById("o1"), fresh=SOON)


def test_every_write_counts_not_only_the_last(lab: Lab) -> None:
    """An older token after a newer one lowers nothing; two partitions are two floors."""
    session = Session(lab.queries)
    tokens = [lab.bus.send(place(f"o{n}")).token() for n in range(12)]
    assert len({token.partition for token in tokens}) == lab.partitions
    for token in reversed(tokens):
        session.wrote(token)
    session.wrote(Version("orders", "o1", 2))
    session.wrote(Version("orders", "o1", 1))
    assert {t for t in session._writes.values() if isinstance(t, Token)} == {
        max((t for t in tokens if t.partition == p), key=lambda t: t.offset)
        for p in range(lab.partitions)
    }
    work(lab)
    with pytest.raises(TimedOut, match="version 2 of 'o1'"):
        session.ask(OrdersSeen(), fresh=SOON)
    lab.bus.send(PayOrder("o1", 100))
    work(lab)
    assert session.ask(OrdersSeen(), fresh=SOON) == 12


def test_a_session_keeps_of_its_writes_only_those_that_it_has_not_seen(lab: Lab) -> None:
    session = Session(lab.queries)
    for n in range(50):
        lab.bus.send(place(f"o{n}"))
        session.wrote(Version("orders", f"o{n}", 1))
    session.wrote(Version("bank", "a", 1))
    work(lab)
    assert session.ask(OrdersSeen(), fresh=SOON) == 50
    assert list(session._writes) == [("bank", "a")], "that of another service is not seen yet"
    assert len(session._goals(SOON, ["orders"])) == lab.partitions
    begin_anew(lab)
    with pytest.raises(TimedOut):
        session.ask(OrderById("o1"), fresh=SOON)


def test_a_session_never_goes_back(lab: Lab) -> None:
    session = Session(lab.queries)
    lab.bus.send(place("o1"))
    work(lab)
    assert session.ask(OrderById("o1"), fresh=SOON)
    begin_anew(lab)
    assert lab.ask(OrderById("o1"), fresh=SOON) is None, "without a session it is gone"
    with pytest.raises(TimedOut, match="did not reach position 2"):
        session.ask(OrderById("o1"), fresh=SOON)
    with pytest.raises(TimedOut, match="did not reach position 2"):
        session.ask(OrdersOf("ann"), fresh=SOON)
    lab.projector.step(0)
    assert session.ask(OrderById("o1"), fresh=SOON)


def test_another_copy_must_have_what_was_shown_and_written(lab: Lab) -> None:
    session, copy = Session(lab.queries), Copy(lab)
    lab.bus.send(place("o1"))
    work(lab)
    copy.catch_up()
    assert session.ask(OrderById("o1"), fresh=SOON)
    session.turn_to(copy.queries)
    assert session.ask(OrderById("o1"), fresh=SOON), "it is as far"
    session.turn_to(lab.queries)
    session.wrote(lab.bus.send(PayOrder("o1", 100)).token())
    work(lab)
    session.turn_to(copy.queries)
    with pytest.raises(TimedOut, match="did not reach command 1"):
        session.ask(OrderById("o1"), fresh=SOON)
    copy.catch_up()
    order = session.ask(OrderById("o1"), fresh=SOON)
    assert order is not None
    assert order["payment"] == "paid"
    lab.bus.send(PayOrder("o1", 1))  # refused; a reader has seen the log that far all the same
    work(lab)
    session.turn_to(lab.queries)
    session.ask(OrderById("o1"), fresh=SOON)
    session.turn_to(copy.queries)
    with pytest.raises(TimedOut, match="did not reach position"):
        session.ask(OrderById("o1"), fresh=SOON)


def test_a_session_does_not_wait_for_other_services(lab: Lab) -> None:
    session = Session(lab.queries)
    lab.bus.send(OpenAccount("a", "ann"))
    work(lab, "bank")
    assert session.ask(AccountById("a"), fresh=SOON)
    session.wrote(lab.bus.send(Deposit("a", 5)).token())
    begin_anew(lab, "bank")
    assert session.ask(OrdersSeen(), fresh=SOON) == 0
    with pytest.raises(TimedOut, match="view of 'bank'"):
        session.ask(AccountById("a"), fresh=SOON)
    work(lab, "bank")
    account = session.ask(AccountById("a"), fresh=SOON)
    assert account is not None
    assert account["balance"] == 5


def test_a_strategy_comes_on_top(lab: Lab) -> None:
    session = Session(lab.queries)
    lab.bus.send(place("o1"))
    work(lab)
    session.ask(OrderById("o1"), fresh=SOON)
    lab.bus.send(PayOrder("o1", 100))
    lab.handler.step(0)
    assert session.ask(OrderById("o1"), fresh=SOON)
    with pytest.raises(TimedOut, match="did not reach position 4"):
        session.ask(OrderById("o1"), fresh=Fresh("linearizable", timeout=0.02))
