"""The figures of the bench, in words; and who has the better one, by an interval over the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from msgspec import Struct

from labkit.experiments.cost.arm import ARMS
from labkit.experiments.cost.under_load import HOT_WRITERS, MANY
from labkit.experiments.intervals import NO_INTERVAL, interval_if_any, quotient

Better = Literal["less", "more", ""]


class Figure(Struct, frozen=True):
    """``better``: which of two values is the better one, if that can be said."""

    words: str
    unit: str
    better: Better = ""


def _writers(number: int) -> str:
    return f"{number} writer{'' if number == 1 else 's'}"


FIGURES: dict[str, Figure] = {
    "write_p50_ms": Figure("answer to a write at a steady rate, p50", "ms", "less"),
    "write_p99_ms": Figure("answer to a write at a steady rate, p99", "ms", "less"),
    "read_p50_ms": Figure("read at a steady rate, p50", "ms", "less"),
    "read_p99_ms": Figure("read at a steady rate, p99", "ms", "less"),
    "stale_share": Figure("reads just after an answer that do not show it", "share", "less"),
    "fresh_p50_ms": Figure("from an answer to a read that shows it, p50", "ms", "less"),
    "fresh_p99_ms": Figure("from an answer to a read that shows it, p99", "ms", "less"),
    "writes_per_s": Figure("closed loop: writes", "1/s", "more"),
    "busy_write_p50_ms": Figure("closed loop: answer to a write, p50", "ms", "less"),
    "busy_write_p99_ms": Figure("closed loop: answer to a write, p99", "ms", "less"),
    "cpu_ms": Figure("closed loop: CPU of all processes and servers for a write", "ms", "less"),
    "many_writes_per_s": Figure(f"{MANY} times as many writers: writes", "1/s", "more"),
    "many_write_p50_ms": Figure(f"{MANY} times as many writers: answer, p50", "ms", "less"),
    "many_write_p99_ms": Figure(f"{MANY} times as many writers: answer, p99", "ms", "less"),
    "reads_per_s": Figure("reads beside a steady rate of writes", "1/s", "more"),
    "beside_read_p50_ms": Figure("read beside these writes, p50", "ms", "less"),
    "beside_read_p99_ms": Figure("read beside these writes, p99", "ms", "less"),
    "beside_write_p50_ms": Figure("answer to a write beside these reads, p50", "ms", "less"),
    "beside_write_p99_ms": Figure("answer to a write beside these reads, p99", "ms", "less"),
    **{
        name: figure
        for n in HOT_WRITERS
        for name, figure in {
            f"hot_{n}_per_s": Figure(f"one document, {_writers(n)}", "1/s", "more"),
            f"hot_{n}_p99_ms": Figure(f"one document, {_writers(n)}: answer, p99", "ms", "less"),
            f"hot_{n}_conflicts": Figure(
                f"one document, {_writers(n)}: tries in vain", "a command"
            ),
        }.items()
    },
    "effects": Figure("effects of a command that is sent twice", "a command"),
    "agree_reply_p50_ms": Figure("two streams: answer to the first command, p50", "ms", "less"),
    "agreed_p50_ms": Figure("two streams: until a reader sees that they agree, p50", "ms", "less"),
    "agreed_p99_ms": Figure("two streams: until a reader sees that they agree, p99", "ms", "less"),
    "apart_ms": Figure("two streams: how long a reader sees them apart, median", "ms", "less"),
    "apart_share": Figure(
        "two streams: commands in which a reader saw them apart", "share", "less"
    ),
    "stored_bytes": Figure("stored for a command, as it is", "bytes", "less"),
    "disk_bytes": Figure("stored for a command, on disk", "bytes", "less"),
    "past_answered": Figure("what was an account at an instant: answered", "share", "more"),
    "past_ms": Figure("what was an account at an instant: time", "ms"),
    "second_s": Figure("a second view is added: until it is served", "s", "less"),
    "second_past": Figure("a second view is added: the past that it shows", "share", "more"),
    "new_state_s": Figure("a rule needs states of a new shape: until each has it", "s", "less"),
    "new_state_from_past": Figure(
        "a rule needs a new state: the past that it can tell", "share", "more"
    ),
    "own_lines": Figure("code of the arm alone", "lines", "less"),
    "concepts": Figure("concepts to know", "", "less"),
    "failure_modes": Figure("failure modes to know", "", "less"),
    "kinds_running": Figure("kinds of servers and processes to run", "", "less"),
}
#: How long the measurements with a load took, by the figure that says so.
SECONDS = ("latency_s", "throughput_s", "many_writers_s", "reads_s", "contention_s")


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By figure and arm the median over the runs with its interval, and how CRUD compares.

    ``rows``: one for each run and arm, with ``run``, ``arm`` and figures.
    """
    return {
        name: {
            "words": figure.words,
            "unit": figure.unit,
            "better": figure.better,
            "arms": {arm: found for arm in ARMS if (found := _arm(rows, arm, name))},
            "crud_to_labkit": _compared(rows, name, figure.better),
        }
        for name, figure in FIGURES.items()
        if any(name in row for row in rows)
    }


def _arm(rows: Sequence[Mapping[str, Any]], arm: str, name: str) -> dict[str, Any]:
    each = [row[name] for row in rows if row["arm"] == arm and name in row]
    finite = [value for value in each if math.isfinite(value)]
    if not finite:
        return {}
    return {"median": median(finite), "each": each, **_ends(finite)}


def _ends(values: Sequence[float]) -> dict[str, Any]:
    if (found := interval_if_any(values)) is NO_INTERVAL:
        return {"interval": None, "level": None}
    return {"interval": [found.low, found.high], "level": found.level}


def _compared(rows: Sequence[Mapping[str, Any]], name: str, better: Better) -> dict[str, Any]:
    """Within each run: the ratio of CRUD to labkit, and whose figure is better.

    ``winner`` is an arm if the interval of the differences lies on its side, "even" if it does not,
    and "" if there is nothing to compare. One run has no interval: then its sign decides.
    """
    by_run = {(row["run"], row["arm"]): row[name] for row in rows if name in row}
    runs = sorted({run for run, _ in by_run})
    pairs = [
        (by_run[run, "crud"], by_run[run, "labkit"])
        for run in runs
        if (run, "crud") in by_run and (run, "labkit") in by_run
    ]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if not pairs:
        return {"winner": "", "ratio": None, "interval": None, "level": None}
    ratios = [quotient(*pair) for pair in pairs]
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    return {
        "winner": _winner([crud - labkit for crud, labkit in pairs], better),
        "ratio": median(finite) if finite else None,
        **_ends(finite),
    }


def _winner(differences: Sequence[float], better: Better) -> str:
    if not better:
        return ""
    found = interval_if_any(differences)
    low, high = (differences[0],) * 2 if found is NO_INTERVAL else found[:2]
    if low <= 0 <= high:
        return "even"
    return "crud" if (high < 0) == (better == "less") else "labkit"


def wins(figures: Mapping[str, Any], arm: str) -> list[dict[str, Any]]:
    """The figures that an arm wins, each with both values, the ratio and its interval."""
    return [
        {
            "figure": name,
            "words": found["words"],
            "unit": found["unit"],
            "crud": found["arms"]["crud"]["median"],
            "labkit": found["arms"]["labkit"]["median"],
            "crud_to_labkit": found["crud_to_labkit"]["ratio"],
            "interval": found["crud_to_labkit"]["interval"],
        }
        for name, found in figures.items()
        if found["crud_to_labkit"]["winner"] == arm
    ]
