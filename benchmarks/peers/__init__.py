"""The same job by labkit, by frameworks and by bare clients, side by side: what does it cost?

Order commands lie in a topic. Each contestant reads them, makes events of them on another topic,
reads those, and writes one document an order into MongoDB: in two processes, a command side and a
view side, like labkit's handler and projector. Servers, partitions, batch size and write concern
are the same for all (``job.py`` says what the job is, ``contestants.py`` who takes part). The
decision is the domain's own, made by all; labkit validates the command besides, as it always does.

A round runs every contestant once, in an order that is drawn anew each time. The contestants of a
round share the commands, which are sent just before it; each has consumer groups, an events topic
and a database of its own, which are dropped afterwards. The view side owns its partitions before
the command side starts. The clock starts with the first documents and ends with the last one:
starting, joining and the first batch do not count. (It does not start later, since a fast command
side would be done by then, and its work would not count; how far ahead it is when the clock starts
is noted. The fewer commands, the more this tells: rates of small sizes flatter.) Then the documents
are counted and their cents added up: a wrong result is no result.

Rates are medians over the rounds, and ratios are medians of the ratios inside each round. The fast
contestants get more commands than the slow ones, so that a round of either takes some seconds.

What labkit's own view keeps besides (sums of customers and months, indexes, a trace) is no part of
the job; the rates with it are reported apart, as ``rates_full_view``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import util
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from labkit import stack
from labkit.errors import UsageError
from labkit.experiments.demo import Progress
from labkit.experiments.results import archive, load_average, machine, versions
from labkit.run.settings import DEFAULTS

if TYPE_CHECKING:
    from benchmarks.peers.contestants import Contestant
    from benchmarks.peers.running import Ran

LIBRARIES = ("confluent_kafka", "faststream", "quixstreams")
#: A round that is shorter says little.
LEAST_SECONDS = 5.0
#: What labkit is held to: (contestant, beside which, at least so many times as fast).
TARGETS = (
    ("labkit-kafka-python", "bare-kafka-python", 0.9),
    ("labkit-confluent", "bare-confluent-upsert", 1.2),
    ("labkit-confluent", "bare-confluent-insert", 0.5),
    ("labkit-confluent", "quix", 2.5),
    ("labkit-confluent", "faststream-batch", 2.5),
    ("labkit-confluent", "faststream-message", 15.0),
)


class Sizes(Struct, frozen=True):
    """Commands a round for a slow and for a fast contestant, and the rounds."""

    commands: int = 50_000
    fast_commands: int = 300_000
    rounds: int = 5


def peers(
    name: str,
    sizes: Sizes,
    only: Sequence[str],
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """On real servers; the result is the JSON. ``only``: these contestants; none named: all.

    Starts servers that are not up, and stops what it started. Raises ``UsageError`` for an unknown
    contestant or where the extra is missing, ``StackError`` and ``TimedOut`` where servers fail.
    """
    chosen = choose(only)
    import pandas as pd

    from benchmarks.peers.running import passing, preload, run

    arms = [(one, full) for one in chosen for full in one.arms]
    ran: list[Ran] = []
    dice = Random(seed)
    with stack.borrowed(name, report) as servers:
        found: dict[str, Any] = {
            "bench": "peers",
            "seed": seed,
            "settings": structs.asdict(sizes)
            | {
                "contestants": [one.name for one in chosen],
                "partitions": DEFAULTS.partitions,
                "batch_size": DEFAULTS.batch_size,
                "write_concern": "majority",
            },
            "machine": machine(),
            "load_average_before": load_average(),
            "stack": servers.kind,
            "method": " ".join((__doc__ or "").split()),
        }
        for number in range(sizes.rounds):
            dice.shuffle(arms)
            with ExitStack() as preloaded:
                load = {}
                for fast in {one.fast for one in chosen}:
                    lab = preloaded.enter_context(passing(name))
                    load[fast] = preload(lab, sizes.fast_commands if fast else sizes.commands)
                    found["versions"] = versions(
                        lab.server_versions(), "kafka-python", "confluent", *LIBRARIES[1:]
                    )
                for one, full in arms:
                    ran.append(run(name, one, full, load[one.fast], number))
                    report(f"round {number + 1}, {_line(ran[-1])}")
                    progress("peers", len(ran), sizes.rounds * len(arms))
        found["load_average_after"] = load_average()
    found |= summary(chosen, ran)
    archive("bench-peers", found, {"rounds": pd.json_normalize(found["rounds"])})
    return found


def choose(only: Sequence[str]) -> list[Contestant]:
    """Those that are named, or all. Raises ``UsageError``."""
    if missing := [library for library in LIBRARIES if util.find_spec(library) is None]:
        raise UsageError(
            f"not all peers are installed ({', '.join(missing)} is missing); "
            "run: pip install 'cqrs-labkit[peers]'"
        )
    from benchmarks.peers.contestants import CONTESTANTS

    if unknown := [name for name in only if name not in CONTESTANTS]:
        raise UsageError(f"--only must be of {', '.join(CONTESTANTS)}, got {unknown[0]!r}")
    return [one for one in CONTESTANTS.values() if not only or one.name in only]


def _line(ran: Ran) -> str:
    name = f"{ran.name} (full view)" if ran.full_view else ran.name
    if ran.rate is None:
        return f"{name}: WRONG: {ran.wrong}"
    return f"{name}: {ran.rate:,.0f} commands/s, {ran.seconds:.1f} s"


# --- the figures


def summary(chosen: Sequence[Contestant], ran: Sequence[Ran]) -> dict[str, Any]:
    """What the rounds come to. A contestant that was wrong once has no rate."""
    wrong = sorted({one.name for one in ran if one.wrong})
    sound = [one for one in chosen if one.name not in wrong]
    rates = {one.name: _by_round(ran, one.name) for one in sound}
    full = {one.name: _by_round(ran, one.name, True) for one in sound if one.full_view}
    ratios = {
        f"{ours} / {theirs}": [rate / rates[theirs][number] for number, rate in rates[ours].items()]
        for ours, theirs, _ in TARGETS
        if ours in rates and theirs in rates
    }
    return {
        "rates": {name: round(median(by.values()), 1) for name, by in rates.items()},
        "intervals": {name: _interval(list(by.values())) for name, by in rates.items()},
        "rates_full_view": {name: round(median(by.values()), 1) for name, by in full.items()},
        "ratios": {name: round(median(each), 3) for name, each in ratios.items()},
        "ratio_intervals": {name: _interval(each) for name, each in ratios.items()},
        "targets": [
            {
                "ratio": name,
                "at_least": least,
                "median": round(median(ratios[name]), 3),
                "reached": median(ratios[name]) >= least,
            }
            for ours, theirs, least in TARGETS
            if (name := f"{ours} / {theirs}") in ratios
        ],
        "guarantees": {one.name: one.guarantee for one in chosen},
        "how": {one.name: one.how for one in chosen},
        "cpu_us_per_command": {one.name: _cpu(ran, one.name) for one in sound},
        "too_short": sorted({one.name for one in ran if one.seconds < LEAST_SECONDS}),
        "wrong": wrong,
        "rounds": [structs.asdict(one) for one in ran],
        "ok": not wrong,
    }


def _by_round(ran: Sequence[Ran], name: str, full: bool = False) -> dict[int, float]:
    return {
        one.round: one.rate
        for one in ran
        if (one.name, one.full_view) == (name, full) and one.rate is not None
    }


def _interval(values: list[float]) -> list[float] | None:
    """Of 95 %, by bootstrap over the rounds; of a single one there is none."""
    from labkit.experiments.intervals import interval

    return [round(end, 3) for end in interval(values)] if len(values) > 1 else None


def _cpu(ran: Sequence[Ran], name: str) -> dict[str, float]:
    """Microseconds of CPU a command, by process: medians over the rounds."""
    rounds = [one for one in ran if one.name == name and not one.full_view]
    return {
        process: round(median(1e6 * one.cpu_seconds[process] / one.commands for one in rounds), 2)
        for process in rounds[0].cpu_seconds
    }
