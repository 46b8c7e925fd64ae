"""The checkers with services of somebody's own, and no word about them in the checkers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from labkit.experiments import load, verify
from labkit.experiments.verify.checkers import check_all, check_run, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.mixture import Mixture
from labkit.experiments.verify.reference import views
from labkit.experiments.verify.verdict import Verdict
from labkit.lab import Lab
from labkit.messages import Answer, Command, Document, Event
from labkit.run.run import Role
from labkit.service import At, Case, Documents, KeyedView, Service
from labkit.services import bank, catalog, inventory, orders
from tests.desk import BLIND, DESK, PLAIN, SHOWN, WORKLOADS, Clerk, Note, Noted, OpenTicket, desk

ROLES: tuple[Role, ...] = ("handler", "projector")


def run(lab: Lab, commands: Sequence[Command]) -> History:
    """Send all, let the parts work, and hear the answers."""
    history = History(lab.bus)
    for start in range(0, len(commands), 50):
        for command in commands[start : start + 50]:
            history.send(command)
        work(lab)
        history.settle(0.01)
    return history


def work(lab: Lab) -> None:
    for _ in range(3):
        for role in ROLES:
            for name in lab.instances_of(role):
                lab.by_hand(role, name).step(0)
    for name in lab.services:
        lab.by_hand("handler", name).flush()


def judged(service: Service, count: int = 300) -> dict[str, Verdict]:
    with Lab(backend="memory", services=[service]) as lab:
        calls = Mixture([service], count)
        mixed = [c.command for c in calls if c.command is not None and not c.poison]
        return check_all(lab, run(lab, mixed))


def wrong(found: dict[str, Verdict]) -> dict[str, list[str]]:
    return {name: v.violations[:3] for name, v in found.items() if v.ok is False}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=[DESK]) as made:
        yield made


FEW: list[Command] = [OpenTicket("t1", "ann"), Note("t1", ["a", "b"]), Note("t1", ["c"])]


def test_a_service_of_ones_own_is_judged_by_all_checkers() -> None:
    """Some of its commands make three events, and some none."""
    found = judged(DESK)
    assert not wrong(found)
    assert all(v.ok and v.checked for v in found.values())
    assert set(found) == {"C1", "C2", "C3", "C6", "C9", "invariants"}


def test_without_a_model_the_views_are_not_judged() -> None:
    found = judged(PLAIN)
    assert not wrong(found)
    assert found["C9"].ok is None
    assert found["C9"].why == "service 'plain' has no reference model"
    assert "invariants" not in found, "it has none"


def test_without_views_the_log_alone_is_judged() -> None:
    found = judged(BLIND)
    assert not wrong(found)
    assert found["C9"].ok, "the model explains the replies"


class Notes(KeyedView):
    """How many notes each partition has: no document for each ticket."""

    def keys(self, event: Event, at: At) -> Iterator[str]:
        yield f"{at.partition}"

    def change(self, documents: Documents, event: Any, at: At) -> None:
        sums = documents.get(f"{at.partition}") or documents.add(
            {"_id": f"{at.partition}", "notes": 0}
        )
        sums["notes"] += isinstance(event, Noted)


class Counting(Clerk):
    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        told = sum(ticket["notes"] for ticket in streams.values())
        shown = sum(each["notes"] for each in views["desk.view.notes"])
        return [] if told == shown else [f"{told} notes, shown are {shown}"]


def test_a_model_that_fails_is_not_green() -> None:
    class Broken(Clerk):
        def shown(self, document: Document) -> Document:
            return {"moon": document["moon"]}

    found = judged(desk("desk", workload=WORKLOADS, model=Broken(), **SHOWN))
    assert wrong(found) == {"C9": ["the reference model failed: KeyError: 'moon'"]}


def test_a_view_that_keeps_no_document_for_each_stream_is_judged_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyed = desk("desk", workload=WORKLOADS, model=Counting(), views=[Notes()])
    assert not wrong(judged(keyed))
    change = Notes.change

    def twice(self: Notes, documents: Documents, event: Any, at: At) -> None:
        change(self, documents, event, at)
        change(self, documents, event, at)

    monkeypatch.setattr(Notes, "change", twice)
    assert set(wrong(judged(keyed))) == {"C9"}


def test_an_invariant_that_does_not_hold_is_found() -> None:
    few = {"at most two notes": lambda ticket: ticket.notes <= 2}
    found = judged(desk("desk", workload=WORKLOADS, model=Clerk(), invariants=few, **SHOWN))
    assert set(wrong(found)) == {"invariants"}
    assert "'at most two notes' does not hold of Ticket(" in found["invariants"].violations[0]
    broken = {"fine": lambda ticket: ticket.moon}
    found = judged(desk("desk", workload=WORKLOADS, model=Clerk(), invariants=broken, **SHOWN))
    assert "AttributeError" in found["invariants"].violations[0]


def test_audits_have_the_names_that_the_service_gives_them() -> None:
    def strict(case: Case) -> Iterator[str]:
        yield f"{len(case.views['desk.view.tickets']) > 0} tickets too many"

    def broken(case: Case) -> Iterator[str]:
        yield case.views["moon"][0]["_id"]

    audits = {"fair": lambda case: (), "strict": strict, "broken": broken, "C1": strict}
    found = judged(desk("desk", workload=WORKLOADS, model=Clerk(), audits=audits, **SHOWN))
    assert found["fair"].ok
    assert found["strict"].violations == ["True tickets too many"]
    assert found["broken"].violations == ["the audit failed: KeyError: 'moon'"]
    assert not found["C1"].ok, "an audit adds to a checker of the same name"


# --- what the model must explain


def test_an_unanswered_command_may_make_several_versions(lab: Lab) -> None:
    history = run(lab, FEW)
    noted = history.operations[1]
    assert noted.answer == Answer("accepted", 3)
    noted.answer = None
    noted.unknown("no answer")
    assert not wrong(check_all(lab, history)), "it must have been this one"
    history.operations.remove(noted)
    assert set(wrong(check_all(lab, history))) == {"C9"}


def test_a_command_that_changed_nothing_is_what_the_model_says(lab: Lab) -> None:
    history = run(lab, [*FEW, Note("t1", [])])
    assert not wrong(check_all(lab, history))
    history.operations[-1].command = Note("t1", ["d"])
    (line,) = wrong(check_all(lab, history))["C9"]
    assert "was accepted and changed nothing, which the model does not say" in line


class Counted(Clerk):
    """It counts what it is asked."""

    asked = 0

    def apply(self, state: Document | None, command: Command) -> Document | None:
        self.asked += 1
        return super().apply(state, command)


def test_after_an_outage_each_command_without_an_answer_is_looked_at_once() -> None:
    clerk = Counted()
    with Lab(backend="memory", services=[desk("desk", model=clerk, **SHOWN)]) as lab:
        history = run(lab, [OpenTicket("t1", "ann"), *(Note("t1", [f"{n}"]) for n in range(40))])
        notes = history.operations[1:]
        for operation in notes:
            operation.answer = None
            operation.unknown("no answer")
        lost = [history.invoke(Note("t1", [f"lost {n}"])) for n in range(40)]  # never arrived
        for operation in lost:
            operation.unknown("no answer")
        assert not wrong(check_all(lab, history))
        assert clerk.asked == 41, "a search among 80 commands asks for 2^40 ways and more"

        notes[7].id, id = "another", notes[7].id
        assert "nothing explains version 9" in wrong(check_all(lab, history))["C9"][0]
        notes[7].id = id
        evidence = gather(lab)
        evidence.chain[8] = structs.replace(evidence.chain[8], id=notes[6].id)
        assert "nothing explains version 9" in views(list(history), evidence).violations[0], "twice"
        notes[7].command = Note("t1", [])
        assert set(wrong(check_all(lab, history))) == {"C9"}, "it has another effect"


# --- several services, and what stands in the rooms


def test_one_service_without_a_model_leaves_the_whole_unknown() -> None:
    with Lab(backend="memory", services=["orders", PLAIN]) as lab:
        history = run(lab, FEW)
        found = check_run(lab, history, {name: gather(lab, name) for name in lab.services})
        assert not wrong(found)
        assert found["C9"].ok is None


@pytest.mark.parametrize("room", [load, verify])
def test_no_service_and_no_command_stands_in_these_rooms(room: Any) -> None:
    services = (orders.ORDERS, catalog.CATALOG, inventory.INVENTORY, bank.BANK)
    names = {s.name for s in services} | {"fulfilment", "transfer"}
    names |= {kind.__name__ for s in services for kind in (*s.commands, *s.events)}
    named = re.compile(rf"\b({'|'.join(sorted(names))})\b")
    for file in Path(room.__path__[0]).glob("*.py"):
        assert not named.findall(file.read_text()), file
