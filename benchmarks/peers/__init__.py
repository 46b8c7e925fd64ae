"""The same job by labkit, by frameworks and by bare clients, side by side.

Order commands are in a topic. Each contestant reads them, writes events to another topic, reads
these, and writes one document for each order into MongoDB: in two processes, a command side and a
view side, like labkit's handler and projector. Servers, partitions, batch size and write concern
are the same for all (``job.py`` defines the job, ``contestants.py`` lists the contestants). All use
the decision function of the domain; labkit also validates the command, as it always does.

A round runs every contestant once, in random order. The contestants of a round share the commands,
which are sent just before it; each has its own consumer groups, events topic and database, which
are dropped afterwards. The view side owns its partitions before the command side starts. The clock
starts with the first documents and ends with the last one: start-up, joining the group and the
first batch do not count. (It does not start later, since a fast command side would have finished
by then, and its work would not count. The result says how far ahead the command side is when the
clock starts. This matters more with fewer commands: small sizes give rates that are too high.) Then
the documents are counted and their cents summed: a wrong result has no rate.

Rates are medians over the rounds, and ratios are medians of the ratios within a round. The fast
contestants get more commands than the slow ones, so that a round of either takes some seconds.

The additional content of labkit's own view (sums by customer and month, indexes, a trace) is not
part of the job; the rates with it are reported separately, as ``rates_full_view``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import util
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import NO_INTERVAL, interval_if_any, quotient, too_short
from labkit.experiments.results import archive, versions
from labkit.run.settings import DEFAULTS

if TYPE_CHECKING:
    from benchmarks.peers.contestants import Contestant
    from benchmarks.peers.running import Ran

LIBRARIES = ("confluent_kafka", "faststream", "quixstreams")
#: The targets of labkit: (contestant, compared with, the least ratio of their rates).
TARGETS = (
    ("labkit-kafka-python", "bare-kafka-python", 0.9),
    ("labkit-confluent", "bare-confluent-upsert", 1.2),
    ("labkit-confluent", "bare-confluent-insert", 0.5),
    ("labkit-confluent", "quix", 2.5),
    ("labkit-confluent", "faststream-batch", 2.5),
    ("labkit-confluent", "faststream-message", 15.0),
)


class PeerSizes(Struct, frozen=True):
    """Commands in a round for a slow and for a fast contestant, and the number of rounds."""

    commands: int = 50_000
    fast_commands: int = 300_000
    rounds: int = 6


def peers(
    name: str,
    sizes: PeerSizes,
    only: Sequence[str],
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Run the contestants ``only`` (all if empty) and archive the result.

    Raises ``UsageError`` for an unknown contestant or if the extra is missing.
    """
    chosen = choose(only)
    import pandas as pd

    from benchmarks.peers.running import preload_orders, run, scratch

    arms = [(one, full) for one in chosen for full in one.arms]
    ran: list[Ran] = []
    dice = Random(seed)
    settings = structs.asdict(sizes) | {
        "contestants": [one.name for one in chosen],
        "partitions": DEFAULTS.partitions,
        "batch_size": DEFAULTS.batch_size,
        "write_concern": "majority",
    }
    with measuring(name, report, "peers", seed=seed, settings=settings) as found:
        found["method"] = " ".join((__doc__ or "").split())
        for number in range(sizes.rounds):
            dice.shuffle(arms)
            with ExitStack() as preloaded:
                load = {}
                for fast in {one.fast for one in chosen}:
                    lab = preloaded.enter_context(scratch(name))
                    load[fast] = preload_orders(
                        lab, sizes.fast_commands if fast else sizes.commands
                    )
                    found["versions"] = versions(
                        lab.server_versions(), "kafka-python", "confluent", *LIBRARIES[1:]
                    )
                for one, full in arms:
                    ran.append(run(name, one, full, load[one.fast], number))
                    report(f"round {number + 1}, {_line(ran[-1])}")
                    progress("peers", len(ran), sizes.rounds * len(arms))
    found |= summary(chosen, ran)
    frames = {"rounds": pd.json_normalize(found["rounds"])}
    found["folder"] = str(archive("bench-peers", found, frames))
    return found


def choose(only: Sequence[str]) -> list[Contestant]:
    """The named contestants, or all. Raises ``UsageError``."""
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
    """The figures of the rounds. A contestant that was wrong once has no rate."""
    wrong = sorted({one.name for one in ran if one.wrong})
    sound = [one for one in chosen if one.name not in wrong]
    rates = {one.name: _by_round(ran, one.name) for one in sound}
    full = {one.name: _by_round(ran, one.name, True) for one in sound if one.full_view}
    ratios = {
        f"{ours} / {theirs}": [
            quotient(rate, rates[theirs][number]) for number, rate in rates[ours].items()
        ]
        for ours, theirs, _ in TARGETS
        if ours in rates and theirs in rates
    }
    return {
        "rates": {name: round(median(by.values()), 1) for name, by in rates.items()},
        "level": _level(list(rates.values())),
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
        "too_short": sorted({one.name for one in ran if too_short(one.seconds)}),
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
    """Over the rounds; a single round has none."""
    ends = interval_if_any(values)
    return None if ends is NO_INTERVAL else [round(ends.low, 3), round(ends.high, 3)]


def _level(rates: Sequence[Mapping[int, float]]) -> float | None:
    """The confidence of the intervals: all sound contestants have the same rounds."""
    ends = interval_if_any(list(rates[0].values())) if rates else NO_INTERVAL
    return None if ends is NO_INTERVAL else ends.level


def _cpu(ran: Sequence[Ran], name: str) -> dict[str, float]:
    """Microseconds of CPU time per command, by process: medians over the rounds."""
    rounds = [one for one in ran if one.name == name and not one.full_view]
    return {
        process: round(median(1e6 * one.cpu_seconds[process] / one.commands for one in rounds), 2)
        for process in rounds[0].cpu_seconds
    }
