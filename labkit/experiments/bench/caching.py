"""``labkit bench cache``: the gain of a query handler's answer cache, and its stale answers.

Two runs on the same servers differ only in the cache of their query handler; commands go to the
streams of both throughout, and the queries ask for documents of these streams. The runs take turns,
round by round. In each round a requester first sends many queries at once, which gives the answers
per second, then one query at a time, which gives the latencies. Before each of the latter it reads
the view: an answer with a lower version is *stale*. Without a cache no answer is stale, since the
handler reads after it was asked; with a cache an answer lags as far as the change stream does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from hdrh.histogram import HdrHistogram
from msgspec import Struct

from labkit.errors import LabkitError, StackError
from labkit.experiments.bench.decided import DecidedStreams
from labkit.experiments.bench.freshness_client import load
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.subject import Subject, about, subject
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import quotient
from labkit.experiments.percentiles import RANGE, percentiles
from labkit.experiments.processes import PATIENCE_SECONDS, fast_client, harness_of, hear, process
from labkit.experiments.results import archive, versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.plots.rule_of_three import at_most
from labkit.query.wire import Result
from labkit.run.worker import calm_gc
from labkit.service import Service

#: The capacity of the cache: all answers fit.
CACHE = 10_000
SIDES = {"off": 0, "on": CACHE}
ROUNDS = 5
#: The queries ask for the first streams of the workload, at most this number of them, which are
#: sought among this number of commands.
STREAMS, SOUGHT = 200, 10_000
#: On each side.
LOAD_PER_SECOND = 100.0
#: Queries in flight while the rate is measured.
WINDOW = 200


class Side(Struct):
    """One run and its counts; ``rates`` are answers per second, by round."""

    lab: Lab
    measured: Subject
    streams: list[str]
    loading: Connection
    times: HdrHistogram
    rates: list[float]
    asked: int = 0
    looked: int = 0
    cached: int = 0
    stale: int = 0
    failed: int = 0


def cache(
    name: str,
    client: str,
    count: int,
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
    service: str | Service | None = None,
) -> dict[str, Any]:
    """Run the bench with ``count`` queries on each side, half of them one at a time.

    Raises ``UsageError`` for a service that cannot be measured.
    """
    measured = subject("cache", service)
    streams = first_streams(measured, seed)
    calm_gc()
    rng = Random(seed)
    each = max(1, count // (2 * ROUNDS))
    settings = {
        "cache": CACHE,
        "accounts": len(streams),
        "load_per_second": LOAD_PER_SECOND,
        "window": WINDOW,
        "rounds": ROUNDS,
        "partitions": 4,
        **about(measured),
    }
    with (
        measuring(name, report, "cache", client=client, seed=seed, settings=settings) as found,
        ExitStack() as opened,
    ):
        sides = {
            side: opened.enter_context(_side(name, client, size, seed, measured, streams))
            for side, size in SIDES.items()
        }
        report(f"{ROUNDS} rounds with {each:,} questions at once and {each:,} one by one, a side")
        for turn in range(ROUNDS):
            for number, side in enumerate(rng.sample(list(sides.values()), len(sides))):
                _many(side, each, rng)
                _one_by_one(side, each, rng)
                progress("rounds", 2 * turn + number + 1, 2 * ROUNDS)
        found["load"] = {}
        for label, side in sides.items():
            with suppress(BrokenPipeError):  # it died; the next line reports it
                side.loading.send_bytes(b"stop")
            found["load"][label] = int(hear(side.lab, side.loading))
        found["sides"] = {label: _found(side) for label, side in sides.items()}
        found["versions"] = versions(sides["on"].lab.server_versions(), client, fast_client())
    off, on = found["sides"]["off"], found["sides"]["on"]
    found["speedup"] = round(quotient(on["answers_per_second"], off["answers_per_second"]), 2)
    found["ok"] = (
        off["stale"] == off["cached"] == off["failed"] == on["failed"] == 0
        and on["cached"] > 0
        and all(found["load"].values())
    )
    found["folder"] = str(archive("bench-cache", found))
    return found


def first_streams(measured: Subject, seed: int) -> list[str]:
    """The streams that the queries ask for. Raises ``UsageError`` if there is none."""
    _ = measured.first_view
    taken = DecidedStreams(measured.service).taken(measured.all(seed))
    names = dict.fromkeys(each.stream for each in islice(taken, SOUGHT))
    return list(names)[:STREAMS]


@contextmanager
def _side(
    name: str, client: str, size: int, seed: int, measured: Subject, streams: list[str]
) -> Iterator[Side]:
    settings: dict[str, Any] = {"name": name, "client": client, "services": [measured.service]}
    with scratch_run(**settings, partitions=4, cache=size) as lab:
        lab.start(queries=1)
        slots = range(1), 1, LOAD_PER_SECOND
        with process(load, harness_of(lab), measured.chosen, seed, *slots) as loading:
            hear(lab, loading)
            side = Side(lab, measured, streams, loading, HdrHistogram(*RANGE), [])
            lab.query_bus.ask(measured.document(streams[0]), timeout=PATIENCE_SECONDS)
            yield side


def _many(side: Side, count: int, rng: Random) -> None:
    """Ask with up to ``WINDOW`` queries in flight."""
    bus = side.lab.query_bus
    sent, under_way = 0, set[str]()
    began = time.monotonic()
    while under_way or sent < count:
        while sent < count and len(under_way) < WINDOW:
            query = side.measured.document(rng.choice(side.streams))
            under_way.add(bus.send(query, timeout=PATIENCE_SECONDS).id)
            sent += 1
        for result in bus.hear(0.05):
            bus.forget(result.id)
            under_way.discard(result.id)
            _count(side, result)
        side.lab.check()
        if time.monotonic() - began > count * PATIENCE_SECONDS:
            raise StackError(f"{len(under_way)} questions got no answer; see `labkit logs`")
    side.rates.append(quotient(count, time.monotonic() - began))


def _one_by_one(side: Side, count: int, rng: Random) -> None:
    """Ask one query at a time, each after a read of the view."""
    lab = side.lab
    for _ in range(count):
        query = side.measured.document(rng.choice(side.streams))
        seen = lab.ask(query) or {"version": 0}
        began = time.monotonic()
        question = lab.query_bus.send(query, timeout=PATIENCE_SECONDS)
        try:
            shown = lab.query_bus.answer(question) or {"version": 0}
        except LabkitError:
            side.failed += 1
            continue
        side.times.record_value(max(1, int((time.monotonic() - began) * 1e6)))
        side.looked += 1
        side.stale += shown["version"] < seen["version"]


def _count(side: Side, result: Result) -> None:
    side.asked += 1
    side.cached += result.cached
    side.failed += not result.ok


def _found(side: Side) -> dict[str, Any]:
    rates = sorted(side.rates)
    return {
        "asked": side.asked,
        "cached": side.cached,
        "failed": side.failed,
        "answers_per_second": round(rates[len(rates) // 2], 1),
        "rates": [round(rate, 1) for rate in side.rates],
        "looked": side.looked,
        "stale": side.stale,
        "stale_at_most": at_most(side.stale, side.looked),
        "stale_share": round(side.stale / max(1, side.looked), 5),
        **percentiles(side.times),
    }
