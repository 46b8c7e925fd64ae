"""Commands that wait: for their instant, behind poison, or for what may pass. One mechanism."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from labkit.errors import Transient
from labkit.log import partition
from labkit.log.partition import fetch_records
from labkit.messages import MAX_COMMAND_BYTES, Command, Envelope, ReleaseParked, encode
from labkit.ports.clock import Clock
from labkit.service import Service
from labkit.services import orders
from labkit.services.orders import PayOrder, ShipOrder
from labkit.write import decisions, handler, take_over
from labkit.write.decisions import DAY_MS, FIRST_RETRY_MS, MAX_TRIES
from labkit.write.handler import Handler
from labkit.write.stream_state import MAX_WAITING, StreamState
from labkit.write.timers import Timers
from tests.test_handlers import Rig, place

START = 1_700_000_000_000


class Calendar(Clock):
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> int:
        return self.at * 1_000_000

    def wall(self) -> int:
        return self.at


class Waiting(Rig):
    """A rig with a calendar, whose handler may get a new life at any time."""

    def __init__(self, service: Service | None = None) -> None:
        super().__init__(*([service] if service else []))
        self.calendar = Calendar()
        self.now = self.made()

    def made(self, **options: Any) -> Handler:
        return self.handler(clock=self.calendar, **options)

    def restart(self, how: str) -> None:
        """``live``: no restart; ``replayed``: from the log alone; ``flushed``: from the states."""
        if how == "live":
            return
        if how == "flushed":
            self.now.flush()
        self.now.close()
        self.now = self.made()

    def later(self, ms: int, id: str, command: Command, **fields: Any) -> None:
        at = self.calendar.at + ms
        value = encode(Envelope(id, command, deliver_at=at, **fields))
        self.put(command.stream.encode(), value)

    def step(self, ms: int = 0) -> list[tuple[str, str]]:
        """Let time pass, then step: the ids and outcomes."""
        self.calendar.at += ms
        return [(c.id, c.outcome) for c in self.now.step(0)]

    def outcomes(self, id: str) -> list[str]:
        return [c.outcome for c in self.commits() if c.id == id]


@pytest.fixture
def rig() -> Waiting:
    return Waiting()


LIVES = pytest.mark.parametrize("how", ["live", "replayed", "flushed"])


# --- deliver_at


@LIVES
def test_a_command_waits_for_its_instant(rig: Waiting, how: str) -> None:
    rig.send(place("o1"))
    rig.later(10_000, "pay", PayOrder("o1", 5))
    assert rig.step()[1] == ("pay", "scheduled")
    rig.restart(how)
    assert rig.step(9_999) == []
    assert rig.step(1) == [("pay", "accepted")]
    assert rig.step(60_000) == []
    rig.restart(how)
    assert rig.step(60_000) == []
    (first, last) = [c for c in rig.commits() if c.id == "pay"]
    assert first.due == START + 10_000
    assert (first.partition, first.offset) == (last.partition, last.offset)
    assert (last.first, last.last, last.at) == (2, 2, START + 10_000)


@LIVES
def test_each_of_several_instants_is_kept(
    rig: Waiting, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new life that finds the first of them done with looks again for the second."""
    monkeypatch.setattr(take_over, "REPLAYED", 1)
    rig.send(place("o1"))
    rig.later(100, "first", PayOrder("o1", 5))
    rig.later(300, "second", ShipOrder("o1"))
    rig.step()
    assert rig.step(150) == [("first", "accepted")]
    rig.restart(how)
    assert rig.step(50) == []
    assert rig.step(150) == [("second", "accepted")]


def test_a_take_over_of_many_that_wait_in_one_stream_looks_through_them_once(
    rig: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    unheld = StreamState._unheld
    monkeypatch.setattr(
        StreamState,
        "_unheld",
        lambda stream: (looks.append(len(stream.scheduled)), unheld(stream))[1],
    )
    rig.send(place("o1"))
    for n in range(2_000):
        rig.later(10_000, f"pay-{n}", PayOrder("o1", 5))
    rig.step()
    looks.clear()
    rig.restart("replayed")
    assert len(looks) <= 2
    assert len(rig.step(10_000)) == 2_000


@LIVES
def test_a_replay_before_its_instant_waits_for_it(rig: Waiting, how: str) -> None:
    """A command that was scheduled may get stuck early: the group's offsets went back, say."""
    rig.send(place("o1"))
    rig.later(10_000, "pay", PayOrder("o1", 5))
    rig.step()
    stream = rig.now._states.streams["o1"]
    (offset,) = stream.scheduled
    stuck = next(c for c in rig.commits() if c.outcome == "scheduled")
    value = encode(structs.replace(stuck, outcome="parked", reason="a bug", due=0))
    rig.broker.sender().send("events", b"o1", value, stuck.partition)
    rig.restart("replayed")
    assert list(rig.now._states.streams["o1"].held) == [offset]
    rig.send(ReleaseParked("o1"))
    rig.step()
    rig.restart(how)
    assert rig.step(1) == [("pay", "scheduled")] or how != "live"
    assert rig.step(5_000) == []
    assert rig.step(5_000) == [("pay", "accepted")]
    assert rig.outcomes("pay") == ["scheduled", "parked", "scheduled", "accepted"]


@LIVES
def test_a_repeat_of_a_scheduled_command_is_one(rig: Waiting, how: str) -> None:
    rig.send(place("o1"))
    rig.later(1_000, "pay", PayOrder("o1", 5))
    rig.step()
    rig.restart(how)
    rig.later(1_000, "pay", PayOrder("o1", 5))
    assert rig.step() == [("pay", "repeated")]
    assert rig.step(1_000) == [("pay", "accepted")]
    rig.send(PayOrder("o1", 5), id="pay")
    assert rig.step() == [("pay", "repeated")]
    assert rig.commits()[-1].answer.outcome == "accepted"


def test_what_is_due_together_goes_in_the_order_of_the_instants(rig: Waiting) -> None:
    rig.send(place("o1"))
    rig.later(300, "ship", ShipOrder("o1"))
    rig.later(200, "pay", PayOrder("o1", 5))
    rig.step()
    assert rig.step(1_000) == [("pay", "accepted"), ("ship", "accepted")]


def test_an_expected_version_is_met_or_not_at_the_delivery(rig: Waiting) -> None:
    rig.send(place("o1"))
    rig.later(100, "ship", ShipOrder("o1"), expected_version=2)
    rig.later(50, "pay", PayOrder("o1", 5), expected_version=1)
    rig.later(200, "late", PayOrder("o1", 5), expected_version=1)
    rig.step()
    outcomes = dict(rig.step(1_000))
    assert outcomes == {"pay": "accepted", "ship": "accepted", "late": "refused"}


@pytest.mark.parametrize(
    ("ahead", "outcome", "reason"),
    [
        (367 * DAY_MS, "refused", "367 days ahead, at most 366"),
        (-3 * DAY_MS, "refused", "3 days ago"),
        (-5, "accepted", ""),
    ],
)
def test_an_unreasonable_instant_is_refused(
    rig: Waiting, ahead: int, outcome: str, reason: str
) -> None:
    rig.send(place("o1"))
    rig.step()
    rig.later(ahead, "pay", PayOrder("o1", 5))
    assert rig.step() == [("pay", outcome)]
    assert reason in rig.commits()[-1].reason


@pytest.mark.parametrize("instant", [b'"tomorrow"', b"-1", b"1e400", b"9223372036854775808"])
def test_a_malformed_instant_parks_its_stream(rig: Waiting, instant: bytes) -> None:
    rig.send(place("o1"))
    pay = encode(Envelope("pay", PayOrder("o1", 5)))
    rig.put(b"o1", pay[:-1] + b',"deliver_at":' + instant + b"}")
    rig.send(place("o2"))
    assert Counter(outcome for _, outcome in rig.step()) == {"accepted": 2, "parked": 1}


def test_many_scheduled_commands_come_in_batches() -> None:
    rig = Waiting()
    rig.now.close()
    rig.now = rig.made(batch_size=7)
    for n in range(30):
        rig.send(place(f"o{n}"))
        rig.later(500, f"p{n}", PayOrder(f"o{n}", 5))
    while rig.step():
        pass
    rig.calendar.at += 1_000
    sizes = []
    while found := rig.step():
        sizes.append(len(found))
        assert {outcome for _, outcome in found} == {"accepted"}
    assert (sum(sizes), max(sizes)) == (30, 7)


# --- one id, two bodies


@LIVES
def test_a_used_id_does_not_fit_another_command(rig: Waiting, how: str) -> None:
    rig.send(place("o1"), id="a")
    rig.send(PayOrder("o1", 5), id="b")
    rig.step()
    rig.restart(how)
    rig.send(ShipOrder("o1"), id="b")
    rig.send(PayOrder("o1", 5), id="b")
    assert rig.step() == [("b", "refused"), ("b", "repeated")]
    refused, repeated = rig.commits()[-2:]
    assert "used for another command" in refused.reason
    assert repeated.answer.accepted, "the first answer still stands"


# --- parking, replay, drop


def behind_poison(rig: Waiting) -> None:
    rig.send(place("o1"))
    rig.put(b"o1", b"poison")
    rig.send(PayOrder("o1", 5), id="pay")
    rig.send(ShipOrder("o1"), id="ship")
    rig.step()


@LIVES
def test_drop_lets_the_others_go_in_order(rig: Waiting, how: str) -> None:
    behind_poison(rig)
    rig.restart(how)
    rig.send(ReleaseParked("o1", drop=True), id="drop")
    assert rig.step() == [("drop", "accepted")]
    rig.restart(how)
    rig.send(PayOrder("o1", 5), id="newer")
    found = rig.step()
    assert [outcome for _, outcome in found] == ["dropped", "accepted", "accepted", "refused"]
    assert [id for id, _ in found[1:]] == ["pay", "ship", "newer"]
    rig.restart(how)
    assert rig.step(60_000) == []
    states = rig.states()["o1"] if how == "flushed" else {}
    assert "held" not in states


@LIVES
def test_replay_of_poison_parks_again(rig: Waiting, how: str) -> None:
    behind_poison(rig)
    rig.restart(how)
    rig.send(ReleaseParked("o1"), id="replay")
    assert rig.step() == [("replay", "accepted")]
    assert [outcome for _, outcome in rig.step()] == ["parked"], "only the first is tried"
    rig.restart(how)
    rig.send(PayOrder("o1", 5), id="newer")
    assert rig.step() == [("newer", "parked")]
    rig.send(ReleaseParked("o1", drop=True), id="drop")
    rig.step()
    assert [id for id, outcome in rig.step() if outcome == "accepted"] == ["pay", "ship"]


@LIVES
def test_replay_after_a_mended_rule(how: str) -> None:
    broken = [True]

    def ship(order: Any, c: ShipOrder) -> tuple[Any, ...]:
        if broken[0]:
            raise ZeroDivisionError("a bug")
        return orders.rules.ship(order, c)

    rig = Waiting(with_ship(ship))
    rig.send(place("o1"))
    rig.send(PayOrder("o1", 5))
    rig.send(ShipOrder("o1"), id="ship")
    rig.send(ShipOrder("o1"), id="again")
    assert [o for _, o in rig.step()] == ["accepted", "accepted", "parked", "parked"]
    rig.restart(how)
    broken[0] = False
    rig.send(ReleaseParked("o1"))
    rig.step()
    assert rig.step() == [("ship", "accepted"), ("again", "refused")]


def with_ship(ship: Callable[..., Any]) -> Service:
    return Service(
        "orders",
        events=orders.EVENTS,
        state=orders.OrderState,
        decide={**orders.DECIDE, ShipOrder: ship},
        evolve=orders.evolve,
    )


def test_a_release_of_a_stream_that_is_not_parked_is_refused(rig: Waiting) -> None:
    rig.send(place("o1"))
    rig.send(ReleaseParked("o1"), id="no")
    assert rig.step()[1] == ("no", "refused")


@LIVES
def test_a_scheduled_command_that_got_stuck_is_not_lost(rig: Waiting, how: str) -> None:
    rig.send(place("o1"))
    rig.later(100, "pay", PayOrder("o1", 5))
    rig.put(b"o1", b"poison")
    rig.step()
    assert rig.step(100) == [("pay", "parked")]
    rig.restart(how)
    rig.send(ReleaseParked("o1", drop=True))
    rig.step()
    assert [o for _, o in rig.step()] == ["dropped", "accepted"]
    assert rig.outcomes("pay") == ["scheduled", "parked", "accepted"]


def test_a_repeat_of_a_held_command_is_one(rig: Waiting) -> None:
    behind_poison(rig)
    rig.send(PayOrder("o1", 5), id="pay")
    rig.step()
    rig.send(ReleaseParked("o1", drop=True))
    rig.step()
    rig.step()
    assert rig.outcomes("pay") == ["parked", "parked", "accepted", "repeated"]


def test_a_full_queue_refuses(rig: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.write.decisions.MAX_WAITING", 3)
    behind_poison(rig)
    rig.send(PayOrder("o1", 5), id="too many")
    rig.put(b"o1", b"more poison")
    assert [outcome for _, outcome in rig.step()] == ["refused", "refused"]
    assert "wait in this stream" in rig.commits()[-2].reason
    assert MAX_WAITING > 3


# --- what is too large


def test_a_command_that_is_too_large_is_parked(rig: Waiting) -> None:
    huge = orders.PlaceOrder("o1", "x" * MAX_COMMAND_BYTES, "1997-01-31", 1, 5)
    rig.send(huge)
    rig.send(place("o2"))
    assert [outcome for _, outcome in rig.step()].count("parked") == 1
    assert len(rig.commits()) == 2


def test_a_commit_that_is_too_large_parks_its_stream() -> None:
    def ship(order: Any, c: ShipOrder) -> tuple[Any, ...]:
        (event,) = orders.rules.ship(order, c)
        return (event,) * 200_000

    rig = Waiting(with_ship(ship))
    rig.send(place("o1"))
    rig.send(PayOrder("o1", 5))
    rig.send(ShipOrder("o1"), id="ship")
    rig.step()
    assert rig.outcomes("ship") == ["parked"]
    assert "at most 8000000 fit" in rig.commits()[-1].reason


def test_a_fold_that_fails_parks_its_stream_and_changes_nothing() -> None:
    def evolve(state: Any, event: Any) -> Any:
        if isinstance(event, orders.OrderPaid):
            raise KeyError("no such field")
        return orders.evolve(state, event)

    service = with_ship(orders.rules.ship)
    service.evolve = evolve
    rig = Waiting(service)
    rig.send(place("o1"))
    rig.send(PayOrder("o1", 5), id="pay")
    rig.send(place("o2"))
    rig.step()
    assert rig.outcomes("pay") == ["parked"]
    rig.now.flush()
    assert rig.states()["o1"]["version"] == 1
    assert [c.outcome for c in rig.commits() if c.stream == "o2"] == ["accepted"]


# --- what may pass


def flaky(failures: int) -> tuple[Service, list[int]]:
    tries: list[int] = []

    def ship(order: Any, c: ShipOrder) -> tuple[Any, ...]:
        tries.append(1)
        if len(tries) <= failures:
            raise Transient("the carrier does not answer")
        return orders.rules.ship(order, c)

    return with_ship(ship), tries


@LIVES
def test_what_may_pass_is_tried_again_in_order(how: str) -> None:
    service, tries = flaky(3)
    rig = Waiting(service)
    rig.send(place("o1"))
    rig.send(PayOrder("o1", 5))
    rig.send(ShipOrder("o1"), id="ship")
    rig.send(ShipOrder("o1"), id="behind")
    rig.step()
    pauses = []
    while rig.outcomes("ship")[-1] == "parked":
        assert len(pauses) < 5
        before = rig.calendar.at
        rig.restart(how)
        while not rig.step():
            rig.calendar.at += 50
        pauses.append(rig.calendar.at - before)
    assert pauses == [FIRST_RETRY_MS, FIRST_RETRY_MS * 2, FIRST_RETRY_MS * 4]
    assert len(tries) == 5, "three failures, then both"
    assert rig.outcomes("ship") == ["parked"] * 3 + ["accepted"]
    assert rig.outcomes("behind") == ["parked", "refused"]


def test_after_too_many_tries_the_stream_is_parked() -> None:
    service, _ = flaky(10**6)
    rig = Waiting(service)
    rig.send(place("o1"))
    rig.send(PayOrder("o1", 5))
    rig.send(ShipOrder("o1"), id="ship")
    rig.step()
    for _ in range(200):
        rig.step(1_000)
    assert rig.outcomes("ship") == ["parked"] * (MAX_TRIES + 1)
    assert "given up after 9 tries" in rig.commits()[-1].reason
    rig.now.flush()
    assert rig.states()["o1"]["dead"]
    rig.send(ReleaseParked("o1"), id="again")
    rig.step()
    assert rig.step() == [("ship", "parked")]
    assert rig.commits()[-1].due > rig.calendar.at, "a release starts the tries anew"


# --- what a process sends


def test_a_late_command_of_a_process_is_done_at_once(rig: Waiting) -> None:
    """Everything may have been off for days; the goods must come back all the same."""
    rig.send(place("o1"))
    rig.later(-3 * DAY_MS, "client", orders.CancelOrder("o1"))
    rig.later(-3 * DAY_MS, "process", orders.CancelOrder("o1"), correlation="o1")
    assert rig.step()[1:] == [("client", "refused"), ("process", "accepted")]


def test_a_full_queue_still_takes_what_a_process_sends(
    rig: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process takes a refusal for the word of a rule, so it must be one."""
    monkeypatch.setattr(decisions, "MAX_WAITING", 1)
    rig.send(place("o1"))
    rig.put(b"o1", b"poison")
    rig.send(PayOrder("o1", 5), id="client")
    value = encode(Envelope("process", orders.CancelOrder("o1"), correlation="o1"))
    rig.put(b"o1", value)
    assert rig.step()[2:] == [("client", "refused"), ("process", "parked")]


# --- many at once


def test_what_is_due_in_many_streams_goes_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Waiting()
    for n in range(50):
        rig.later(1_000, f"c{n}", place(f"o{n}"))
    rig.step()
    rig.now.flush()
    rig.now.close()
    looked_up: list[int] = []
    load = rig.store.load

    def noted(collection: str, ids: Any) -> Any:
        looked_up.append(len(wanted := list(ids)))
        return load(collection, wanted)

    monkeypatch.setattr(rig.store, "load", noted)
    rig.now = rig.made(batch_size=20, max_streams=0)
    assert [len(rig.step(1_000)) for _ in range(4)] == [20, 20, 10, 0]
    assert looked_up == [20, 20, 10]


def test_what_lies_far_apart_goes_in_several_steps(
    rig: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "STRETCH", 2)
    monkeypatch.setattr(handler, "STRETCH", 2)
    monkeypatch.setattr(handler, "MAX_STRETCHES", 2)
    for n in range(40):
        rig.send(place("far"))
        rig.later(1_000 - n, f"c{n}", place("o1"))
    rig.step()
    # Backwards, since the last one has the first instant; two stretches a step.
    found = [[int(id[1:]) for id, _ in rig.step(1_000 if n == 0 else 0)] for n in range(30)]
    assert [n for step in found for n in step] == list(range(39, -1, -1))
    assert 1 < max(map(len, found)) <= 4


def test_a_fetch_reads_what_it_needs_and_says_what_is_gone(rig: Waiting) -> None:
    for n in range(100):
        rig.put(b"one key", b"%d" % n)
    source = rig.broker.source("commands")
    partition = source.partitions_for([b"one key"])[0]
    read: list[int] = []
    poll = source.poll

    def noted(limit: int, timeout: float) -> Any:
        batch = poll(limit, timeout)
        read.append(len(batch.records))
        return batch

    source.poll = noted  # type: ignore[method-assign]
    found = fetch_records(source, partition, [10, 12, 11, 500])
    assert {offset: record and record.value for offset, record in found.items()} == {
        10: b"10",
        11: b"11",
        12: b"12",
        500: None,
    }
    assert sum(read) <= 100
    read.clear()
    fetch_records(source, partition, [10, 12])
    assert read == [3]


# --- whatever the order, live and replayed bookkeeping are the same


COMMANDS = st.sampled_from(["place", "pay", "ship", "cancel", "later", "poison", "replay", "drop"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(COMMANDS, st.sampled_from(["o1", "o2"])), max_size=25), st.data())
def test_replay_equals_live(calls: list[tuple[str, str]], data: st.DataObject) -> None:
    rig = Waiting()
    for number, (what, stream) in enumerate(calls):
        match what:
            case "poison":
                rig.put(stream.encode(), b"poison")
            case "later":
                rig.later(data.draw(st.integers(0, 300)), f"c{number}", PayOrder(stream, 5))
            case _:
                command: Command = {
                    "place": place(stream),
                    "pay": PayOrder(stream, 5),
                    "ship": ShipOrder(stream),
                    "cancel": orders.CancelOrder(stream),
                    "replay": ReleaseParked(stream),
                    "drop": ReleaseParked(stream, drop=True),
                }[what]
                rig.send(command, id=data.draw(st.sampled_from([f"c{number}", f"c{number // 2}"])))
        if data.draw(st.booleans()):
            rig.step(data.draw(st.integers(0, 200)))
        rig.restart(data.draw(st.sampled_from(["live", "live", "replayed", "flushed"])))
    for _ in range(5):
        rig.step(100)
    live = dict(rig.now._states.streams)
    rig.now.close()
    rig.store.drop()
    again = rig.made()
    for key, stream in live.items():
        replayed = again._states.streams.get(key, StreamState(stream.partition))
        stream.stored = replayed.stored = False
        assert replayed == stream
    # Everything that was sent has its commit, and nothing waits that is due.
    places = {(c.partition, c.offset) for c in rig.commits()}
    assert len(places) == sum(rig.broker.source("commands").ends().values())
    assert not any(s.due(rig.calendar.at) for s in live.values())


def test_an_agenda_brings_each_stream_once() -> None:
    agenda = Timers()
    for at in (5, 3, 3, 9):
        agenda.note(at, 0, "a")
    agenda.note(None, 0, "never")
    agenda.note(4, 1, "b")
    assert agenda.wait(1, 10) == 0.002
    assert agenda.pop(5, 1) == {"a": 0}
    assert agenda.pop(5, 9) == {"a": 0, "b": 1}
    agenda.note(7, 1, "b")
    agenda.forget(frozenset({0}))
    assert agenda.pop(100, 9) == {"b": 1}
    assert agenda.wait(0, 0.5) == 0.5
