"""The runner of projections on the in-memory twin: each event once, in documents and checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import structs

from labkit.adapters.memory import MemoryBroker
from labkit.adapters.memory_store import MemoryStore
from labkit.errors import Duplicate, Fenced, TooSlow
from labkit.messages import Commit, Event, encode
from labkit.ports.failpoints import ALL, Crash, Failpoint, armed
from labkit.ports.store import Checkpoint, Document, Writes
from labkit.read.projector import Projector
from labkit.read.unit_of_work import UnitOfWork
from labkit.services.orders import OrderCancelled, OrderPaid, OrderPlaced
from tests.built_in import (
    CUSTOMER_SUMS,
    MONTH_SUMS,
    ORDER_DOCUMENTS,
    ORDER_VIEWS,
    PROJECTIONS,
    SERVICES,
)

ORDERS = SERVICES["orders"]
VIEW = PROJECTIONS["orders"]
DAY = "1997-01-31"


def placed(order: str, cents: int = 5, customer: str = "ann") -> OrderPlaced:
    return OrderPlaced(order, customer, DAY, cents, 2, "cd", discount=0, return_days=None)


def paid(order: str) -> OrderPaid:
    return OrderPaid(order, "ann", DAY, 5)


class Rig:
    """An events topic to write to by hand, a store, and projectors."""

    def __init__(self, partitions: int = 2) -> None:
        self.partitions = partitions
        self.broker = MemoryBroker()
        self.store = MemoryStore()
        self.broker.create({"events": partitions})
        self._offsets = 0

    def projector(self, join: bool = True, **options: Any) -> Projector:
        source = self.broker.source("events", "projectors")
        made = Projector(VIEW, ORDERS.codec, source, self.store, ORDERS.checkpoints, **options)
        if join:
            made.join(self.partitions)
        return made

    def commit(
        self, stream: str, first: int, *events: Event, partition: int = 0, outcome: Any = "accepted"
    ) -> Commit[Any]:
        """A commit in the log, as a handler would write it, or a zombie."""
        self._offsets += 1
        made: Commit[Any] = Commit(
            stream=stream,
            id=f"id-{self._offsets}",
            partition=partition,
            offset=self._offsets - 1,
            outcome=outcome,
            first=first,
            last=first + len(events) - 1,
            events=events,
        )
        self.put(stream.encode(), encode(made), partition)
        return made

    def put(self, key: bytes, value: bytes, partition: int = 0) -> None:
        self.broker.append("events", partition, key, value, None)

    def view(self) -> dict[str, list[Document]]:
        """The documents, without the instants."""
        found = {name: self.store.find(name, {}, [("_id", 1)]) for name in ORDER_VIEWS}
        for document in found[ORDER_DOCUMENTS]:
            del document["trace"]
        return found

    def checkpoint(self, partition: int = 0) -> Checkpoint:
        (found,) = [
            c
            for c in self.store.checkpoints(ORDERS.checkpoints)
            if c.id == f"{VIEW.name}:{partition}"
        ]
        return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_commit_changes_its_order_its_customer_and_its_month(rig: Rig) -> None:
    rig.commit("o1", 1, placed("o1"))
    rig.commit("o1", 2, paid("o1"))
    rig.commit("o2", 1, placed("o2", cents=7))
    rig.commit("o3", 1, placed("o3", cents=11), partition=1)
    assert rig.projector().step(0) == 4
    view = rig.view()
    assert [(d["_id"], d["version"], d["payment"]) for d in view[ORDER_DOCUMENTS]] == [
        ("o1", 2, "paid"),
        ("o2", 1, "unpaid"),
        ("o3", 1, "unpaid"),
    ]
    # A document for each partition: two projectors never write the same one.
    assert [(d["_id"], d["orders"], d["cents"]) for d in view[CUSTOMER_SUMS]] == [
        ("ann:0", 2, 12),
        ("ann:1", 1, 11),
    ]
    assert [(d["_id"], d["orders"], d["cents"]) for d in view[MONTH_SUMS]] == [
        ("1997-01:0", 2, 12),
        ("1997-01:1", 1, 11),
    ]


def test_what_is_cancelled_leaves_the_sums_and_stays_as_an_order(rig: Rig) -> None:
    rig.commit("o1", 1, placed("o1"))
    projector = rig.projector()
    projector.step(0)
    rig.commit("o1", 2, paid("o1"))
    rig.commit("o1", 3, OrderCancelled("o1", "ann", DAY, 5, 5, ""))
    projector.step(0)
    view = rig.view()
    assert (view[ORDER_DOCUMENTS][0]["status"], view[ORDER_DOCUMENTS][0]["payment"]) == (
        "cancelled",
        "refunded",
    )
    customer = {"_id": "ann:0", "customer": "ann", "orders": 0, "quantity": 0, "cents": 0}
    assert view[CUSTOMER_SUMS] == [customer]


def test_several_events_of_one_commit_are_taken_whole(rig: Rig) -> None:
    rig.commit("o1", 1, placed("o1"), paid("o1"))
    rig.projector().step(0)
    (order,) = rig.view()[ORDER_DOCUMENTS]
    assert (order["version"], order["payment"]) == (2, "paid")


@pytest.mark.parametrize("outcome", ["refused", "repeated", "parked"])
def test_a_commit_without_events_moves_the_checkpoint_only(rig: Rig, outcome: str) -> None:
    """So that whoever waits for the token of a refused command does not wait for ever."""
    rig.commit("o0", 1, placed("o0"), partition=1)
    made = rig.commit("o1", 1, outcome=outcome)
    assert made.offset == 1
    assert rig.projector().step(0) == 1
    assert [d["_id"] for d in rig.view()[ORDER_DOCUMENTS]] == ["o0"]
    at = rig.checkpoint()
    assert (at.position, at.command, at.ignored) == (1, made.offset, 0)


def test_an_order_of_steps_makes_no_difference(rig: Rig) -> None:
    small = Rig()
    for target in (rig, small):
        for n in range(30):
            target.commit(f"o{n}", 1, placed(f"o{n}", cents=n), partition=n % 2)
            if n % 3 == 0:
                target.commit(f"o{n}", 2, paid(f"o{n}"), partition=n % 2)
    rig.projector().step(0)
    projector = small.projector(batch_size=3)
    while projector.step(0):
        pass
    assert rig.view() == small.view()
    assert rig.checkpoint().position == small.checkpoint().position


# --- the second fence


@pytest.mark.parametrize("how", ["one batch", "two batches"])
def test_the_commit_of_a_zombie_is_ignored_and_counted(rig: Rig, how: str) -> None:
    projector = rig.projector()
    rig.commit("o1", 1, placed("o1"))
    rig.commit("o1", 2, paid("o1"))
    if how == "two batches":
        projector.step(0)
    rig.commit("o1", 2, OrderCancelled("o1", "ann", DAY, 5, 0, ""))  # as of version 1
    rig.commit("o1", 1, placed("o1"))  # and one as of nothing
    rig.commit("o2", 1, placed("o2"))
    projector.step(0)
    order = rig.view()[ORDER_DOCUMENTS][0]
    assert (order["version"], order["status"]) == (2, "placed")
    assert rig.view()[CUSTOMER_SUMS][0]["orders"] == 2
    assert rig.checkpoint().ignored == 2


@pytest.mark.parametrize("how", ["one batch", "two batches"])
def test_a_first_commit_that_comes_twice_is_ignored_too(rig: Rig, how: str) -> None:
    """A first commit is trusted without a look-up; the insert finds the duplicate."""
    projector = rig.projector()
    rig.commit("o1", 1, placed("o1"))
    if how == "two batches":
        projector.step(0)
    rig.commit("o1", 1, placed("o1", customer="zombie"))
    rig.commit("o2", 1, placed("o2"))
    projector.step(0)
    rig.commit("o1", 2, paid("o1"))
    projector.step(0)
    view = rig.view()
    assert [(d["_id"], d["version"], d["customer"]) for d in view[ORDER_DOCUMENTS]] == [
        ("o1", 2, "ann"),
        ("o2", 1, "ann"),
    ]
    assert [d["_id"] for d in view[CUSTOMER_SUMS]] == ["ann:0"]
    assert view[CUSTOMER_SUMS][0]["orders"] == 2
    assert rig.checkpoint().ignored == 1


def test_first_commits_need_no_look_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a million new orders fast; the sums are looked up, the new orders are not."""
    looked_up: list[str] = []
    load = rig.store.load

    def counted(collection: str, ids: Any) -> Any:
        looked_up.append(collection)
        return load(collection, ids)

    monkeypatch.setattr(rig.store, "load", counted)
    for n in range(5):
        rig.commit(f"o{n}", 1, placed(f"o{n}"))
    rig.projector().step(0)
    assert sorted(looked_up) == [CUSTOMER_SUMS, MONTH_SUMS]


# --- checkpoints and epochs


def test_a_position_moves_past_markers_without_a_record(rig: Rig) -> None:
    """Or a wait for the end of a quiet partition would never end."""
    rig.broker.initialise("t")
    transaction = rig.broker.begin("t", 1)
    rig.broker.append("events", 0, b"o1", b"never seen", transaction)
    projector = rig.projector()
    projector.step(0)
    assert rig.checkpoint().position == 0, "the transaction is open"
    rig.broker.end("t", "aborted")
    assert projector.step(0) == 0
    at = rig.checkpoint()
    assert (at.position, at.command, at.ignored) == (2, -1, 0)
    assert rig.view()[ORDER_DOCUMENTS] == []


def test_a_new_owner_goes_on_where_the_view_stands(rig: Rig) -> None:
    """The group's own offsets are of no account."""
    rig.commit("o1", 1, placed("o1"))
    first = rig.projector()
    first.step(0)
    first.close()
    rig.commit("o2", 1, placed("o2"))
    assert rig.projector().step(0) == 1
    assert rig.checkpoint().epoch == 2


def test_a_zombie_writes_nothing(rig: Rig) -> None:
    rig.commit("o1", 1, placed("o1"))
    zombie = rig.projector()
    rig.broker.leave("events", "projectors", zombie._source._member)  # type: ignore[attr-defined]
    successor = rig.projector()
    rig.commit("o2", 1, placed("o2"))
    records = rig.broker.source("events")
    records.start(0, 0)
    batch = records.poll(10, 0)
    zombie._source.poll = lambda *_: structs.replace(batch)  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        zombie.step(0)
    assert rig.view()[ORDER_DOCUMENTS] == []
    assert successor.step(0) == 2
    assert rig.view()[CUSTOMER_SUMS][0]["orders"] == 2


def test_an_owner_that_has_nothing_to_do_finds_out_that_it_is_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it has rejoined when the next event comes."""
    projector = rig.projector()
    rig.commit("o1", 1, placed("o1"))
    projector.step(0)
    rig.store.claim(ORDERS.checkpoints, f"{VIEW.name}:0")
    assert projector.step(0) == 0, "it does not look at every step"
    monkeypatch.setattr("labkit.read.projector.LOOK_NANOSECONDS", 0)
    with pytest.raises(Fenced, match="has another owner"):
        projector.step(0)


def test_a_partition_that_moves_is_shown_once(rig: Rig) -> None:
    first = rig.projector()
    for n in range(10):
        rig.commit(f"o{n}", 1, placed(f"o{n}"), partition=n % 2)
    first.step(0)
    second = rig.projector(join=False)
    for n in range(10):
        rig.commit(f"o{n}", 2, paid(f"o{n}"), partition=n % 2)
    assert sum(p.step(0) for p in (first, second, first, second)) == 10
    assert len(first._owned.checkpoints) == len(second._owned.checkpoints) == 1
    assert {d["version"] for d in rig.view()[ORDER_DOCUMENTS]} == {2}
    second.close()
    first.step(0)
    rig.commit("o0", 3, OrderCancelled("o0", "ann", DAY, 5, 5, ""))
    rig.commit("o1", 3, OrderCancelled("o1", "ann", DAY, 5, 5, ""), partition=1)
    assert first.step(0) == 2
    assert sum(d["orders"] for d in rig.view()[CUSTOMER_SUMS]) == 8


@pytest.mark.parametrize("point", [p for p in ALL if p.startswith("projector.")])
def test_a_crash_changes_nothing(rig: Rig, point: Failpoint) -> None:
    plain = Rig()
    for target in (rig, plain):
        for n in range(20):
            target.commit(f"o{n}", 1, placed(f"o{n}", cents=n), partition=n % 2)
            target.commit(f"o{n}", 2, paid(f"o{n}"), partition=n % 2)
    plain.projector().step(0)
    doomed = rig.projector(join=False, batch_size=7)
    if point is not Failpoint.PROJECTOR_CLAIMED:
        doomed.step(0)  # it takes over, and reads nothing yet
    with armed(point), pytest.raises(Crash):
        doomed.step(0)
    doomed.close()
    again = rig.projector()
    again.step(0)
    assert rig.view() == plain.view()
    assert rig.checkpoint().position == plain.checkpoint().position
    assert rig.checkpoint().ignored == 0


def test_writes_and_checkpoint_are_one_call(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    advance = rig.store.advance

    def counted(name: str, moves: Sequence[Any], writes: Writes) -> None:
        calls.append((len(moves), sum(map(len, writes.inserts.values()))))
        advance(name, moves, writes)

    monkeypatch.setattr(rig.store, "advance", counted)
    rig.commit("o1", 1, placed("o1"))
    projector = rig.projector()
    projector.step(0)
    assert calls == [(1, 3)], "an order, a customer, a month, and the checkpoint"
    projector.step(0)
    assert len(calls) == 1, "nothing new, nothing written"


# --- the documents of a batch


def test_new_documents_are_inserted_and_known_ones_replaced() -> None:
    store = MemoryStore()
    at = store.claim("c", "p:0")
    to = structs.replace(at, position=1)
    store.advance("c", [(at, to)], Writes({"docs": [{"_id": "a", "n": 1}]}))
    docs = UnitOfWork(store)
    docs.load([("docs", "a"), ("docs", "b"), ("docs", "a")])
    known = docs["docs"].get("a")
    assert known == {"_id": "a", "n": 1}
    assert docs["docs"].get("b") is None
    assert docs["other"].get("a") is None
    known["n"] = 2
    docs["docs"].add({"_id": "b", "n": 3})
    assert docs.writes() == Writes(
        {"docs": [{"_id": "b", "n": 3}]}, {"docs": [{"_id": "a", "n": 2}]}
    )
    with pytest.raises(Duplicate):
        store.advance("c", [(to, structs.replace(to, position=2))], Writes({"docs": [known]}))


def test_a_batch_that_takes_too_long_is_tried_in_parts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, sizes = rig.store.advance, list[int]()

    def slow(checkpoints: str, moves: Any, writes: Writes) -> None:
        sizes.append(sum(map(len, writes.inserts.values())))
        if sizes[-1] > 30:
            raise TooSlow("its transaction was over before its end")
        advance(checkpoints, moves, writes)

    for n in range(100):
        rig.commit(f"o{n}", 1, placed(f"o{n}"))
    monkeypatch.setattr(rig.store, "advance", slow)
    projector = rig.projector()
    assert projector.step(0) == 100
    assert len(rig.view()[ORDER_DOCUMENTS]) == 100
    assert rig.checkpoint().position == 100
    monkeypatch.setattr(rig.store, "advance", lambda *_: slow("", [], Writes({"x": [{}] * 99})))
    rig.commit("o100", 1, placed("o100"))
    with pytest.raises(TooSlow):
        projector.step(0)
