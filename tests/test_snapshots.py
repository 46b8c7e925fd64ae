"""Snapshots: a fold from any of them is the fold from the start, and none is lost or made twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from labkit import stack
from labkit.errors import Refused, UsageError
from labkit.lab import Lab
from labkit.log.event_log import EPOCH, EventLog
from labkit.messages import Command, Event
from labkit.ports.failpoints import Crash, Failpoint, armed
from labkit.service import Service
from labkit.services.catalog import ChangePrice, ListProduct
from labkit.write.handler import Handler
from tests.built_in import SERVICES
from tests.test_handlers import Rig
from tests.test_waiting import START, Calendar

# --- a service whose commands bring any number of events


class Add(Command, frozen=True):
    """Add the numbers, one event each; a negative one is refused."""

    key: str
    numbers: tuple[int, ...]

    @property
    def stream(self) -> str:
        return self.key


class Clear(Command, frozen=True):
    """Begin anew."""

    key: str

    @property
    def stream(self) -> str:
        return self.key


class Added(Event, frozen=True):
    number: int


class Cleared(Event, frozen=True):
    pass


class Sum(Struct, frozen=True):
    """Order matters, so a fold that left one out or took one twice would show."""

    count: int
    mix: int


def add(_: Sum | None, c: Add) -> tuple[Event, ...]:
    if any(n < 0 for n in c.numbers):
        raise Refused("negative")
    return tuple(Added(n) for n in c.numbers)


def clear(state: Sum | None, _: Clear) -> tuple[Event, ...]:
    return (Cleared(),)


def evolve(state: Sum | None, event: Event) -> Sum:
    state = state or Sum(0, 7)
    number = event.number if isinstance(event, Added) else -state.count
    return Sum(state.count + 1, (state.mix * 31 + number) % 1_000_003)


def sums(fold: int = 1, evolve: Callable[[Any, Event], Any] = evolve) -> Service:
    return Service(
        "sums",
        decide={Add: add, Clear: clear},
        events=[Added, Cleared],
        state=Sum,
        evolve=evolve,
        fold=fold,
    )


class Lives(Rig):
    """A rig whose handler may end in any way, and whose clock may go anywhere."""

    def __init__(self, every: int, service: Service | None = None) -> None:
        super().__init__(service or sums())
        self.every = every
        self.calendar = Calendar()
        self.now = self.made()

    def made(self) -> Handler:
        return self.handler(snapshot_every=self.every, clock=self.calendar)

    def add(self, stream: str, *numbers: int) -> None:
        self.send(Add(stream, numbers))

    def restart(self) -> None:
        self.now.close()
        self.now = self.made()

    def live(self, how: str) -> None:
        """One step, that ends as told."""
        match how:
            case "step":
                self.now.step(0)
            case "flush":
                self.now.step(0)
                self.now.flush()
            case "restart":
                self.now.step(0)
                self.restart()
            case _:
                with armed(Failpoint(how)):
                    try:
                        self.now.step(0)
                        self.now.flush()
                    except Crash:
                        pass
                self.restart()

    def log(self) -> EventLog:
        return EventLog(self.service, self.broker.source("events"), self.store)

    def snapshots(self) -> list[dict[str, Any]]:
        return self.store.find(self.service.snapshots, {}, [("stream", 1), ("version", 1)])

    def versions(self) -> list[tuple[str, int]]:
        return [(s["stream"], s["version"]) for s in self.snapshots()]


def folded(events: list[Event]) -> list[Sum | None]:
    """The state at every version, as the fold itself says."""
    found: list[Sum | None] = [None]
    for event in events:
        found.append(evolve(found[-1], event))
    return found


def states(numbers: Iterable[int]) -> list[Sum | None]:
    return folded([Added(number) for number in numbers])


# --- when they are taken


def test_one_each_so_many_versions_also_within_a_batch() -> None:
    rig = Lives(3)
    for n in range(10):
        rig.add("a", n)
    rig.add("b", 1, 2)
    rig.now.step(0)
    rig.now.flush()
    assert rig.versions() == [("a", 3), ("a", 6), ("a", 9)]
    rig.add("b", 3)
    rig.live("flush")
    assert rig.versions()[3:] == [("b", 3)]


def test_a_commit_that_jumps_over_multiples_leaves_one_snapshot_behind_it() -> None:
    rig = Lives(3)
    rig.add("a", 1, 2)
    rig.add("a", *range(8))
    rig.add("a")
    rig.add("a", -1)
    rig.add("a", 1)
    rig.add("a", 1)
    rig.live("flush")
    assert rig.versions() == [("a", 10), ("a", 12)]


def test_none_where_none_is_wanted() -> None:
    rig = Lives(0)
    rig.add("a", *range(50))
    rig.live("flush")
    assert rig.snapshots() == []
    with pytest.raises(UsageError, match=r"snapshot_every must be at least 0.*, got -1"):
        rig.handler(snapshot_every=-1)


def test_a_stream_below_the_limit_has_none_by_default() -> None:
    rig = Rig(sums())
    handler = rig.handler()
    rig.send(Add("a", tuple(range(999))))
    handler.step(0)
    handler.flush()
    assert rig.store.count("sums.snapshots") == 0
    rig.send(Add("a", (1,)))
    handler.step(0)
    handler.flush()
    assert rig.store.count("sums.snapshots") == 1


def test_what_a_snapshot_holds() -> None:
    rig = Lives(2)
    rig.add("a", 4)
    rig.add("a", 5)
    rig.live("flush")
    (found,) = rig.snapshots()
    (commit,) = [c for c in rig.commits() if c.last == 2]
    end = rig.broker.source("events").ends()[commit.partition]
    assert found.pop("position") <= end
    assert found == {
        "_id": "v1:2:a",
        "stream": "a",
        "version": 2,
        "partition": commit.partition,
        "at": START,
        "state": {"count": 2, "mix": states([4, 5])[2].mix},  # type: ignore[union-attr]
        "fold": 1,
    }


def test_ids_of_any_stream_and_version_differ() -> None:
    rig = Lives(1)
    for stream in ("a", "a:1", "1:a", "v1:1:a", ":", "a@1"):
        rig.add(stream, 1, 2)
        rig.add(stream, 3)
    rig.live("flush")
    assert len({s["_id"] for s in rig.snapshots()}) == 12


# --- with the checkpoint, or not at all

CRASHES = [p for p in Failpoint.__members__.values() if p.startswith("handler")]


@pytest.mark.parametrize("how", ["step", "flush", "restart", *CRASHES])
def test_none_is_lost_and_none_is_made_twice(how: str) -> None:
    rig = Lives(2)
    for n in range(7):
        rig.add("a", n)
        rig.add("b", n, n)
        rig.live(how)
    rig.live("flush")
    rig.restart()
    rig.live("flush")
    assert [v for s, v in rig.versions() if s == "a"] == [2, 4, 6]
    assert [v for s, v in rig.versions() if s == "b"] == [2, 4, 6, 8, 10, 12, 14]


def test_a_tail_that_is_replayed_again_and_again() -> None:
    rig = Lives(2)
    rig.add("a", 1)
    rig.add("a", 2)
    rig.now.step(0)
    for _ in range(3):
        rig.restart()
        assert rig.snapshots() == []
    rig.now.flush()
    rig.restart()
    rig.now.flush()
    assert rig.versions() == [("a", 2)]


def test_a_partition_given_up_takes_its_snapshots_along() -> None:
    """Its next owner replays and takes them; this one must not save them too."""
    rig = Lives(1)
    streams = [f"s{n}" for n in range(8)]
    for stream in streams:
        rig.add(stream, 1)
    rig.now.step(0)
    other = rig.handler(slot=1, snapshot_every=1)
    for _ in range(5):
        rig.now.step(0)
        other.step(0)
    for handler in (other, rig.now):
        handler.flush()
    assert rig.versions() == [(stream, 1) for stream in streams]


# --- reading


def test_reading_begins_at_the_newest_that_is_not_past_what_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Lives(10)
    for n in range(45):
        rig.add("a", n)
    rig.live("flush")
    folds = 0

    def counting(state: Sum | None, event: Event) -> Sum:
        nonlocal folds
        folds += 1
        return evolve(state, event)

    monkeypatch.setattr(rig.service, "evolve", counting)
    log, expected = rig.log(), states(range(45))
    for version, steps in ((45, 5), (40, 0), (39, 9), (10, 0), (9, 9), (0, 0)):
        folds = 0
        assert log.state("a", version) == expected[version]
        assert folds == steps
    folds = 0
    assert log.state("a", snapshots=False) == expected[45]
    assert folds == 45


def test_the_position_leaves_little_to_read_again() -> None:
    """One batch wrote them all; only what its own transaction cannot know may be read twice."""
    rig = Lives(10)
    for n in range(100):
        rig.add("a", n)
        rig.add("b", n)
    rig.live("flush")
    source = rig.broker.source("events")
    for s in rig.snapshots():
        commits = EventLog(rig.service, source).partition(s["partition"], s["position"])
        before = [c for c in commits if c.stream == s["stream"] and c.first <= s["version"]]
        assert len(before) <= 1


def test_a_snapshot_of_another_fold_is_never_used() -> None:
    """The new fold replays all, takes its own, and does not trip over those of the old one."""
    rig = Lives(2)
    for n in range(5):
        rig.add("a", n)
    rig.live("flush")

    def otherwise(state: Sum | None, event: Event) -> Sum:
        made = evolve(state, event)
        return Sum(made.count, made.mix + 1)

    old, rig.service = rig.log(), sums(2, otherwise)
    new = rig.log()
    assert new.state("a") == new.state("a", snapshots=False) != old.state("a")
    rig.restart()
    rig.now.flush()
    assert rig.versions() == [("a", 2), ("a", 2), ("a", 4), ("a", 4)]
    assert new.state("a") == new.state("a", snapshots=False)
    assert old.state("a") == old.state("a", snapshots=False)


@pytest.mark.parametrize("how", ["flush", "restart"])
def test_a_snapshot_is_not_used_for_an_instant_that_one_of_its_commits_is_later_than(
    how: str,
) -> None:
    rig = Lives(2)
    for n, at in enumerate((0, 9_000, 1_000, 2_000, 3_000)):
        rig.calendar.at = START + at
        rig.add("a", n)
        rig.live("flush" if n % 2 else how)
    rig.live("flush")
    assert [s["at"] for s in rig.snapshots()] == [START + 9_000] * 2
    log, at = rig.log(), EPOCH + timedelta(milliseconds=START + 5_000)
    assert log.state("a", at=at) == log.state("a", at=at, snapshots=False) == states([0])[1]
    assert log.state("a", at=datetime.max.replace(tzinfo=UTC)) == states(range(5))[5]


# --- whatever happens

ENDS = st.sampled_from(["step"] * 4 + ["flush", "restart", *CRASHES])
CALLS = st.tuples(
    st.sampled_from(["a", "b"]),
    st.lists(st.integers(-1, 20), max_size=6),
    st.integers(-2_000, 2_000),
    st.none() | ENDS,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(CALLS, max_size=30), st.integers(1, 7), st.data())
def test_a_fold_from_any_snapshot_is_the_fold_from_the_start(
    calls: list[tuple[str, list[int], int, str | None]], every: int, data: st.DataObject
) -> None:
    rig = Lives(every)
    for number, (stream, numbers, ms, end) in enumerate(calls):
        rig.calendar.at += ms
        id = data.draw(st.sampled_from([f"c{number}", f"c{number // 2}"]))  # some are repeats
        command = Clear(stream) if numbers == [0] else Add(stream, tuple(numbers))
        rig.send(command, id=id)
        if end is not None:
            rig.live(end)
    rig.live("flush")
    log = rig.log()
    for stream in ("a", "b"):
        commits = log.stream(stream)
        expected = folded([event for commit in commits for event in commit.events])
        newest = len(expected) - 1
        assert log.state(stream) == expected[-1]
        for version in range(newest + 1):
            assert log.state(stream, version) == expected[version]
        ends = [c.last for c in commits if c.last // every > (c.first - 1) // every]
        assert [v for s, v in rig.versions() if s == stream] == ends
        for commit in commits:
            at = EPOCH + timedelta(milliseconds=commit.at)
            assert log.state(stream, at=at) == log.state(stream, at=at, snapshots=False)
    for found in rig.snapshots():
        version = found["version"]
        rest = log._following(found["stream"], version, found["position"])
        assert [c.last for c in rest] == [
            c.last for c in log.stream(found["stream"]) if c.first > version
        ]


# --- on real servers


@pytest.mark.servers
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_snapshots_on_real_servers(servers: stack.Servers, client: str) -> None:
    service = SERVICES["catalog"]
    with Lab(services=["catalog"], client=client) as lab:
        commands, events = (lab.topic_name(f"catalog.{kind}") for kind in ("commands", "events"))
        group = lab.of.group("handler", "catalog")

        def made() -> Handler:
            written = lab.broker.log(commands, events, group, f"{group}-0")
            handler = Handler(
                service,
                written,
                lab.store,
                batch_size=30,
                flush_seconds=1e9,
                snapshot_every=10,
            )
            handler.join(lab.partitions)
            return handler

        def send(products: int, prices: range) -> None:
            for cents in prices:
                for product in range(products):
                    lab.bus.send(ChangePrice(f"p{product}", cents))
            lab.bus.flush(30)

        def handled(handler: Handler, count: int) -> None:
            while count:
                count -= len(handler.step(1))

        handler = made()
        for product in range(3):
            lab.bus.send(ListProduct(f"p{product}", "a pen", 0))
        send(3, range(1, 25))
        handled(handler, 75)
        handler.flush()
        send(3, range(25, 40))
        handled(handler, 45)
        assert lab.store.count(service.snapshots) == 6
        handler.close()

        handler = made()
        handler.flush()
        handler.close()
        assert lab.store.count(service.snapshots) == 12
        log = lab.log("catalog")
        for product in range(3):
            stream = f"product-p{product}"
            for version in (1, 9, 10, 11, 25, 39, 40):
                state = log.state(stream, version)
                assert state.cents == version - 1
                assert state == log.state(stream, version, snapshots=False)
            assert log.state(stream).cents == 39
            assert log.state(stream, at=datetime.now(UTC)).cents == 39
        lab.drop()
