"""Jobs on a schedule: once at each instant, however many schedulers run and die."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from msgspec import structs
from pymongo.collection import Collection
from starlette.testclient import TestClient

from labkit import stack
from labkit.adapters.memory_store import MemoryStore
from labkit.api import create_app
from labkit.errors import TimedOut, UsageError
from labkit.lab import Lab
from labkit.messages import Document
from labkit.ports.clock import SYSTEM
from labkit.ports.failpoints import Crash
from labkit.ports.store import Store, Writes
from labkit.ports.world import World
from labkit.run import jobs
from labkit.run.cron import MINUTE_MS, Cron
from labkit.run.jobs import DAY_MS, KEEP_DAYS, KEYS
from labkit.run.scheduler import JOBS, REPORTS, Job, Scheduler
from labkit.services.orders import PayOrder, PlaceOrder
from tests.test_api import WAIT, new_order, problem
from tests.test_waiting import Calendar

#: A Friday noon. The nights after it are the 28th, 29th, ...
NOON = int(datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp() * 1_000)
DESK = "tests.desk:DESK"


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


# --- the calendar


@pytest.mark.parametrize(
    ("crontab", "first", "last"),
    [
        ("0 3 * * *", "2026-11-28T03:00", "2026-12-27T03:00"),
        ("*/7 * * * *", "2026-11-27T12:07", "2026-12-27T11:56"),
        ("* * 1 * *", "2026-12-01T00:00", "2026-12-01T23:59"),
        ("0 6 * * 0", "2026-11-29T06:00", "2026-12-27T06:00"),  # 0 and 7 are Sunday
        ("0 6 * * 7", "2026-11-29T06:00", "2026-12-27T06:00"),
        ("30 22 * * 1-5", "2026-11-27T22:30", "2026-12-25T22:30"),
        ("0 0 1 1 *", "2027-01-01T00:00", None),
    ],
)
def test_a_crontab_means_its_minutes(crontab: str, first: str, last: str | None) -> None:
    cron, until = Cron("report_at", crontab), NOON + 30 * DAY_MS - MINUTE_MS
    assert cron.next(NOON) == at(first)
    assert cron.latest(NOON, until) == (last and at(last))
    if last:
        assert cron.latest(NOON, at(last)) == at(last)
        assert cron.latest(at(last), at(last) + MINUTE_MS - 1) is None


@pytest.mark.parametrize(("crontab", "days"), [("5,17 1-4,9 * * *", 3), ("* * * * *", 0.03)])
def test_the_latest_instant_is_the_one_that_going_on_leads_to(crontab: str, days: float) -> None:
    cron, instants = Cron("report_at", crontab), [NOON]
    while instants[-1] < NOON + days * DAY_MS:
        instants.append(cron.next(instants[-1]))
    for one, after in pairwise(instants[1:]):
        assert cron.latest(NOON, one) == cron.latest(NOON, after - 1) == one


@pytest.mark.parametrize(
    "crontab",
    ["", "daily", "0 3 * *", "61 3 * * *", "0 3 30 2 *", "0 3 1 * 1", "0 3 * * 8", "*/0 * * * *"],
)
@pytest.mark.parametrize("setting", ["report_at", "clean_up_at"])
def test_what_is_no_crontab_is_refused(setting: str, crontab: str) -> None:
    expected = f"{setting} must be a crontab like .*, got {re.escape(repr(crontab))}"
    with pytest.raises(UsageError, match=expected):
        Lab(backend="memory", **{setting: crontab})


# --- once


@pytest.fixture(params=["memory", pytest.param("mongo", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    from labkit.adapters.mongo import MongoStore

    made = MongoStore(request.getfixturevalue("servers").mongo_uri, f"t_{uuid.uuid4().hex[:8]}")
    made.index("effects", [("_id", 1)])
    yield made
    made.drop()
    made.close()


class Night:
    """Schedulers with one job, each of whose runs leaves a document of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = Calendar()
        self.clock.at = NOON
        self.runs = 0
        self.first = self.scheduler()
        assert self.first.step(0) == 0

    def scheduler(self, meanwhile: Callable[[], object] = lambda: None) -> Scheduler:
        """``meanwhile`` happens while its job works."""

        def do(due: int) -> tuple[Document, Writes]:
            self.runs += 1
            effect = {"_id": f"run {self.runs}", "due": due}
            meanwhile()
            return {"run": self.runs}, Writes({"effects": [effect]}, deletes={"old": ["any"]})

        job = Job("nightly", Cron("report_at", "0 3 * * *"), do)
        return Scheduler([job], self.store, self.clock, lambda: None)

    def effects(self) -> list[int]:
        """The instants whose effects there are; each has its report."""
        effects = [document["due"] for document in self.store.find("effects", {}, [("due", 1)])]
        reports = self.store.find(REPORTS, {"job": "nightly"}, [("due", 1)])
        assert [at(report["due"].rstrip("Z")) for report in reports] == effects
        return effects


def test_of_two_schedulers_one_does_it(store: Store) -> None:
    night = Night(store)
    slow = night.scheduler(meanwhile=lambda: night.first.step(0))
    night.clock.at = at("2026-11-28T03:00")
    assert slow.step(0) == 0, "the other was faster"
    assert (night.runs, night.effects()) == (2, [at("2026-11-28T03:00")])
    assert slow.step(0) == night.first.step(0) == night.scheduler().step(0) == 0
    assert night.runs == 2


def test_who_slept_over_an_instant_does_not_do_it_later(store: Store) -> None:
    """It began with the first night, and wants to be done with it after the second."""

    def meanwhile() -> None:
        night.clock.at = at("2026-11-29T03:00")
        assert night.first.step(0) == 1

    night = Night(store)
    slow = night.scheduler(meanwhile)
    night.clock.at = at("2026-11-28T03:00")
    assert slow.step(0) == 0
    assert night.effects() == [at("2026-11-29T03:00")]


@pytest.mark.parametrize("dies", ["before", "half-way", "after"])
def test_who_dies_has_done_all_or_nothing(
    store: Store, dies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night(store)
    night.clock.at = at("2026-11-28T03:10")
    advance = store.advance

    def dying(*arguments: Any, **_: Any) -> None:
        if dies == "after":
            advance(*arguments)
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):  # noqa: PT012
        if dies == "half-way" and not isinstance(store, MemoryStore):
            # Checkpoint, report and effect are written; the transaction is open.
            patch.setattr(Collection, "delete_many", dying)
        else:
            patch.setattr(store, "advance", dying)
        night.scheduler().step(0)
    done = [at("2026-11-28T03:00")]
    assert night.effects() == (done if dies == "after" else [])
    assert night.first.step(0) == (dies != "after")
    assert night.effects() == done


def test_missed_instants_are_made_up_for_once_by_the_latest(store: Store) -> None:
    night = Night(store)
    night.clock.at = at("2026-12-01T12:00")
    late = night.scheduler()
    assert [late.step(0), late.step(0), night.first.step(0)] == [1, 0, 0]
    assert night.effects() == [at("2026-12-01T03:00")]
    night.clock.at = at("2026-12-02T02:59")
    assert late.step(0) == 0
    night.clock.at = at("2026-12-02T03:00")
    assert late.step(0) == 1


def test_a_job_that_fails_does_not_stop_the_others() -> None:
    def fails(due: int) -> tuple[Document, Writes]:
        raise TimedOut("its broker is gone")

    def works(due: int) -> tuple[Document, Writes]:
        return {}, Writes()

    store, clock, cron = MemoryStore(), Calendar(), Cron("report_at", "0 3 * * *")
    made = [Job("fails", cron, fails), Job("works", cron, works)]
    Scheduler(made, store, clock, lambda: None).step(0)
    clock.at += DAY_MS
    with pytest.raises(TimedOut, match="its broker is gone"):
        Scheduler(made, store, clock, lambda: None).step(0)
    assert [report["job"] for report in store.find(REPORTS, {})] == ["works"]


def test_what_was_due_before_the_first_scheduler_is_not_made_up_for(store: Store) -> None:
    assert Night(store).effects() == []


# --- the jobs of a run


@pytest.fixture
def clock() -> Calendar:
    """A clock whose instant is near to that of the system's: the API stamps keys by it."""
    made = Calendar()
    made.at = SYSTEM.wall()
    return made


def reports(lab: Lab, job: str) -> list[Document]:
    return lab.store.find(REPORTS, {"job": job}, [("due", 1)])


def scheduled(lab: Lab, clock: Calendar, days: float = 1) -> None:
    """So many days go by, and a scheduler looks."""
    clock.at += int(days * DAY_MS)
    lab.by_hand("scheduler", "jobs").step(0)


def test_a_report_counts_what_came_since_the_last_one(clock: Calendar) -> None:
    with Lab(backend="memory", services=["orders", DESK], world=World(clock=clock)) as lab:
        lab.start(schedulers=1)
        scheduled(lab, clock, 0)
        for number in (1, 2):
            place = PlaceOrder(f"o{number}", "ann", "1997-01-31", 1, 500)
            assert lab.bus.execute(place).accepted
            assert not lab.bus.execute(PayOrder(f"o{number}", number)).accepted
        lab.by_hand("handler", "orders").flush()
        lab.bus.send(PayOrder("o1", 500)).token()  # nobody handles it before the report
        scheduled(lab, clock)
        (one,) = reports(lab, "report.orders")
        assert one["streams"] == 2
        assert one["commands"] == {"accepted": 2, "refused": 2}
        assert one["refused"] == [{"reason": "order … costs … cents, got …", "commands": 2}]
        assert one["backlog"] == {"handler": 1, "projector": 0}
        assert one["_id"] == f"report.orders {one['due']}"
        (desk,) = reports(lab, "report.desk")
        assert (desk["streams"], desk["commands"]) == (0, {})
        assert lab.bus.execute(PayOrder("o2", 500)).accepted
        scheduled(lab, clock)
        _, two = reports(lab, "report.orders")
        assert two["commands"] == {"accepted": 2}
        assert two["backlog"]["handler"] == 0


def test_old_keys_are_forgotten_and_nothing_takes_effect_again(
    clock: Calendar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "BATCH", 2)
    with Lab(backend="memory", services=["orders"], world=World(clock=clock)) as lab:
        lab.start()
        scheduled(lab, clock, 0)
        with TestClient(create_app(lab)) as api:

            def place(key: str, **fields: Any) -> Any:
                headers = {"Idempotency-Key": key, **WAIT}
                return api.post("/orders", json=new_order(**fields), headers=headers)

            first = [place(f"k{number}") for number in range(5)]
            before = lab.log("orders").commits()
            accepted = [commit.id for commit in before if commit.outcome == "accepted"]
            assert len(accepted) == 5
            scheduled(lab, clock, KEEP_DAYS - 1)
            assert (lab.store.count(KEYS), reports(lab, "clean-up")[-1]["forgotten"]) == (5, 0)
            problem(place("k1", cents=7), 422, "key-reused")
            scheduled(lab, clock, 2)
            assert (lab.store.count(KEYS), reports(lab, "clean-up")[-1]["forgotten"]) == (0, 5)
            again = [place(f"k{number}") for number in range(5)]
            assert [(a.status_code, a.json()["id"]) for a in again] == [
                (201, answer.json()["id"]) for answer in first
            ]
            after = lab.log("orders").commits()
            assert [commit.id for commit in after if commit.outcome == "accepted"] == accepted


@pytest.mark.slow
@pytest.mark.servers
def test_two_scheduler_processes_make_up_for_a_night_once(servers: stack.Servers) -> None:
    with Lab("lab", services=["orders"], partitions=1) as lab:
        scheduler = lab.by_hand("scheduler", "jobs")
        scheduler.step(0)
        for begun in lab.store.checkpoints(JOBS):
            lab.store.advance(
                JOBS, [(begun, structs.replace(begun, position=begun.position - DAY_MS))], Writes()
            )
        lab.start(projectors=0, schedulers=2)
        names = [alive.role for alive in lab.workers()]
        assert names.count("scheduler") == 2
        until = SYSTEM.seconds() + 60
        while lab.store.count(REPORTS) < 2 and SYSTEM.seconds() < until:
            SYSTEM.sleep(0.1)
        found = sorted(document["job"] for document in lab.store.find(REPORTS, {}))
        assert found == ["clean-up", "report.orders"]
        assert lab.lag("scheduler", "jobs") == 0
        lab.drop()
