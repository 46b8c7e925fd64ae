"""The log on MongoDB with its relay in the seeded world."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import msgspec
import pytest
from msgspec import structs

from labkit.adapters import memory_mongo_log
from labkit.adapters.mongo_records import unique
from labkit.experiments.verify.planting import planted_here, replace
from labkit.log.relay import Relay
from labkit.ports.broker import Record
from labkit.simulation import delays
from labkit.simulation.exhaustive import search, small
from labkit.simulation.explore import Explored, explore
from labkit.simulation.scenario import SCENARIOS
from labkit.simulation.tape import Tape
from labkit.simulation.trial import Trial
from tests.test_cli import labkit_here, refused

ONE = structs.replace(SCENARIOS["one"], log="mongodb")
THREE = structs.replace(SCENARIOS["three"], log="mongodb")


def tried(seeds: range) -> Explored:
    return explore(ONE, seeds, processes=1, tell=False)


def test_relays_are_killed_and_paused_and_nothing_is_lost() -> None:
    found = tried(range(200))
    assert found.red == {}
    assert min(found.struck[kind]["relay.sent"] for kind in ("kill", "pause")) > 0


def test_three_services_with_processes_between_them() -> None:
    assert explore(THREE, range(20), processes=1, tell=False).red == {}


def test_the_story_says_what_a_relay_publishes() -> None:
    trace = Trial(ONE, Tape(1), recording=True).run().trace
    made = next(e for e in trace if e.text.startswith("decides:"))
    published = next(e for e in trace if e.text.startswith("publishes"))
    assert published.life == "relay-orders-0"
    assert made.step < published.step


def test_a_relay_that_does_not_ask_kafka_how_far_it_has_come_is_found() -> None:
    def again(self: Relay, timeout: float = 0.5, step: Any = Relay.step) -> int:
        polled = self._changes.poll

        def poll(limit: int, timeout: float) -> list[Record]:
            found = polled(limit, timeout)
            for record in reversed(found):
                self._ends[record.partition] = record.offset
            return found

        self._changes.poll = poll  # type: ignore[method-assign]
        try:
            return int(step(self, timeout))
        finally:
            self._changes.poll = polled  # type: ignore[method-assign]

    with planted_here(partial(replace, Relay, "step", again)):
        assert set(chain(*tried(range(40)).red.values())) == {"liveness"}


def test_an_index_that_answers_each_delivery_once_is_found() -> None:
    """It stopped a partition for ever where somebody had set the offsets back."""

    def strict(value: bytes, *, once: bool) -> dict[str, Any]:
        fact = msgspec.json.decode(value)
        if fact["outcome"] in ("scheduled", "parked"):
            return {}
        return unique(value, once=once) | {"command": f"{fact['partition']}:{fact['offset']}"}

    with planted_here(partial(replace, memory_mongo_log, "unique", strict)):
        assert set(chain(*tried(range(28, 33)).red.values())) == {"liveness"}


def test_a_small_case_is_searched_to_its_end() -> None:
    tiny = small(ONE, commands=1, handlers=1)
    proof = search(tiny, kills=0)
    assert proof.complete, "a relay that reads while it is made goes on"
    assert proof.good
    bad = search(tiny, kills=0, plant="no-dedupe")
    assert bad.story is not None
    assert "--exhaustive --commands 1 --handlers 1 --kills 0 --log mongodb" in bad.story.replay
    assert any(event.text.startswith("publishes") for event in bad.story.events)


def test_runs_with_few_delays_are_tried() -> None:
    tiny = small(ONE, commands=1, handlers=1)
    found = delays.search(tiny, delays=0, processes=1)
    assert (found.complete, found.story) == (True, None)
    bad = delays.search(tiny, delays=0, plant="no-dedupe", processes=1)
    assert bad.story is not None
    assert bad.story.replay.endswith("--log mongodb --replay tape.json --plant no-dedupe")


@pytest.mark.slow
def test_a_small_case_with_a_death_is_searched_to_its_end() -> None:
    proof = search(small(ONE, commands=1, handlers=1), kills=1)
    assert proof.complete, proof.text
    assert proof.good


def test_what_cannot_be_simulated_so_is_one_line() -> None:
    refused(labkit_here("simulate", "one", "--log", "mongo"), "kafka", "mongodb")
