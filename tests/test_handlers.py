"""The handler on the in-memory twin: what it promises, and what a crash must not change."""

from __future__ import annotations

import inspect
import itertools
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.adapters.memory import MemoryBroker
from labkit.adapters.memory_store import MemoryStore
from labkit.errors import DecodeError, Fenced, LabkitError, Refused, UsageError
from labkit.experiments.verify.checkers import History, check_all
from labkit.lab import Lab
from labkit.log.event_log import EventLog
from labkit.messages import (
    Answer,
    Command,
    Commit,
    Envelope,
    Event,
    ReleaseParked,
    State,
    encode,
)
from labkit.ports import failpoints
from labkit.ports.failpoints import ALL, Crash, Failpoint, armed
from labkit.read.projector import Projector
from labkit.service import Service, guard, route
from labkit.services import catalog, orders
from labkit.services.catalog import ListProduct
from labkit.services.orders import CancelOrder, PayOrder, PlaceOrder, ShipOrder
from labkit.write import stream_state
from labkit.write.handler import Handler
from tests.built_in import PROJECTIONS, SERVICES
from tests.test_checkers import assert_green, mixed, send

ORDERS = SERVICES["orders"]
DAY = "1997-01-31"


def place(order: str, cents: int = 5) -> PlaceOrder:
    return PlaceOrder(order, "ann", DAY, 1, cents)


class Rig:
    """Topics, a store, and handlers with whatever limits a test needs."""

    def __init__(self, service: Service = ORDERS, partitions: int = 2) -> None:
        self.service = service
        self.partitions = partitions
        self.broker = MemoryBroker()
        self.store = MemoryStore()
        self.broker.create({"commands": partitions, "events": partitions})
        self._sender = self.broker.sender()
        self._ids = 0

    def handler(self, slot: int = 0, **options: Any) -> Handler:
        log = self.broker.log("commands", "events", "handlers", f"handler-{slot}")
        options = {"flush_seconds": 1e9} | options
        made = Handler(options.pop("service", self.service), log, self.store, **options)
        if slot == 0:
            made.join(self.partitions)
        return made

    def send(self, command: Command, id: str = "", expected_version: int | None = None) -> None:
        self._ids += 1
        value = encode(Envelope(id or f"id-{self._ids}", command, expected_version))
        self.put(command.stream.encode(), value)

    def put(self, key: bytes, value: bytes) -> tuple[int, int]:
        return self._sender.send("commands", key, value).result(0)

    def commits(self) -> list[Commit[Any]]:
        return list(EventLog(self.service, self.broker.source("events")).commits())

    def answers(self, id: str) -> list[tuple[str, Answer]]:
        return [(c.outcome, c.answer) for c in self.commits() if c.id == id]

    def log(self) -> list[tuple[Any, ...]]:
        """What was decided, without the instants."""
        return [
            (c.partition, c.offset, c.stream, c.id, c.outcome, c.first, c.last, c.events, c.answer)
            for c in self.commits()
        ]

    def states(self) -> dict[str, Any]:
        """What was saved, without the instants."""
        found = self.store.find(self.service.states, {})
        return {d["_id"]: {k: v for k, v in d.items() if k != "at"} for d in found}


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- one record is one commit


def test_every_command_leaves_one_commit_in_its_own_partition(rig: Rig) -> None:
    for n in range(20):
        rig.send(place(f"o{n}"), id=f"a{n}")
    rig.handler().step(0)
    source = rig.broker.source("events")
    found = rig.commits()
    assert sorted(c.id for c in found) == sorted(f"a{n}" for n in range(20))
    assert {c.partition for c in found} == {0, 1}
    assert all(c.partition == source.partitions_for([c.stream.encode()])[0] for c in found)
    assert [c.offset for c in found if c.partition == 0] == sorted(
        c.offset for c in found if c.partition == 0
    )


def test_two_commands_of_one_batch_see_each_other(rig: Rig) -> None:
    rig.send(place("o1"))
    rig.send(PayOrder("o1", 5))
    rig.send(ShipOrder("o1"))
    commits = rig.handler().step(0)
    assert [(c.outcome, c.first, c.last) for c in commits] == [
        ("accepted", 1, 1),
        ("accepted", 2, 2),
        ("accepted", 3, 3),
    ]


def test_a_batch_has_a_limit(rig: Rig) -> None:
    for n in range(10):
        rig.send(place(f"o{n}"))
    handler = rig.handler(batch_size=4)
    assert [len(handler.step(0)) for _ in range(4)] == [4, 4, 2, 0]


# --- duplicates


def again(rig: Rig, handler: Handler, how: str, **options: Any) -> Handler:
    """What lies between a command and its repeat."""
    if how == "same batch":
        return handler
    handler.step(0)
    if how == "evicted":
        handler.flush()
        assert not handler._states.streams, "nothing is left in memory"
    if how.startswith("restart"):
        if how == "restart after a flush":
            handler.flush()
        handler.close()
        return rig.handler(**options)
    return handler


WAYS = ["same batch", "next batch", "restart", "restart after a flush", "evicted"]


@pytest.mark.parametrize("how", WAYS)
def test_a_command_takes_effect_once(rig: Rig, how: str) -> None:
    options = {"max_streams": 0} if how == "evicted" else {}
    handler = rig.handler(**options)
    rig.send(place("o1"), id="a")
    rig.send(PayOrder("o1", 5), id="b")
    handler = again(rig, handler, how, **options)
    rig.send(place("o1"), id="a")
    rig.send(PayOrder("o1", 5), id="b")
    handler.step(0)
    for id, version in (("a", 1), ("b", 2)):
        first = Answer("accepted", version)
        assert rig.answers(id) == [("accepted", first), ("repeated", first)]
    assert sum(len(c.events) for c in rig.commits()) == 2


@pytest.mark.parametrize("how", WAYS)
def test_a_refusal_is_remembered_like_an_acceptance(rig: Rig, how: str) -> None:
    """The repeat would be accepted by now; it gets the first answer all the same."""
    options = {"max_streams": 0} if how == "evicted" else {}
    handler = rig.handler(**options)
    rig.send(PayOrder("o1", 5), id="early")
    rig.send(place("o1"))
    handler = again(rig, handler, how, **options)
    rig.send(PayOrder("o1", 5), id="early")
    rig.send(PayOrder("o1", 5), id="late")
    handler.step(0)
    refusal = Answer("refused", 0, "order 'o1' does not exist")
    assert rig.answers("early") == [("refused", refusal), ("repeated", refusal)]
    assert rig.answers("late") == [("accepted", Answer("accepted", 2))]


@pytest.mark.parametrize("how", ["one batch", "in memory", "saved", "taken over"])
def test_an_id_is_known_whatever_came_between(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The document of a stream stays small; what does not fit any more has one of its own."""
    monkeypatch.setattr(stream_state, "SEEN_WINDOW", 3)

    def step() -> Handler:
        if how != "one batch":
            handlers[-1].step(0)
        if how in ("saved", "taken over"):
            handlers[-1].flush()
        if how == "taken over":
            handlers[-1].close()
            handlers.append(rig.handler())
        return handlers[-1]

    handlers = [rig.handler()]
    placed, not_this, shipped = place("o1"), place("o1", cents=6), ShipOrder("o1")
    rig.send(placed, id="first")
    for n in range(12):
        rig.send(shipped, id=f"s{n}")
        step()
    for again, command in (
        ("first", placed),
        ("first", not_this),
        ("first", placed),
        ("s0", shipped),
    ):
        rig.send(command, id=again)
        step()
    for n in range(12, 20):
        rig.send(shipped, id=f"s{n}")
        step()
    for n in (*range(20), 3):
        rig.send(shipped, id=f"s{n}")
    rig.send(placed, id="first")
    handlers[-1].step(0)
    accepted = Answer("accepted", 1)
    other = Answer("refused", 1, "command id 'first' was used for another command")
    assert rig.answers("first") == [
        ("accepted", accepted),
        ("repeated", accepted),
        ("refused", other),
        ("repeated", accepted),
        ("repeated", accepted),
    ]
    for n in range(20):
        first, *more = [outcome for outcome, _ in rig.answers(f"s{n}")]
        assert (first, set(more)) == ("refused", {"repeated"})
    handlers[-1].flush()
    kept = [id for id, *_ in rig.states()["o1"]["seen"]]
    outside = [d["_id"].removeprefix("2:o1:") for d in rig.store.find(ORDERS.seen, {})]
    assert len(kept) == 3
    assert sorted(kept + outside) == sorted(["first", *(f"s{n}" for n in range(20))])


def test_repeats_do_not_push_others_out_of_the_window(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_state, "SEEN_WINDOW", 2)
    rig.send(place("o1"), id="a")
    for _ in range(5):
        rig.send(place("o1"), id="a")
    rig.send(PayOrder("o1", 5), id="b")
    rig.send(place("o1"), id="a")
    rig.handler().step(0)
    assert [outcome for outcome, _ in rig.answers("a")] == ["accepted", *["repeated"] * 6]


# --- expected versions


def test_an_expected_version_is_met_or_refused(rig: Rig) -> None:
    handler = rig.handler()
    rig.send(place("o1"), expected_version=1, id="too early")
    rig.send(place("o1"), expected_version=0, id="a")
    rig.send(PayOrder("o1", 5), expected_version=1, id="b")
    rig.send(CancelOrder("o1"), expected_version=1, id="c")
    rig.send(PayOrder("o1", 5), expected_version=1, id="b")
    handler.step(0)
    assert [(c.id, c.outcome, c.answer.reason) for c in rig.commits()] == [
        ("too early", "refused", "expected version 1, it is 0"),
        ("a", "accepted", ""),
        ("b", "accepted", ""),
        ("c", "refused", "expected version 1, it is 2"),
        ("b", "repeated", ""),
    ]


def test_of_two_writers_one_wins(rig: Rig) -> None:
    handler = rig.handler()
    rig.send(place("o1"))
    handler.step(0)
    for n in range(10):
        rig.send(PayOrder("o1", 5) if n % 2 else CancelOrder("o1"), expected_version=1)
    assert Counter(c.outcome for c in handler.step(0)) == {"accepted": 1, "refused": 9}


# --- parking

POISON = {
    "not JSON": b"\xff\x00 not json",
    "an empty record": b"",
    "no such command": b'{"id":"x","body":{"type":"BurnOrder","order_id":"o1"}}',
    "a field too many": b'{"id":"x","body":{"type":"ShipOrder","order_id":"o1","speed":1}}',
    "a field missing": b'{"id":"x","body":{"type":"PayOrder","order_id":"o1"}}',
    "a number too large": b'{"id":"x","body":{"type":"PayOrder","order_id":"o1","cents":1e999}}',
    "not a number": b'{"id":"x","body":{"type":"PayOrder","order_id":"o1","cents":NaN}}',
    "deeply nested": b'{"id":' + b"[" * 5_000,
    "another stream": encode(Envelope("x", ShipOrder("o2"))),
}


@pytest.mark.parametrize("poison", POISON)
def test_poison_parks_its_stream_and_stops_nobody_else(rig: Rig, poison: str) -> None:
    handler = rig.handler()
    rig.send(place("o1"), id="before")
    rig.send(place("o2"), id="other")
    rig.put(b"o1", POISON[poison])
    rig.send(PayOrder("o1", 5), id="behind")
    rig.send(PayOrder("o2", 5), id="other too")
    rig.send(place("o1"), id="before")
    handler.step(0)
    found = {c.id: c for c in rig.commits()}
    (parked,) = [c for c in found.values() if c.id.startswith("undecodable:")]
    assert (parked.outcome, parked.stream, parked.events) == ("parked", "o1", ())
    assert found["behind"].outcome == "parked"
    assert parked.reason
    assert found["behind"].reason.endswith(parked.reason)
    assert found["other"].outcome == found["other too"].outcome == "accepted"
    assert [o for o, _ in rig.answers("before")] == ["accepted", "repeated"]


@pytest.mark.parametrize("how", ["next batch", "restart", "restart after a flush", "evicted"])
def test_a_stream_stays_parked_and_its_commands_in_order(rig: Rig, how: str) -> None:
    options = {"max_streams": 0} if how == "evicted" else {}
    handler = rig.handler(**options)
    rig.send(place("o1"))
    rig.put(b"o1", b"poison")
    handler = again(rig, handler, how, **options)
    for n in range(3):
        rig.send(PayOrder("o1", 5), id=f"p{n}")
    handler.step(0)
    handler.flush()
    parked = [c for c in rig.commits() if c.outcome == "parked"]
    assert [c.id for c in parked[1:]] == ["p0", "p1", "p2"]
    assert {(c.first, c.last) for c in parked} == {(2, 1)}, "nothing happened to its version"
    assert rig.states()["o1"]["version"] == 1


def test_a_key_that_is_no_text_is_parked(rig: Rig) -> None:
    rig.put(b"\xff\xfe", encode(Envelope("x", ShipOrder("o1"))))
    rig.send(place("o1"))
    assert [c.outcome for c in rig.handler().step(0)].count("parked") == 1
    assert Counter(c.outcome for c in rig.commits()) == {"parked": 1, "accepted": 1}


def test_a_bug_in_a_rule_parks_its_stream() -> None:
    def ship(order: Any, c: ShipOrder) -> tuple[Any, ...]:
        raise ZeroDivisionError("a bug")

    buggy = Service(
        "orders",
        events=orders.EVENTS,
        state=orders.OrderState,
        decide={**orders.DECIDE, ShipOrder: ship},
        evolve=orders.evolve,
    )
    rig = Rig(buggy)
    rig.send(place("o1"))
    rig.send(place("o2"))
    rig.send(ShipOrder("o1"), id="bug")
    rig.send(PayOrder("o1", 5), id="behind")
    rig.send(PayOrder("o2", 5), id="other")
    rig.handler().step(0)
    found = {c.id: c for c in rig.commits()}
    assert found["bug"].reason == "ZeroDivisionError: a bug"
    assert found["behind"].outcome == "parked"
    assert found["other"].outcome == "accepted"


# --- restarts and memory


def test_nothing_in_memory_changes_before_the_commit(rig: Rig) -> None:
    handler = rig.handler()
    rig.send(place("o1"))
    handler.step(0)
    before = {k: s.copy() for k, s in handler._states.streams.items()}
    rig.send(PayOrder("o1", 5))
    rig.broker.log("commands", "events", "handlers", "handler-1")  # the group moves on
    handler._log.poll = _without_rebalance(handler)  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        handler.step(0)
    assert handler._states.streams == before


def _without_rebalance(handler: Handler) -> Any:
    """A poll that brings records as before: the rebalance comes in the middle of the batch."""
    log: Any = handler._log
    poll = log.poll

    def polled(limit: int, timeout: float) -> Any:
        group = log._broker.group(log._topic, log._group)
        generation, group.generation = group.generation, log._generation
        try:
            return poll(limit, timeout)
        finally:
            group.generation = generation

    return polled


def test_a_restart_reads_only_the_tail(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = rig.handler()
    for n in range(50):
        rig.send(place(f"o{n}"))
    handler.step(0)
    handler.flush()
    for n in range(6):
        rig.send(PayOrder(f"o{n}", 5))
    handler.step(0)
    handler.close()
    replayed: list[int] = []
    replay = Handler._replay

    def counted(self: Handler, partition: int, records: Any) -> None:
        replayed.append(len(records))
        replay(self, partition, records)

    monkeypatch.setattr(Handler, "_replay", counted)
    again = rig.handler()
    assert sum(replayed) == 6
    for n in range(7):
        rig.send(ShipOrder(f"o{n}"))
    assert Counter(c.outcome for c in again.step(0)) == {"accepted": 6, "refused": 1}


def test_a_new_fold_reads_the_log_from_its_start(rig: Rig) -> None:
    """States carry the schema version of their fold: a new one never reads old documents."""
    handler = rig.handler()
    for n in range(10):
        rig.send(place(f"o{n}"))
    handler.step(0)
    handler.flush()
    handler.close()
    second = Service(
        "orders",
        events=orders.EVENTS,
        state=orders.OrderState,
        decide=orders.DECIDE,
        evolve=orders.evolve,
        fold=2,
    )
    newer = rig.handler(service=second)
    rig.send(PayOrder("o1", 5))
    (commit,) = newer.step(0)
    assert commit.answer == Answer("accepted", 2)
    newer.flush()
    assert rig.store.count("orders.state.v1") == rig.store.count("orders.state.v2") == 10


class Count(State, frozen=True):
    steps: list[str] = msgspec.field(default_factory=list)


class Stepped(Event, frozen=True):
    counter: str
    name: str


class Step(Command, frozen=True):
    counter: str
    name: str = "on"


def step(state: Count | None, c: Step) -> Stepped:
    match c.name:
        case "raise":
            raise KeyError(c.name)
        case "loop":
            while True:
                with suppress(Exception):
                    len(c.name)
        case "spoil" if state is not None:
            state.steps.append("spoilt")
        case "refuse" if state is not None:
            state.steps.clear()
            raise Refused("no")
    return Stepped(c.counter, c.name)


def count(state: Count | None, event: Stepped) -> Count:
    state = state or Count()
    match event.name:
        case "fold-raise":
            raise KeyError(event.name)
        case "fold-loop":
            for _ in itertools.repeat(1):
                pass
        case "fold-spoil":
            state.steps.append("spoilt")
            return state
    return Count([*state.steps, event.name])


COUNTER = Service("counter", decide={Step: step}, events=[Stepped], evolve=count, state=Count)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raise", "KeyError: 'raise'"),
        ("loop", "Misbehaved: step was stopped: it had not ended after 1 s"),
        ("spoil", "Misbehaved: step changed the Count that it was given"),
        ("refuse", "Misbehaved: step changed the Count that it was given"),
        ("fold-raise", "KeyError: 'fold-raise'"),
        ("fold-loop", "Misbehaved: count was stopped: it had not ended after 1 s"),
        ("fold-spoil", "Misbehaved: count changed the Count that it was given"),
    ],
)
def test_a_rule_that_misbehaves_parks_its_stream_and_no_other(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LOOKS", 1)
    rig = Rig(COUNTER)
    for one in ("a", "b"):
        rig.send(Step(one, "first"))
    rig.send(Step("a", name))
    for one in ("a", "b"):
        rig.send(Step(one, "last"))
    handler = rig.handler()
    made = {(c.stream, c.offset): c for c in handler.step(0)}
    (stuck,) = (c for c in made.values() if c.reason.startswith(reason))
    assert (stuck.stream, stuck.outcome) == ("a", "parked")
    assert sorted(c.stream for c in made.values() if c.outcome == "accepted") == ["a", "b", "b"]
    handler.flush()
    states = {key: document["state"] for key, document in rig.states().items()}
    assert states == {"a": {"steps": ["first"]}, "b": {"steps": ["first", "last"]}}


def changed(**other: Any) -> Service:
    """The counter after a change that should have raised ``fold``."""
    kept = {"decide": {Step: step}, "events": [Stepped], "evolve": count, "state": Count}
    return Service("counter", **(kept | other))


class Wide(State, frozen=True):
    steps: list[str]
    colour: str


def pickier(state: Count | None, event: Stepped) -> Count:
    if event.name == "second":
        raise ValueError("today's rules know no second")
    return count(state, event)


@pytest.mark.parametrize(
    ("newer", "flushed", "reason"),
    [
        (changed(state=Wide), 2, r"Wide has changed .*`colour`.*raise `fold`"),
        (changed(evolve=pickier), 0, r"version 2 cannot be folded \(ValueError.*raise `fold`"),
    ],
)
def test_what_does_not_fit_its_state_any_more_is_parked_until_the_fold_is_raised(
    newer: Service, flushed: int, reason: str
) -> None:
    rig = Rig(COUNTER)
    rig.send(Step("a", "first"))
    rig.send(Step("a", "second"))
    handler = rig.handler()
    handler.step(0)
    if flushed:
        handler.flush()
    rig.send(Step("b"))  # no state of it was saved
    handler.step(0)
    handler.close()

    changed_one = rig.handler(service=newer)
    rig.send(Step("a", "third"))
    rig.send(Step("c"))
    held, other = sorted(changed_one.step(0), key=lambda commit: commit.stream)
    assert (held.outcome, other.outcome) == ("parked", "accepted")
    assert re.search(reason, held.reason)
    changed_one.flush()
    changed_one.close()

    repaired = rig.handler(service=changed(fold=2))
    rig.send(ReleaseParked("a"))
    repaired.step(0)
    assert [(c.outcome, c.last) for c in repaired.step(0)] == [("accepted", 3)]
    repaired.flush()
    (state,) = (d["state"] for d in rig.store.find("counter.state.v2", {}) if d["_id"] == "a")
    assert state == {"steps": ["first", "second", "third"]}


class Jumped(Event, frozen=True):
    counter: str


def jump(state: Count | None, event: Any) -> Count:
    return count(state, Stepped(event.counter, "jump") if isinstance(event, Jumped) else event)


NEWER = changed(
    decide={Step: lambda s, c: Jumped(c.counter) if c.name == "jump" else step(s, c)},
    events=[Stepped, Jumped],
    evolve=jump,
)


@pytest.mark.parametrize("flushed", [False, True])
def test_a_handler_of_older_code_accepts_nothing_on_top_of_what_it_cannot_read(
    flushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor of today's code folds the stream anew, and knows its ids, however many."""
    monkeypatch.setattr(stream_state, "SEEN_WINDOW", 1)
    rig = Rig(NEWER)
    for name in ("first", "on"):
        rig.send(Step("a", name), id=f"a-{name}")
    newer = rig.handler()
    newer.step(0)
    newer.flush()
    rig.send(Step("a", "jump"), id="a-jump")
    newer.step(0)
    newer.close()

    older = rig.handler(service=COUNTER)
    rig.send(Step("a", "late"), id="a-late")
    rig.send(Step("b", "first"))
    held, other = sorted(older.step(0), key=lambda commit: commit.stream)
    assert (held.outcome, held.first, held.last, other.outcome) == ("parked", 4, 3, "accepted")
    assert re.search("version 3 cannot be folded .*Jumped.*run handlers whose code", held.reason)
    assert older.ignored == 0
    log = EventLog(COUNTER, rig.broker.source("events"))
    with pytest.raises(DecodeError, match=r"version 3 of 'a' is not of this code: .*Jumped"):
        log.state("a")
    assert log.state("b") == Count(["first"])
    if flushed:
        older.flush()
    older.close()

    newer = rig.handler()
    rig.send(ReleaseParked("a"))
    newer.step(0)
    assert [(c.id, c.outcome, c.last) for c in newer.step(0)] == [("a-late", "accepted", 4)]
    for name in ("first", "on", "jump", "late"):
        rig.send(Step("a", name), id=f"a-{name}")
    assert [c.outcome for c in newer.step(0)] == ["repeated"] * 4
    newer.flush()
    states = {key: document["state"]["steps"] for key, document in rig.states().items()}
    assert states == {"a": ["first", "on", "jump", "late"], "b": ["first"]}
    assert not rig.store.find(COUNTER.states, {"anew": rig.states()["a"]["partition"]})
    assert [c.first for c in rig.commits() if c.events and c.stream == "a"] == [1, 2, 3, 4]


def test_memory_is_bounded_and_cold_streams_come_back_in_one_look_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = rig.handler(max_streams=10, flush_streams=20, batch_size=5)
    most = 0
    for n in range(200):
        rig.send(place(f"o{n}"))
    while handler.step(0):
        most = max(most, len(handler._states.streams))
    assert most <= 10 + 20 + 5
    handler.flush()
    assert len(handler._states.streams) == 10
    looked_up: list[set[str]] = []
    load = rig.store.load

    def counted(collection: str, ids: Any) -> Any:
        ids = set(ids)
        looked_up.append(ids)
        return load(collection, ids)

    monkeypatch.setattr(rig.store, "load", counted)
    for n in range(5):
        rig.send(PayOrder(f"o{n}", 5))
    assert [c.last for c in handler.step(0)] == [2] * 5
    assert looked_up == [{f"o{n}" for n in range(5)}]


def test_only_clean_states_are_evicted(rig: Rig) -> None:
    handler = rig.handler(max_streams=0, flush_streams=1_000)
    rig.send(place("o1"))
    handler.step(0)
    assert list(handler._states.streams) == ["o1"], "dirty: it is nowhere else"
    handler.flush()
    assert not handler._states.streams


class SlowStore(MemoryStore):
    """Saves when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.begun = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def advance(self, *args: Any) -> None:
        self.begun.set()
        assert self.may.wait(10)
        if self.error:
            raise self.error
        super().advance(*args)


def test_the_next_batch_is_decided_while_the_last_one_is_saved(rig: Rig) -> None:
    """What is being saved stays in memory until it is: the store does not have it yet."""
    rig.store = store = SlowStore()
    handler = rig.handler(executor=ThreadPoolExecutor(1), flush_seconds=0, max_streams=0)
    rig.send(place("o1"))
    handler.step(0)
    assert store.begun.wait(10)
    assert not store.count(ORDERS.states)
    rig.send(PayOrder("o1", 5))
    store.may.set()
    (commit,) = handler.step(0)
    assert (commit.outcome, commit.last) == ("accepted", 2)
    handler.flush()
    assert {key: d["version"] for key, d in rig.states().items()} == {"o1": 2}
    assert not handler._states.streams, "clean now"
    handler.close()


def test_two_saves_beside_never_overlap_and_an_error_breaks_the_handler(rig: Rig) -> None:
    rig.store = store = SlowStore()
    store.error = Fenced("another owner")
    handler = rig.handler(executor=ThreadPoolExecutor(1), flush_seconds=0)
    rig.send(place("o1"))
    handler.step(0)
    store.may.set()
    rig.send(PayOrder("o1", 5))
    with pytest.raises(Fenced, match="another owner"):
        handler.step(0)  # it would save again, and hears of the first time
    with pytest.raises(Fenced, match="make a new one"):
        handler.step(0)
    handler.close()


def test_who_gives_a_partition_up_has_saved_it_or_fails(rig: Rig) -> None:
    rig.store = store = SlowStore()
    handler = rig.handler(executor=ThreadPoolExecutor(1), flush_seconds=0)
    rig.send(place("o1"))
    handler.step(0)
    assert store.begun.wait(10)
    threading.Timer(0.05, store.may.set).start()
    handler._give_up(frozenset({0, 1}))
    assert store.count(ORDERS.states) == 1
    handler.close()


def test_a_flush_is_one_transaction_under_the_epoch(rig: Rig) -> None:
    """A zombie that wakes up saves nothing over what its successor has."""
    zombie = rig.handler()
    rig.send(place("o1"))
    zombie.step(0)
    rig.broker.leave("commands", "handlers", zombie._log._member)  # type: ignore[attr-defined]
    successor = rig.handler(slot=0)
    rig.send(PayOrder("o1", 5))
    successor.step(0)
    successor.flush()
    saved = rig.states()
    with pytest.raises(Fenced):
        zombie.flush()
    assert rig.states() == saved
    assert saved["o1"]["version"] == 2


def test_the_state_documents_stand_where_the_checkpoint_says(rig: Rig) -> None:
    handler = rig.handler(batch_size=3, flush_streams=4)
    for _, command, _ in mixed(4, 60, streams=6):
        rig.send(command)
    for _ in range(7):
        handler.step(0)
    looked_at = 0
    for checkpoint in rig.store.checkpoints(ORDERS.checkpoints):
        partition = int(checkpoint.id.rpartition(":")[2])
        reached = {
            c.stream: c.last
            for c in rig.commits()
            if c.partition == partition and c.offset <= checkpoint.command
        }
        states = rig.states()
        assert reached == {s: states[s]["version"] for s in reached}
        looked_at += len(reached)
    assert looked_at


def test_a_partition_that_moves_is_replayed_by_its_new_owner(rig: Rig) -> None:
    first = rig.handler(0)
    for n in range(10):
        rig.send(place(f"o{n}"))
    first.step(0)
    second = rig.handler(1)
    for n in range(10):
        rig.send(PayOrder(f"o{n}", 5))
    done = [*first.step(0), *second.step(0), *first.step(0), *second.step(0)]
    assert {c.outcome for c in done} == {"accepted"}
    assert len(done) == 10
    owners = [{c.partition for c in h.step(0)} for h in (first, second)]
    assert owners == [set(), set()]
    assert len(first._states.saved) == len(second._states.saved) == 1
    assert {s.partition for s in first._states.streams.values()} == set(first._states.saved)
    second.close()
    for n in range(10):
        rig.send(ShipOrder(f"o{n}"))
    # The first step takes the partition over, the next one reads on.
    assert {c.outcome for c in [*first.step(0), *first.step(0)]} == {"accepted"}
    assert len(rig.commits()) == 30


def test_replay_ignores_what_does_not_fit_and_counts_it(rig: Rig) -> None:
    handler = rig.handler()
    rig.send(place("o1"))
    (commit,) = handler.step(0)
    handler.close()
    partition = commit.partition
    rig.broker.append("events", partition, b"o1", encode(commit), None)
    rig.broker.append("events", partition, b"o1", b"not a commit", None)
    again = rig.handler()
    assert again.ignored == 2
    rig.send(PayOrder("o1", 5))
    assert [c.last for c in again.step(0)] == [2]
    again.flush()
    ignored = {c.id: c.ignored for c in rig.store.checkpoints(ORDERS.checkpoints)}
    assert ignored[ORDERS.checkpoint(partition)] == 2


# --- crashes


def plain_run() -> Rig:
    rig = Rig()
    for id, command, expected in mixed(5, 120):
        rig.send(command, id, expected)
    handler = rig.handler(batch_size=7, flush_streams=9)
    while handler.step(0):
        pass
    handler.flush()
    return rig


#: The failpoint, and at which of its hits: a handler claims each of its two partitions once.
CRASHES = [
    (point, nth)
    for point in ALL
    if point.startswith("handler.")
    for nth in (1, 2, 4)
    if nth < 4 or point is not Failpoint.HANDLER_CLAIMED
]


@pytest.mark.parametrize(("point", "nth"), CRASHES)
def test_a_crash_changes_nothing(
    point: Failpoint, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log after a crash and a restart is, commit for commit, the one without a crash."""
    plain = plain_run()
    rig = Rig()
    for id, command, expected in mixed(5, 120):
        rig.send(command, id, expected)
    hits = Counter[Failpoint]()
    crashes = 0

    def crash(at: Failpoint) -> None:
        hits[at] += 1
        if at is point and hits[at] == nth:
            raise Crash(at)

    monkeypatch.setattr(failpoints, "_action", crash)
    handler: Handler | None = None
    while True:
        try:
            handler = handler or rig.handler(batch_size=7, flush_streams=9)
            if not handler.step(0):
                handler.flush()
                break
        except Crash:
            crashes += 1
            # A dead process: whatever it held in memory is gone, its session is over.
            group = rig.broker.group("commands", "handlers")
            for member in list(group.members):
                rig.broker.leave("commands", "handlers", member)
            handler = None
    assert crashes == 1, "the failpoint was hit"
    assert rig.log() == plain.log()
    assert rig.states() == plain.states()


# --- any schedule


class World:
    """Two slots of handlers and of projectors, a client, and whatever may befall them."""

    def __init__(self, seed: int, flush_streams: int, max_streams: int) -> None:
        self.lab = Lab(backend="memory", services=("orders",), partitions=3)
        self.history = History(self.lab.bus)
        self.calls = mixed(seed, 400, streams=9)
        self.rng = Random(seed)
        self.limits: dict[str, Any] = {"flush_streams": flush_streams, "max_streams": max_streams}
        self.parts: dict[tuple[str, int], Any] = {}
        self.crashes = Counter[Failpoint]()
        self.zombies = Counter[Failpoint]()

    def part(self, role: str, slot: int) -> Any:
        """A worker: started when it is not there."""
        if (role, slot) not in self.parts:
            lab = self.lab
            commands, events = (lab.topic_name(f"orders.{k}") for k in ("commands", "events"))
            group = lab.of.group(role, "orders")
            if role == "handler":
                log = lab.broker.log(commands, events, group, f"{group}-{slot}")
                made: Any = Handler(
                    ORDERS, log, lab.store, batch_size=5, flush_seconds=1e9, **self.limits
                )
            else:
                source = lab.broker.source(events, group)
                made = Projector(
                    PROJECTIONS["orders"],
                    ORDERS.codec,
                    source,
                    lab.store,
                    ORDERS.checkpoints,
                    batch_size=5,
                )
            self.parts[role, slot] = made
        return self.parts[role, slot]

    def end(self, role: str, slot: int) -> None:
        """It is gone; its session, and in time its transaction, end."""
        if part := self.parts.pop((role, slot), None):
            part.close()
        broker: Any = self.lab.broker
        broker.expire()

    def step(self, role: str, slot: int) -> bool:
        """What ``runtime.work`` does with an error: close, and make the part anew."""
        try:
            return bool(self.part(role, slot).step(0))
        except LabkitError:
            self.end(role, slot)
            return True

    def crash(self, role: str, slot: int, point: Failpoint) -> None:
        try:
            with armed(point):
                self.part(role, slot).step(0)
                if role == "handler" and self.rng.random() < 0.5:
                    self.part(role, slot).flush()
        except Crash:
            self.crashes[point] += 1
            self.end(role, slot)
        except LabkitError:
            self.end(role, slot)

    def pause(self, role: str, slot: int, point: Failpoint) -> None:
        """Paused at a failpoint past its session; another takes over; then it goes on."""
        part = self.part(role, slot)

        def moved_on(at: Failpoint) -> None:
            if at is not point:
                return
            failpoints._action = None
            self.zombies[point] += 1
            broker: Any = self.lab.broker
            source = part._log if role == "handler" else part._source
            broker.leave(source._topic, source._group, source._member)
            broker.expire()
            for _ in range(2):
                self.step(role, 1 - slot)

        failpoints._action = moved_on
        try:
            part.step(0)
        except LabkitError:
            self.end(role, slot)
        finally:
            failpoints._action = None

    def send(self, count: int) -> None:
        calls, self.calls = self.calls[:count], self.calls[count:]
        send(self.history, calls)
        if self.history.operations and self.rng.random() < 0.3:
            old = self.rng.choice(self.history.operations)
            send(self.history, [(old.id, old.command, old.expected_version)])

    def finish(self) -> None:
        failpoints._action = None
        for role in ("handler", "projector"):
            self.end(role, 1)
            self.step(role, 0)
            while self.lab.lag(role, "orders"):
                self.step(role, 0)
        try:
            self.part("handler", 0).flush()
        except LabkitError:  # a zombie was the last to claim; whoever rejoins is the owner
            self.end("handler", 0)
            self.step("handler", 0)
            self.part("handler", 0).flush()
        self.history.settle(5.0)  # it ends with the last answer; a busy machine may be late


SLOTS = st.integers(0, 1)
HANDLER_POINTS = st.sampled_from([p for p in ALL if p.startswith("handler.")])
PROJECTOR_POINTS = st.sampled_from([p for p in ALL if p.startswith("projector.")])
ACTIONS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 20)),
    st.tuples(st.just("step"), st.just("handler"), SLOTS),
    st.tuples(st.just("step"), st.just("projector"), SLOTS),
    st.tuples(st.just("end"), st.sampled_from(["handler", "projector"]), SLOTS),
    st.tuples(st.sampled_from(["crash", "pause"]), st.just("handler"), SLOTS, HANDLER_POINTS),
    st.tuples(st.sampled_from(["crash", "pause"]), st.just("projector"), SLOTS, PROJECTOR_POINTS),
)


@pytest.fixture(autouse=True)
def _nothing_armed() -> Iterator[None]:
    yield
    failpoints._action = None


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 1_000),
    st.sampled_from([1, 4, 10_000]),
    st.sampled_from([0, 3, 10_000]),
    st.lists(ACTIONS, min_size=10, max_size=60),
)
def test_any_schedule_of_crashes_and_zombies_keeps_every_promise(
    seed: int, flush_streams: int, max_streams: int, actions: list[tuple[Any, ...]]
) -> None:
    world = World(seed, flush_streams, max_streams)
    world.send(20)
    for name, *arguments in actions:
        getattr(world, name)(*arguments)
    world.finish()
    assert_green(check_all(world.lab, world.history))
    assert world.lab.ignored_commits() == 0
    assert all(operation.status == "ok" for operation in world.history)


def test_the_schedules_reach_every_failpoint_dead_and_paused() -> None:
    """Or the test above would promise more than it looks at."""
    crashes, zombies = Counter[Failpoint](), Counter[Failpoint]()
    for seed in range(12):
        rng = Random(seed)
        world = World(seed, flush_streams=4, max_streams=3)
        for _ in range(60):
            role = rng.choice(["handler", "projector"])
            slot = rng.randrange(2)
            point = rng.choice([p for p in ALL if p.startswith(role)])
            world.send(rng.randrange(8))
            rng.choice([world.crash, world.pause])(role, slot, point)
            world.step(role, slot)
        world.finish()
        assert_green(check_all(world.lab, world.history))
        crashes += world.crashes
        zombies += world.zombies
    points = {p for p in ALL if p.startswith(("handler.", "projector."))}
    assert set(crashes) == set(zombies) == points


# --- the routing table


def test_a_context_needs_one_decision_for_each_command() -> None:
    def service(decide: Any) -> Service:
        return Service(
            "orders",
            commands=ORDERS.commands,
            events=orders.EVENTS,
            state=orders.OrderState,
            decide=decide,
            evolve=orders.evolve,
        )

    with pytest.raises(UsageError, match="not exactly one decision for ShipOrder"):
        service({c: d for c, d in orders.DECIDE.items() if c is not ShipOrder})
    with pytest.raises(UsageError, match="not exactly one decision for ListProduct"):
        service({**orders.DECIDE, ListProduct: catalog.rules.list_product})


def test_a_command_has_one_context() -> None:
    with pytest.raises(UsageError, match="claimed by 'orders' and by 'orders'"):
        route([ORDERS, ORDERS])
    assert set(route(SERVICES.values())) == {c for x in SERVICES.values() for c in x.decide}


def test_a_decision_is_pure() -> None:
    """Twice the same question, twice the same answer: replay and the fences rest on it."""
    for service in SERVICES.values():
        for decide in service.decide.values():
            assert inspect.unwrap(decide).__closure__ is None
    with pytest.raises(Refused):
        orders.rules.ship(None, ShipOrder("o1"))


# --- a second delivery of what was answered long ago


def many(rig: Rig, count: int) -> None:
    """More commands to one stream than it remembers ids."""
    rig.send(ListProduct("p", "a pen", 0), id="list")
    for cents in range(1, count):
        rig.send(catalog.ChangePrice("p", cents), id=f"c{cents}")


def set_back(rig: Rig) -> None:
    """Somebody sets the group's offsets back."""
    for group in rig.broker._groups.values():
        group.offsets = dict.fromkeys(group.offsets, 0)


@pytest.mark.parametrize("saved", [True, False], ids=["flushed", "replayed"])
def test_offsets_set_back_repeat_nothing(monkeypatch: Any, saved: bool) -> None:
    monkeypatch.setattr(stream_state, "SEEN_WINDOW", 10)
    rig = Rig(SERVICES["catalog"])
    many(rig, 50)
    handler = rig.handler()
    handler.step(0)
    if saved:
        handler.flush()
    handler.close()
    set_back(rig)
    handler = rig.handler()
    outcomes = Counter(commit.outcome for commit in handler.step(0))
    assert outcomes == {"repeated": 50}
    newest, oldest = rig.answers("c49"), rig.answers("c1")
    assert newest[0][1] == newest[1][1] == Answer("accepted", 50)
    assert oldest[0][1] == oldest[1][1] == Answer("accepted", 2)
    assert EventLog(rig.service, rig.broker.source("events")).state("product-p").cents == 49
    rig.send(catalog.ChangePrice("p", 100), id="new")
    assert [c.outcome for c in handler.step(0)] == ["accepted"], "and then it goes on"


def test_offsets_set_back_refuse_nothing_twice(rig: Rig) -> None:
    """A log that lets a command have one final commit would take no second refusal."""
    rig.send(place("o1"), id="used")
    rig.send(ShipOrder("o1"), id="used")
    handler = rig.handler()
    assert [commit.outcome for commit in handler.step(0)] == ["accepted", "refused"]
    handler.close()
    set_back(rig)
    assert [commit.outcome for commit in rig.handler().step(0)] == ["repeated", "repeated"]


def test_offsets_set_back_leave_what_waits_where_it_is(rig: Rig) -> None:
    rig.send(place("o1"))
    rig.put(b"o1", b"no command")
    rig.send(PayOrder("o1", 5), id="pay")
    later = encode(Envelope("later", ShipOrder("o2"), deliver_at=2**41))
    rig.send(place("o2"))
    rig.put(b"o2", later)
    handler = rig.handler()
    handler.step(0)
    handler.close()
    before = replayed(rig)
    set_back(rig)
    handler = rig.handler()
    handler.step(0)
    handler.close()
    assert replayed(rig) == before


def replayed(rig: Rig) -> dict[str, Any]:
    """What a new life knows of what waits."""
    handler = rig.handler()
    found = {
        key: (list(s.held), s.parked, s.scheduled, s.version)
        for key, s in handler._states.streams.items()
    }
    handler.close()
    return found
