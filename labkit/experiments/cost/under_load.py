"""The measurements with a load: latency, throughput, reads under writes, contention, resends."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from hdrh.histogram import HdrHistogram

from labkit.experiments.cost.spent import spent
from labkit.experiments.cost.subject import SERVICE
from labkit.experiments.cost.told import operations
from labkit.experiments.cost.trial import Trial
from labkit.experiments.cost.writers import Seen
from labkit.experiments.intervals import quotient
from labkit.experiments.percentiles import RANGE, percentiles

#: Writers of the one hot document.
HOT_WRITERS = (1, 4, 16, 64)
#: The share of ``seconds`` that each of these takes.
HOT_SHARE = 0.2
#: So many times as many writers, and the share of ``seconds`` that they get.
MANY, MANY_SHARE = 4, 0.6
READERS = 4
#: Commands that are sent twice, as far as they are done in this time.
TWICE, TWICE_SECONDS = 100, 20.0

Figures = dict[str, float]


def latency(trial: Trial) -> Figures:
    """An open loop: a write's answer from its intended instant, and how soon a read shows it."""
    seen = trial.open(trial.sizes.rate, trial.sizes.seconds)
    trial.note()
    looks = len(seen.fresh)
    return {
        **times("write", seen.writes),
        **times("read", seen.reads),
        **times("fresh", seen.fresh),
        "stale_share": quotient(seen.stale, looks),
        "latency_s": seen.seconds,
    }


def throughput(trial: Trial) -> Figures:
    """A closed loop: as many writes as the arm takes from so many writers, and from more.

    With few writers, the rate is their number divided by the latency: no arm is saturated by that.
    """
    before = spent(trial.lab)
    seen = trial.closed(trial.sizes.writers, trial.sizes.seconds)
    return {
        "writes_per_s": _rate(seen),
        "cpu_ms": quotient((spent(trial.lab) - before) * 1e3, len(seen.writes)),
        **times("busy_write", seen.writes),
        "throughput_s": seen.seconds,
        **_of_many(trial),
    }


def _of_many(trial: Trial) -> Figures:
    seen = trial.closed(MANY * trial.sizes.writers, trial.sizes.seconds * MANY_SHARE)
    return {
        "many_writes_per_s": _rate(seen),
        **times("many_write", seen.writes),
        "many_writers_s": seen.seconds,
    }


def reads(trial: Trial) -> Figures:
    """Readers without a pause, beside writes at the same rate for all arms."""
    seen = trial.beside(trial.sizes.rate, trial.sizes.seconds, READERS)
    return {
        "reads_per_s": quotient(len(seen.reads), trial.sizes.seconds),
        **times("beside_read", seen.reads),
        **times("beside_write", seen.writes),
        "reads_s": seen.seconds,
    }


def contention(trial: Trial) -> Figures:
    """All writers write one document."""
    found: Figures = {}
    order = Random(f"{len(trial.told)} hot").sample(HOT_WRITERS, len(HOT_WRITERS))
    for writers in order:
        seen = trial.closed(writers, trial.sizes.seconds * HOT_SHARE, accounts=1)
        name = f"hot_{writers}"
        found |= {
            f"{name}_per_s": _rate(seen),
            f"{name}_conflicts": quotient(seen.conflicts, len(seen.writes)),
            f"{name}_p99_ms": times(name, seen.writes)[f"{name}_p99_ms"],
            "contention_s": min(seen.seconds, found.get("contention_s", seen.seconds)),
        }
    return found


def resends(trial: Trial) -> Figures:
    """Each command is sent twice, one after the other: how often does it take effect?"""
    trial.quiet()
    before = _versions(trial)
    seen = trial.closed(1, TWICE_SECONDS, count=TWICE, resent=1.0)
    trial.quiet()
    accepted = {
        operation.id
        for operation in operations(SERVICE, seen.told)
        if operation.answer is not None and operation.answer.accepted
    }
    return {"effects": quotient(_versions(trial) - before, len(accepted))}


def _versions(trial: Trial) -> int:
    return sum(document["version"] for document in trial.arm.documents())


def _rate(seen: Seen) -> float:
    """Commands a second, each counted once however often it was sent."""
    return quotient(len(seen.writes), seen.seconds)


def times(name: str, micros: Iterable[int]) -> Figures:
    histogram = HdrHistogram(*RANGE)
    for value in micros:
        histogram.record_value(min(RANGE[1], max(1, value)))
    found = percentiles(histogram)
    return {f"{name}_{p}_ms": found[f"{p}_ms"] for p in ("p50", "p99")}
