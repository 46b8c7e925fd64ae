"""With time and chance handed in, a run in memory is the same to the byte, whatever hashes are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import itertools, random, sys
import msgspec
from labkit.lab import Lab
from labkit.ports.clock import Clock
from labkit.ports.world import World
from labkit.run import references
from labkit.services.bank import Deposit, OpenAccount, SendMoney
from labkit.services.orders import OrderById, OrdersOf, PayOrder, PlaceOrder


class Steady(Clock):
    def __init__(self):
        self.at = 10**15

    def now(self):
        self.at += 1_000_000
        return self.at

    def wall(self):
        return self.now() // 1_000_000

    def sleep(self, seconds):
        self.at += int(seconds * 1e9)


numbers = itertools.count(1)
world = World(clock=Steady(), ids=lambda: f"{next(numbers):032x}", random=random.Random(1))
services, processes = ["orders", "catalog", "inventory", "bank"], ["fulfilment", "transfer"]
with Lab(backend="memory", services=services, processes=processes, world=world) as lab:
    lab.start(notifiers=1, queries=1)
    for service in lab.services.values():
        workload = next(iter(service.workloads.values()))
        commands = [*itertools.islice(workload.opening(random.Random(2)), 5)]
        commands += itertools.islice(workload.commands(random.Random(2)), 25)
        for command in commands:
            lab.bus.execute(command)
    lab.bus.execute(OpenAccount("a", "ann")), lab.bus.execute(OpenAccount("b", "bob"))
    lab.bus.execute(Deposit("a", 100)), lab.bus.execute(SendMoney("a", 30, "b", "t1"))
    lab.query_bus.ask(OrdersOf("ann"))
    for _ in range(20):
        lab.drive()
    topics = {}
    for topic in sorted(lab.broker.topics()):
        source = lab.broker.source(topic)
        for partition in source.ends():
            source.start(partition, 0)
        found = [
            (r.partition, r.offset, r.key.decode("latin-1"), r.value.decode("latin-1"))
            for r in source.poll(100_000, 0).records
        ]
        topics[topic] = sorted(found)
    collections = {
        name: lab.store.find(name, {}, [("_id", 1)])
        for name in sorted(lab.store.collections())
        if not name.endswith("checkpoints")
    }
    points = {
        name: sorted(msgspec.to_builtins(lab.store.checkpoints(name)), key=lambda c: c["id"])
        for name in sorted(lab.store.collections())
        if name.endswith("checkpoints")
    }
sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode([topics, collections, points])))
"""


def dumped(seed: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_a_run_in_memory_is_the_same_under_two_hash_seeds() -> None:
    first, second = dumped("1"), dumped("4242")
    assert len(first) > 50_000
    assert first == second


def test_chance_that_is_not_handed_in_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: ids come from elsewhere."""
    monkeypatch.setattr(
        sys.modules[__name__],
        "PROGRAM",
        PROGRAM.replace('ids=lambda: f"{next(numbers):032x}", ', ""),
    )
    assert dumped("1") != dumped("1")
