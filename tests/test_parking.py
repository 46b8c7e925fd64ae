"""A reader that meets poison: its stream is parked, nobody else waits, and a replay goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from labkit import stack
from labkit.errors import Fenced, Parked, Refused, UsageError
from labkit.lab import Lab
from labkit.messages import Command, Event, State
from labkit.ports.store import Document
from labkit.read.freshness import LINEARIZABLE, Fresh, Version
from labkit.read.projection import ServiceProjection, parked_in
from labkit.read.queries import Queries
from labkit.read.standard import All
from labkit.service import At, Documents, KeyedView, Service, View, guard
from labkit.services.orders import OrderById, OrderPlaced, OrdersOf, PayOrder, PlaceOrder
from tests.built_in import ORDER_DOCUMENTS
from tests.test_cli import labkit, refused
from tests.test_projections import VIEW, Rig, paid, placed
from tests.test_service import project, work

LETTERS = parked_in(VIEW.name)
BAD = 13


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The projection cannot take an order of 13 cents; ``undo()`` mends it."""
    apply = ServiceProjection.apply

    def broken(self: ServiceProjection, commit: Any, docs: Any, fetched: int, now: int) -> None:
        apply(self, commit, docs, fetched, now)  # it has changed documents by then
        if any(isinstance(e, OrderPlaced) and e.cents == BAD for e in commit.events):
            raise ZeroDivisionError("13 is no number")

    with monkeypatch.context() as patch:
        patch.setattr(ServiceProjection, "apply", broken)
        yield patch


def letters(rig: Rig) -> dict[str, Document]:
    return {d["_id"]: d for d in rig.store.find(LETTERS, {})}


def orders(rig: Rig) -> dict[str, int]:
    return {d["_id"]: d["version"] for d in rig.view()[ORDER_DOCUMENTS]}


def test_what_is_no_commit_parks_its_key(rig: Rig) -> None:
    rig.put(b"o1", b"not a commit")
    rig.commit("o1", 1, placed("o1"))
    rig.put(b"o1", b'{"stream":"o1"}')
    rig.commit("o2", 1, placed("o2"))
    rig.put(b"\xff", b"nor has it a key")
    assert rig.projector().step(0) == 1
    assert orders(rig) == {"o2": 1}
    found = letters(rig)
    assert {stream: (d["offset"], d["waiting"]) for stream, d in found.items()} == {
        "o1": (0, 3),
        "\\xff": (4, 1),
    }
    assert "Expected" in found["o1"]["reason"] or "malformed" in found["o1"]["reason"]
    assert (rig.checkpoint().parked, rig.checkpoint().ignored) == (2, 0)
    assert rig.checkpoint().position == 5


def test_a_gap_parks_the_stream_and_what_follows_waits_in_order(rig: Rig) -> None:
    projector = rig.projector()
    rig.commit("o1", 1, placed("o1"))
    rig.commit("o1", 3, paid("o1"))
    projector.step(0)
    last = rig.commit("o1", 4, paid("o1"))
    rig.commit("o2", 1, placed("o2"))
    assert projector.step(0) == 1
    assert orders(rig) == {"o1": 1, "o2": 1}
    (letter,) = letters(rig).values()
    assert (letter["offset"], letter["waiting"]) == (1, 2)
    assert letter["reason"] == "version 3 cannot follow on 1: a commit is missing"
    at = rig.checkpoint()
    assert (at.parked, at.ignored, at.command) == (1, 0, last.offset + 1), "others need not wait"


@pytest.mark.parametrize("size", [4_000, 3, 1])
@pytest.mark.usefixtures("bug")
def test_a_bug_in_the_projection_parks_its_streams_only(rig: Rig, size: int) -> None:
    """Whatever it shares a batch with: all else is as if the poison had never been."""
    plain = Rig()
    for n in range(40):
        bad = n in (0, 17, 18, 39)
        rig.commit(f"o{n}", 1, placed(f"o{n}", cents=BAD if bad else 100 + n), partition=n % 2)
        rig.commit(f"o{n}", 2, paid(f"o{n}"), partition=n % 2)
        if not bad:
            plain.commit(f"o{n}", 1, placed(f"o{n}", cents=100 + n), partition=n % 2)
            plain.commit(f"o{n}", 2, paid(f"o{n}"), partition=n % 2)
    projector, other = rig.projector(batch_size=size), plain.projector()
    for _ in range(160 // size + 1):
        projector.step(0)
    other.step(0)
    assert rig.view() == plain.view()
    found = letters(rig)
    assert set(found) == {"o0", "o17", "o18", "o39"}
    assert {d["waiting"] for d in found.values()} == {2}
    assert {d["reason"] for d in found.values()} == {"ZeroDivisionError: 13 is no number"}
    assert [rig.checkpoint(p).parked for p in (0, 1)] == [2, 2]
    assert [rig.checkpoint(p).position for p in (0, 1)] == [40, 40]


def test_poison_costs_few_transactions(
    rig: Rig, bug: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is before it, the poison alone, and the two halves of what comes after it."""
    for n in range(256):
        rig.commit(f"o{n}", 1, placed(f"o{n}", cents=BAD if n == 100 else 5))
    calls = []
    advance = rig.store.advance
    monkeypatch.setattr(rig.store, "advance", lambda *a: (calls.append(1), advance(*a)))
    assert rig.projector().step(0) == 255
    assert len(calls) == 4


@pytest.mark.parametrize("rule", ["raise", "loop", "spoil", "keys"])
def test_a_view_that_misbehaves_parks_its_stream_and_no_other(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event is whole again for the view that comes after it."""
    monkeypatch.setattr(guard, "LOOKS", 1)

    class Opened(Event, frozen=True):
        case: str
        tags: list[str]

    class Open(Command, frozen=True):
        case: str
        tags: list[str]

    class Kept(State, frozen=True):
        case: str

    class Cases(View):
        def apply(self, document: Any, event: Opened) -> Document:
            if "bad" in event.tags:
                match rule:
                    case "raise":
                        raise Refused("a view has nothing to refuse")
                    case "loop":
                        while True:
                            pass
                    case "spoil":
                        event.tags.append("spoilt")
            return {"tags": event.tags}

    class Tags(KeyedView):
        def keys(self, event: Opened, at: At) -> Iterator[str]:
            while True:
                yield from event.tags
                if rule != "keys" or "bad" not in event.tags:
                    return

        def change(self, documents: Documents, event: Opened, at: At) -> None:
            for tag in event.tags:
                kept = documents.get(tag) or documents.add({"_id": tag, "rev": 0, "cases": 0})
                kept["cases"] += 1

    service = Service(
        "cases",
        decide={Open: lambda state, c: Opened(c.case, c.tags)},
        events=[Opened],
        evolve=lambda state, event: Kept(event.case),
        state=Kept,
        views=[Cases, Tags],
    )
    with Lab(backend="memory", services=[service], partitions=1) as lab:
        for n in range(12):
            lab.bus.send(Open(f"c{n}", ["bad" if n == 7 else "good"]))
        work(lab, wait=0)
        project(lab, wait=0)
        (parked,) = lab.parked()
        assert parked.stream == "c7"
        assert parked.reason.startswith("Refused: " if rule == "raise" else "Misbehaved: ")
        assert {d["_id"] for d in lab.ask(All("cases.cases")).rows} == {
            f"c{n}" for n in range(12) if n != 7
        }


def test_a_replay_applies_what_waits_once_the_bug_is_mended(
    rig: Rig, bug: pytest.MonkeyPatch
) -> None:
    owner = rig.projector()
    rig.commit("o1", 1, placed("o1", cents=BAD))
    rig.commit("o2", 1, placed("o2"))
    owner.step(0)
    rig.commit("o1", 2, paid("o1"))
    owner.step(0)
    other = rig.projector(join=False)
    other._source.close()
    other._source = rig.broker.source("events")
    with pytest.raises(Parked, match=r"'o1' stays parked in 'orders.view', at offset 0 of partiti"):
        other.replay(0, "o1")
    assert letters(rig)["o1"]["waiting"] == 2
    bug.undo()
    again = rig.projector(join=False)
    again._source.close()
    again._source = rig.broker.source("events")
    assert again.replay(0, "o1") == 2
    assert orders(rig) == {"o1": 2, "o2": 1}
    assert letters(rig) == {}
    assert rig.checkpoint().parked == 0
    with pytest.raises(UsageError, match=r"'o1' is not parked in 'orders.view'"):
        again.replay(0, "o1")
    rig.commit("o1", 3, paid("o1"))
    with pytest.raises(Fenced):
        owner.step(0)
    owner.close()
    assert rig.projector().step(0) == 1
    assert orders(rig) == {"o1": 3, "o2": 1}
    whole = Rig()
    whole.commit("o1", 1, placed("o1", cents=BAD))
    whole.commit("o2", 1, placed("o2"))
    whole.commit("o1", 2, paid("o1"))
    whole.commit("o1", 3, paid("o1"))
    whole.projector().step(0)
    assert rig.view() == whole.view()


def test_a_new_owner_knows_what_is_parked(rig: Rig, bug: pytest.MonkeyPatch) -> None:
    rig.commit("o1", 1, placed("o1", cents=BAD))
    first = rig.projector()
    first.step(0)
    first.close()
    bug.undo()
    rig.commit("o1", 2, paid("o1"))
    second = rig.projector()
    second.step(0)
    assert letters(rig)["o1"]["waiting"] == 2
    assert orders(rig) == {}


def test_a_query_for_a_parked_stream_says_so_and_does_not_wait() -> None:
    """A token would be answered with the order as it was: fresh by the checkpoint, and stale."""
    with Lab(backend="memory") as lab:
        first = lab.bus.send(PlaceOrder("o1", "ann", "1997-01-31", 1, 100)).token()
        lab.handler.step(0)
        lab.projector.step(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ServiceProjection, "apply", lambda *_: 1 / 0)
            token = lab.bus.send(PayOrder("o1", 100)).token()
            lab.handler.step(0)
            lab.projector.step(0)
        old = lab.ask(OrderById("o1"))
        assert old is not None
        assert old["payment"] == "unpaid"
        asked = [
            Fresh("token", (token,)),
            Fresh("token", (first,)),
            Fresh("version", (Version("orders", "o1", 2),)),
            LINEARIZABLE,
        ]
        for fresh in asked:
            with pytest.raises(Parked, match=r"'o1' is parked in 'orders.view' since offset 2 of"):
                lab.ask(OrderById("o1"), fresh=fresh)
        assert lab.ask(OrderById("o2"), fresh=LINEARIZABLE) is None, "others are as ever"
        assert isinstance(lab.queries, Queries)


# --- on real servers, by the command line


@pytest.mark.servers
def test_status_shows_what_is_parked_and_a_replay_mends_it(
    servers: stack.Servers, tmp_path: Path
) -> None:
    """Foreign bytes among the events: first unreadable for everybody, then skipped by nobody."""
    file = tmp_path / "letters.json"
    with Lab(services=["orders"], start=False) as lab:
        lab.start()
        run = ("--run", lab.run)
        assert lab.bus.execute(PlaceOrder("o1", "ann", "1997-01-31", 1, 100)).accepted
        partition = lab.broker.source(lab.topic_name("orders.events")).partitions_for([b"o1"])[0]
        with closing(lab.broker.sender()) as sender:
            sender.send(lab.topic_name("orders.events"), b"o1", b"junk", partition).result(30)
        token = lab.bus.send(PlaceOrder("o2", "ann", "1997-01-31", 1, 100)).token()
        assert lab.ask(OrderById("o2"), fresh=Fresh("token", (token,), 30)) is not None
        lab.ask(OrdersOf("ann"), fresh=Fresh("linearizable", timeout=30))
        status = labkit("status", "--json")
        workers = json.loads(status.stdout)["workers"]
        assert {w["role"]: w["parked"] for w in workers} == {"handler": 0, "projector": 1}
        assert "parked" in labkit("status").stdout
        assert labkit("dead-letters", "list", *run, "--json", str(file)).returncode == 0
        (letter,) = json.loads(file.read_bytes())
        assert (letter["stream"], letter["by"], letter["waiting"]) == ("o1", "orders.view", 1)
        stuck = labkit("dead-letters", "replay", "o1", "--by", "orders.view", *run)
        assert stuck.returncode == 1
        assert "'o1' stays parked in 'orders.view'" in stuck.stderr
        for by, name, says in (
            ("orders.view", "o7", "holds back no stream 'o7'"),
            ("owl", "o1", "owl holds back no stream"),
        ):
            refused(labkit("dead-letters", "replay", name, "--by", by, *run), says)
        none = labkit("dead-letters", "replay", "--all", "--by", "catalog.view", *run)
        assert (none.returncode, none.stdout) == (0, "catalog.view holds back no stream\n")
        # The workers, whose checkpoint was claimed by the replay, have rejoined.
        token = lab.bus.send(PlaceOrder("o3", "ann", "1997-01-31", 1, 100)).token()
        assert lab.ask(OrderById("o3"), fresh=Fresh("token", (token,), 30)) is not None
        lab.stop()
        lab.drop()
