"""``labkit bench cache``: what a query handler gains by holding answers, and how stale they are.

Two runs side by side on the same servers, alike but for the cache of their query handler; money
flows into the accounts of both all the while. They take turns, round by round. In each round a
requester first asks with many questions under way, which gives the answers a second; then one by
one, which gives the times, and there it looks into the view just before each question: an answer
that shows less than that is *stale*. Without a cache none is, since the handler reads after it was
asked; with one, an answer can be as old as what the change stream has not brought yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from hdrh.histogram import HdrHistogram
from msgspec import Struct

from labkit import stack
from labkit.errors import LabkitError, StackError
from labkit.experiments.bench.freshness import CONTEXT, LOAD_ACCOUNTS, RANGE, deposits, percentiles
from labkit.experiments.demo import Progress
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process, settings_of
from labkit.experiments.results import load_average, machine, versions
from labkit.lab import Lab
from labkit.messages import Result
from labkit.run.worker import calm_gc
from labkit.services.bank import AccountById

#: Answers that the handler holds at most: all that are asked for fit.
CACHE = 10_000
SIDES = {"off": 0, "on": CACHE}
ROUNDS = 5
#: On each side.
LOAD_PER_SECOND = 100.0
#: Questions under way at once, where the rate is measured.
WINDOW = 200


class Side(Struct):
    """What one run did; ``rates`` are answers a second, by round."""

    lab: Lab
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
) -> dict[str, Any]:
    """So many questions on each side, half of them one by one; the result is the JSON.

    Starts servers that are not up, and stops what it started. Raises ``StackError`` and
    ``TimedOut`` where they, or a process, fail.
    """
    calm_gc()
    rng = Random(seed)
    each = max(1, count // (2 * ROUNDS))
    with stack.borrowed(name, report) as servers, ExitStack() as opened:
        sides = {
            side: opened.enter_context(_side(name, client, size, seed))
            for side, size in SIDES.items()
        }
        report(f"{ROUNDS} rounds with {each:,} questions at once and {each:,} one by one, a side")
        for turn in range(ROUNDS):
            for number, side in enumerate(rng.sample(list(sides.values()), len(sides))):
                _many(side, each, rng)
                _one_by_one(side, each, rng)
                progress("rounds", 2 * turn + number + 1, 2 * ROUNDS)
        loads = {}
        for label, side in sides.items():
            with suppress(BrokenPipeError):  # it is dead, as the next line finds
                side.loading.send_bytes(b"stop")
            loads[label] = int(hear(side.lab, side.loading))
        found: dict[str, Any] = {
            "bench": "cache",
            "sides": {label: _found(side) for label, side in sides.items()},
            "client": client,
            "seed": seed,
            "settings": {
                "cache": CACHE,
                "accounts": LOAD_ACCOUNTS,
                "load_per_second": LOAD_PER_SECOND,
                "window": WINDOW,
                "rounds": ROUNDS,
                "partitions": 4,
            },
            "load": loads,
            "versions": versions(sides["on"].lab.server_versions(), client),
            "machine": machine(),
            "load_average_after": load_average(),
            "stack": servers.kind,
        }
    off, on = found["sides"]["off"], found["sides"]["on"]
    found["speedup"] = round(on["answers_per_second"] / off["answers_per_second"], 2)
    found["ok"] = (
        off["stale"] == off["cached"] == off["failed"] == on["failed"] == 0
        and on["cached"] > 0
        and all(loads.values())
    )
    return found


@contextmanager
def _side(name: str, client: str, size: int, seed: int) -> Iterator[Side]:
    settings: dict[str, Any] = {"name": name, "client": client, "services": [CONTEXT]}
    with Lab(**settings, partitions=4, cache=size) as lab:
        try:
            lab.start(queries=1)
            with process(deposits, settings_of(lab), seed, LOAD_PER_SECOND) as loading:
                hear(lab, loading)
                side = Side(lab, loading, HdrHistogram(*RANGE), [])
                lab.query_bus.ask(AccountById(account=_account(0)), timeout=PATIENCE_SECONDS)
                yield side
        finally:
            lab.drop()


def _account(number: int) -> str:
    return f"load-{number}"


def _many(side: Side, count: int, rng: Random) -> None:
    """With many under way."""
    bus = side.lab.query_bus
    sent, under_way = 0, set[str]()
    began = time.monotonic()
    while under_way or sent < count:
        while sent < count and len(under_way) < WINDOW:
            account = _account(rng.randrange(LOAD_ACCOUNTS))
            under_way.add(bus.send(AccountById(account=account), timeout=PATIENCE_SECONDS).id)
            sent += 1
        for result in bus.hear(0.05):
            bus.forget(result.id)
            under_way.discard(result.id)
            _count(side, result)
        side.lab.check()
        if time.monotonic() - began > count * PATIENCE_SECONDS:
            raise StackError(f"{len(under_way)} questions got no answer; see `labkit logs`")
    side.rates.append(count / (time.monotonic() - began))


def _one_by_one(side: Side, count: int, rng: Random) -> None:
    """Each after a look into the view."""
    lab = side.lab
    for _ in range(count):
        account = _account(rng.randrange(LOAD_ACCOUNTS))
        seen = lab.ask(AccountById(account)) or {"version": 0}
        began = time.monotonic()
        question = lab.query_bus.send(AccountById(account=account), timeout=PATIENCE_SECONDS)
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
        "stale_share": round(side.stale / max(1, side.looked), 5),
        **percentiles(side.times),
    }
