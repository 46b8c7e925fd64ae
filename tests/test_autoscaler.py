"""How many workers a role should have: the decision, the time lag, the claim. All in memory."""

from __future__ import annotations

import copy
import os
import socket
import threading
import time
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from labkit import stack
from labkit.adapters.memory_store import MemoryStore
from labkit.cli.main import app
from labkit.errors import UsageError
from labkit.experiments.verify.checkers import History, check_all
from labkit.lab import Lab
from labkit.log.partition import join_group
from labkit.ports.clock import Clock
from labkit.ports.store import Writes
from labkit.run.autoscaler import MOST_REGRETS, Autoscaler, Bounds
from labkit.run.claim import DEAD_SECONDS, Claim
from labkit.run.positions import Place
from labkit.run.registry import live_runs
from labkit.run.time_lag import TimeLag
from tests.test_checkers import assert_green, mixed, send
from tests.test_failpoints import wait_until_quiet
from tests.test_runtime import command_lines, until

# --- the decision

PARTITIONS = 6
TICK = 0.5
bounds = st.builds(
    lambda least, more, down, wider, hold, cool: Bounds(
        least=least,
        most=least + more,
        down_below=down,
        up_above=down + wider,
        hold=hold,
        cool_down=cool,
    ),
    st.integers(1, 4),
    st.integers(0, 5),
    st.floats(0, 3),
    st.floats(0.1, 5),
    st.floats(0, 5),
    st.floats(0, 15),
)
lags = st.lists(st.one_of(st.floats(0, 10), st.just(0.0), st.just(60.0)), min_size=1, max_size=150)


def course(scaler: Autoscaler, lags: list[float], workers: int) -> list[int]:
    """The number of workers after each tick, where all that is wanted is done."""
    found = []
    for tick, lag in enumerate(lags):
        workers = scaler.wanted(tick * TICK, lag, workers)
        found.append(workers)
    return found


@given(bounds, lags, st.integers(0, 12))
def test_it_stays_within_bounds_and_partitions(bounds: Bounds, lags: list[float], had: int) -> None:
    scaler = Autoscaler(bounds, PARTITIONS)
    found = course(scaler, lags, had)
    assert min(found) >= min(bounds.least, PARTITIONS)
    assert max(found) <= min(bounds.most, PARTITIONS)


@given(bounds, lags)
def test_no_two_changes_come_within_the_cool_down(bounds: Bounds, lags: list[float]) -> None:
    found = course(Autoscaler(bounds, PARTITIONS), lags, min(bounds.least, PARTITIONS))
    changes = [n for n in range(1, len(found)) if found[n] != found[n - 1]]
    assert all((b - a) * TICK >= bounds.cool_down for a, b in pairwise(changes))
    assert all(abs(found[n] - found[n - 1]) == 1 for n in changes)


@given(bounds, lags, st.floats(0, 20), st.floats(0, 20))
def test_after_one_past_a_longer_lag_never_wants_fewer(
    bounds: Bounds, lags: list[float], one: float, other: float
) -> None:
    scaler = Autoscaler(bounds, PARTITIONS)
    workers = course(scaler, lags, bounds.least)[-1]
    short, long = sorted((one, other))
    now = len(lags) * TICK
    few, many = (copy.copy(scaler).wanted(now, lag, workers) for lag in (short, long))
    assert few <= many


@given(bounds)
def test_overload_leads_to_the_most_and_idleness_to_the_least(bounds: Bounds) -> None:
    scaler = Autoscaler(bounds, PARTITIONS)
    ticks = int(PARTITIONS * (max(bounds.hold, bounds.cool_down) + 2 * TICK) / TICK) + 2
    busy = course(scaler, [bounds.up_above + 1] * ticks, scaler.least)
    assert busy[-1] == scaler.most == min(bounds.most, PARTITIONS)
    if bounds.down_below == 0:
        return  # no lag is below it
    later = [scaler.wanted(1e6 + n * TICK, 0.0, busy[-1]) for n in range(1)][-1]
    for n in range(ticks):
        later = scaler.wanted(1e6 + n * TICK, 0.0, later)
    assert later == scaler.least


@given(bounds, lags)
def test_between_the_bounds_nothing_changes(bounds: Bounds, before: list[float]) -> None:
    scaler = Autoscaler(bounds, PARTITIONS)
    workers = course(scaler, before, bounds.least)[-1]
    middle = (bounds.up_above + bounds.down_below) / 2
    now = len(before) * TICK
    assert {scaler.wanted(now + n * TICK, middle, workers) for n in range(200)} == {workers}


def test_a_short_peak_adds_nobody() -> None:
    scaler = Autoscaler(Bounds(hold=2.0, cool_down=0.0), PARTITIONS)
    assert course(scaler, [9, 9, 9, 9, 0.1] * 20, 1) == [1] * 100
    assert course(scaler, [9] * 6, 1)[3:5] == [1, 2], "after 2 s"


def test_a_removal_that_was_too_early_makes_it_more_patient() -> None:
    """The load needs two workers: with one the lag grows, with two it is low."""
    scaler = Autoscaler(Bounds(hold=2.0, cool_down=4.0), PARTITIONS)
    workers, lag, removed = 2, 0.0, []
    for tick in range(2_000):
        now = tick * TICK
        lag = max(0.0, lag + (TICK / 2 if workers == 1 else -TICK))
        wanted = scaler.wanted(now, lag, workers)
        if wanted < workers:
            removed.append(now)
        workers = wanted
    pauses = [b - a for a, b in pairwise(removed)]
    assert pauses[-1] > 2 * pauses[0]
    assert scaler.patience == 2.0 * 2**MOST_REGRETS


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"least": 0}, "least must be a whole number of workers from 1, got 0"),
        ({"most": 2.5}, "most must be a whole number of workers from 1, got 2.5"),
        ({"least": 4, "most": 2}, "got least 4 and most 2: exchange them"),
        ({"up_above": 0.5, "down_below": 0.5}, "got up 0.5 s and down 0.5 s: up must be greater"),
        ({"up_above": 1.0, "down_below": 3.0}, "up must be greater"),
        ({"hold": -1.0}, "hold must be a number of seconds from 0, got -1.0"),
        ({"cool_down": float("nan")}, "cool_down must be a number of seconds from 0, got nan"),
    ],
)
def test_bounds_that_cannot_be_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Bounds(**given).check()
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--least", "0"], "--least must be a whole number from 1 to 64, got '0'"),
        (["--least", "5", "--most", "2"], "got least 5 and most 2: exchange them"),
        (["--up", "1", "--down", "1"], "got up 1 s and down 1 s: up must be greater"),
        (["--role", "relay"], "--role must be one of handler, projector, got 'relay'"),
        (["--seconds", "0"], "--seconds must be a number from 0.1 to 86400, got '0'"),
    ],
)
def test_the_command_names_bad_input(arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(app, ["autoscale", *arguments], catch_exceptions=False)
    assert says in str(caught.value)


def test_a_lab_in_memory_has_no_workers_to_scale() -> None:
    with Lab(backend="memory", services=["orders"]) as lab:
        with pytest.raises(UsageError, match="a run in memory has no worker processes"):
            lab.autoscale()
        with pytest.raises(UsageError, match="exchange them"):
            lab.autoscale(least=3, most=2)


# --- the time lag


def place(end: int, reached: int, partition: int = 0) -> Place:
    return Place("t", {partition: reached}, {partition: end})


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=60),
    st.integers(1, 20),
)
@settings(max_examples=60)
def test_the_lag_is_the_age_of_the_oldest_unread(written: list[int], behind: int) -> None:
    """A reader that is ``behind`` looks late: each look shows what was there that long ago."""
    lag, ends = TimeLag(), []
    for now, count in enumerate(written):
        ends.append((ends[-1] if ends else 0) + count)
        reached = ends[now - behind] if now >= behind else 0
        told = lag.look(float(now), [place(ends[-1], reached)])
        if ends[-1] <= reached:
            assert told == 0
            continue
        # The record at ``reached`` was written between two looks.
        first = next(n for n, end in enumerate(ends) if end > reached)
        assert now - first <= told <= now - max(0, first - 1)


def test_the_oldest_of_all_partitions_counts() -> None:
    lag = TimeLag()
    lag.look(0.0, [Place("t", {0: 5, 1: 5}, {0: 5, 1: 5})])
    lag.look(1.0, [Place("t", {0: 5, 1: 5}, {0: 5, 1: 6})])
    assert lag.look(9.0, [Place("t", {0: 9, 1: 5}, {0: 9, 1: 6})]) == 9.0
    assert lag.look(10.0, [Place("t", {0: 9, 1: 6}, {0: 9, 1: 6})]) == 0


def test_a_quiet_time_is_no_lag() -> None:
    lag = TimeLag()
    for now in range(100):
        lag.look(float(now), [place(7, 7)])
    assert lag.look(100.0, [place(8, 7)]) == 1.0, "it came after the last look, not at the first"


def test_what_was_there_before_is_as_old_as_the_first_look() -> None:
    lag = TimeLag()
    assert lag.look(5.0, [place(100, 10)]) == 0
    assert lag.look(8.0, [place(100, 60)]) == 3.0


# --- the claim


class Slept(Clock):
    def __init__(self, meanwhile: Any = lambda: None) -> None:
        self.at, self._meanwhile = 0.0, meanwhile

    def now(self) -> int:
        return int(self.at * 1e9)

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        self._meanwhile()


def claim(store: MemoryStore, clock: Clock | None = None, role: str = "handler") -> Claim:
    return Claim(store, "r1", role, "desk", clock or Slept())


def elsewhere(store: MemoryStore, rev: int, **owner: Any) -> None:
    """A claim of another host."""
    old = store.load("run", ["autoscaler:handler:desk"])
    document = {"_id": "autoscaler:handler:desk", "host": "far", "pid": 7, "born": 99.0, "rev": rev}
    writes = {"run": [document | owner]}
    store.advance("run.checkpoints", [], Writes(replaces=writes) if old else Writes(inserts=writes))


def test_a_second_autoscaler_is_refused_and_named_the_first() -> None:
    store = MemoryStore()
    first = claim(store)
    with pytest.raises(UsageError) as caught:
        claim(store)
    assert f"pid {os.getpid()} (this process) on host {socket.gethostname()!r}" in str(caught.value)
    assert "run 'r1' have an autoscaler already" in str(caught.value)
    claim(store, role="projector").release()
    assert first.beat()
    first.release()
    claim(store).release()


def test_the_claim_of_a_dead_process_is_taken_at_once() -> None:
    store, clock = MemoryStore(), Slept()
    elsewhere(store, 3, host=socket.gethostname(), pid=5_000_000)
    assert claim(store, clock).beat()
    assert clock.at == 0


def test_on_another_host_it_lives_as_long_as_it_moves() -> None:
    store = MemoryStore()
    elsewhere(store, 3)
    beats = iter(range(4, 1_000))
    with pytest.raises(UsageError, match="pid 7 on host 'far'; stop that one first"):
        claim(store, Slept(lambda: elsewhere(store, next(beats))))
    clock = Slept()
    assert claim(store, clock).beat()
    assert clock.at >= DEAD_SECONDS


def test_who_was_taken_for_dead_ends() -> None:
    store = MemoryStore()
    mine = claim(store)
    elsewhere(store, 1)
    with pytest.raises(UsageError, match="pid 7 on host 'far' scales the handlers of 'desk'"):
        mine.beat()
    mine.release()
    assert store.load("run", ["autoscaler:handler:desk"]), "it is not ours to end"


def test_a_run_that_was_dropped_is_no_error() -> None:
    store = MemoryStore()
    mine = claim(store)
    store.drop()
    assert not mine.beat()
    mine.release()


# --- on real servers


@pytest.mark.servers
@pytest.mark.slow
def test_a_burst_adds_a_worker_and_the_quiet_removes_it(servers: stack.Servers) -> None:
    """A handler takes 10 commands each 0.25 s, so that a few hundred are a burst."""
    with Lab(services=["orders"], partitions=2, batch_size=10, every=0.25) as lab:
        lab.start(handlers=0)
        scaling = lab.autoscale(up_above=1.5, down_below=1.0, most=3, hold=0.5, cool_down=2.0)
        with pytest.raises(UsageError, match="this process"):
            lab.autoscale()
        arguments = ["autoscale", "--run", lab.run]
        assert "stop that one first" in str(CliRunner().invoke(app, arguments).exception)
        until("the least", lambda: [look.wanted for look in scaling.looks][-1:] == [1])
        history = History(lab.bus)
        send(history, mixed(1, 400, streams=60))
        until("another worker", lambda: scaling.looks[-1].wanted == 2, 60)
        until("two of them", lambda: len(live_runs("lab")[lab.run]) == 3, 60)
        history.settle(120)
        until("one again", lambda: scaling.looks[-1].wanted == 1, 60)
        until("one of them", lambda: len(live_runs("lab")[lab.run]) == 2, 60)
        send(history, mixed(2, 40, prefix="later"))
        history.settle(60)
        wait_until_quiet(lab)
        assert_green(check_all(lab, history))
        assert lab.ignored_commits() == 0
        seen = scaling.history()
        assert seen["wanted"].max() == 2, "the partitions are the ceiling"
        assert seen["lag"].max() > 1.5
        lab.stop()
        assert command_lines(lab.run) == []
        assert lab.store.load("run", ["autoscaler:handler:orders"]) == {}
        lab.drop()


@pytest.mark.servers
def test_a_member_that_polls_now_and_then_sees_the_end_of_a_rebalance(
    servers: stack.Servers,
) -> None:
    """Its joins always end between two polls, as they may in scheduled mode."""
    with Lab(services=["orders"], partitions=2) as lab:
        topic = lab.topic_name("orders.commands")
        rare, busy = (lab.broker.source(topic, "seldom") for _ in range(2))
        with closing(rare), closing(busy):
            join_group(rare, 2)
            owned: set[int] = set()
            stop = threading.Event()

            def poll() -> None:
                while not stop.is_set():
                    batch = busy.poll(1, 0.1)
                    owned.difference_update(batch.revoked)
                    owned.update(batch.assigned)

            thread = threading.Thread(target=poll)
            thread.start()
            try:
                for _ in range(15):
                    rare.poll(1, 0.02)
                    if owned:
                        break
                    time.sleep(1.5)
                assert len(owned) == 1
            finally:
                stop.set()
                thread.join()
        lab.drop()
