"""The findings of the notebooks on real servers, and planted bugs that turn them red.

A finding is a claim of a notebook, asserted on the values that its cells computed.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pymongo
import pytest

from labkit import stack
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.lab import Lab
from labkit.services.orders import PlaceOrder
from tests.notebooks.findings import (
    consistency_lag,
    reading_your_own_writes,
    simulate_and_shrink,
    streams,
    the_event_log,
    throughput,
)
from tests.notebooks.running import NAMES, START, STEPS, red, run

pytestmark = pytest.mark.servers

#: Long measurements, which others on the machine disturb: so many tries.
LONG = {consistency_lag.NAME: 3, throughput.NAME: 3}
#: Only its first section is about servers.
SLOW = LONG | {simulate_and_shrink.NAME: 1}
#: kafka-python sometimes rebalances a group by itself, in the middle of what a cell shows.
TRIES = LONG | {the_event_log.NAME: 3}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES]
)
def test_findings_on_real_servers(name: str, servers: stack.Servers) -> None:
    for _ in range(TRIES.get(name, 1)):
        with run(name, "kafka") as book:
            wrong = red(name, book)
            assert book.cell_output_text("check").startswith("Not yet. Hint: ")
            own = book.value("lab.topic_name('')")
            if name == START:  # two servers, two workers
                shown = book.cell_output_text("servers")
                assert servers.bootstrap in shown
                assert len(re.findall(r"process \d+", shown)) == 2
            if name == STEPS:
                shown = book.cell_output_text("crash-after")
                assert re.search(r"process \d+ died at handler\.committed by signal 9", shown)
        assert left_behind(servers, own) == []
        if not wrong:
            break
    assert wrong == set()


def left_behind(servers: stack.Servers, own: str, timeout: float = 20.0) -> list[str]:
    """Topics and databases that a dropped run left; Kafka deletes in the background."""
    broker = KafkaPythonBroker(servers.bootstrap)
    deadline = time.monotonic() + timeout
    try:
        while topics := [topic for topic in broker.topics() if topic.startswith(own)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    finally:
        broker.close()
    with pymongo.MongoClient[dict[str, Any]](servers.mongo_uri) as client:
        database = own.removesuffix(".").replace(".", "_")
        return topics + [found for found in client.list_database_names() if found == database]


def test_a_reader_may_pause_between_two_steps(
    servers: stack.Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that pauses for a minute loses its place in its group, and every step still works.

    The test does not wait: it treats every step as too late.
    """
    monkeypatch.setattr("labkit.run.by_hand.IDLE_SECONDS", -1.0)
    with Lab("lab", services=["orders"], partitions=1) as lab:
        for number in (1, 2):
            lab.bus.send(PlaceOrder(f"order-{number}", "ada", "1997-01-31", 1, 1599)).token()
            assert [commit.outcome for commit in lab.handler.step(10)] == ["accepted"]
            assert lab.projector.step(10) == 1
        assert set(lab.collection("orders.checkpoints")["epoch"]) == {2}
        lab.drop()


SERVER_TWINS = {
    bug: (one.NAME, *twin)
    for one in (the_event_log, reading_your_own_writes, streams, consistency_lag, throughput)
    for bug, twin in one.SERVER_TWINS.items()
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", SERVER_TWINS)
def test_a_planted_bug_on_real_servers(bug: str, servers: stack.Servers) -> None:
    """On a busy machine measured findings may be red, too."""
    name, after, code, expected = SERVER_TWINS[bug]
    with run(name, "kafka", code, after=after) as book:
        assert red(name, book) >= expected
