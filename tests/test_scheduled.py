"""Scheduled mode: batches on a timer, in order, in one thread."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from labkit import stack
from labkit.errors import Fenced, UsageError
from labkit.experiments.verify.checkers import History, check_all
from labkit.lab import Lab
from labkit.run.worker import on_a_timer
from labkit.services.orders import PayOrder, PlaceOrder, ShipOrder
from tests.test_checkers import assert_green, mixed, send
from tests.test_failpoints import wait_until_quiet


def test_steps_come_one_after_the_other_in_this_thread() -> None:
    stop = threading.Event()
    running, most, threads, starts = 0, 0, set(), []

    def step(timeout: float) -> None:
        nonlocal running, most
        assert timeout <= 0.1, "the timer waits, not the step"
        running += 1
        most = max(most, running)
        threads.add(threading.current_thread())
        starts.append(time.monotonic())
        time.sleep(0.05)  # longer than the timer
        running -= 1
        if len(starts) == 6:
            stop.set()

    on_a_timer(step, 0.01, stop)
    assert most == 1
    assert threads == {threading.current_thread()}
    assert len(starts) == 6


def test_between_two_batches_it_waits() -> None:
    stop = threading.Event()
    starts: list[float] = []

    def step(timeout: float) -> None:
        starts.append(time.monotonic())
        if len(starts) == 4:
            stop.set()

    on_a_timer(step, 0.2, stop)
    assert all(b - a > 0.1 for a, b in pairwise(starts))


def test_a_timer_on_which_a_worker_is_taken_for_dead_is_refused() -> None:
    with pytest.raises(UsageError, match=r"every must be at most 5 s, got 90\.0: a worker"):
        Lab(backend="memory", every=90.0)


def test_an_error_comes_through_and_ends_it() -> None:
    calls = []

    def step(timeout: float) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Fenced("somebody else")

    with pytest.raises(Fenced, match="somebody else"):
        on_a_timer(step, 0.01, threading.Event())
    assert len(calls) == 3


@pytest.mark.servers
def test_workers_on_a_timer_do_the_same(servers: stack.Servers) -> None:
    with Lab(services=("orders",), partitions=2, every=0.3) as lab:
        lab.start()
        history = History(lab.bus)
        send(history, mixed(3, 200))
        history.settle()
        wait_until_quiet(lab)
        verdicts = check_all(lab, history)
        # Many commands, few transactions: each batch waited for its turn.
        commits = list(lab.log().commits())
        batches = {commit.polled for commit in commits}
        lab.drop()
    assert_green(verdicts)
    assert len(batches) < len(commits) / 5


@pytest.mark.parametrize("linger", [0.0, 0.3])
@pytest.mark.servers
def test_linger_gathers_a_batch(servers: stack.Servers, linger: float) -> None:
    """Commands that come one by one: without linger each is a batch, with it they are few."""
    with Lab(services=("orders",), partitions=1, linger=linger) as lab:
        lab.start(projectors=0)
        lab.bus.listen("orders")
        last = None
        for n in range(20):
            command = PlaceOrder(f"o{n}", "ann", "1997-01-31", 1, 5)
            last = lab.bus.send(command).token()
            time.sleep(0.02)
        assert last is not None
        lab.bus.answer(last)
        batches = {commit.polled for commit in lab.log().commits()}
        lab.drop()
    if linger:
        assert len(batches) <= 4
    else:
        assert len(batches) >= 8


@pytest.mark.servers
def test_a_schedule_survives_workers_that_die(servers: stack.Servers) -> None:
    """``deliver_at`` on real servers, with all workers gone when its instant comes."""
    from datetime import UTC, datetime, timedelta

    with Lab(services=("orders",), partitions=2) as lab:
        lab.start()
        bus = lab.bus
        assert bus.execute(PlaceOrder("o1", "ann", "1997-01-31", 1, 5)).accepted
        at = datetime.now(UTC) + timedelta(seconds=3)
        sent = bus.send(PayOrder("o1", 5), deliver_at=at)
        bus.listen("orders")
        assert bus.answer(sent.token()).outcome == "scheduled"
        assert bus.execute(ShipOrder("o1")).outcome == "refused", "it is not paid yet"
        lab.stop()
        time.sleep(max(0.0, at.timestamp() - time.time()))
        lab.start()
        assert bus.answer(sent.token(), final=True).accepted
        paid = [c for c in lab.log().stream("o1") if c.offset == sent.token().offset][-1]
        lab.drop()
    assert paid.at >= at.timestamp() * 1000 - 1
