"""Throughput as the store grows: one drain of a million commands compared with short ones.

Every run starts empty, with its commands in the topic (``bulk.py``). A workload that repeats a data
set (the CDNOW purchases, say) repeats that of a short run in the long one, with new customers each
time: the share of first orders, which are different work for a store, is the same in both. Short
runs come before and after the long one, so that a machine that slows down meanwhile is not mistaken
for a slow store. The clock runs from the first commit until all is visible; start-up does not
count. ``ratio`` is the rate of the long run over the median rate of the short ones. Its interval is
that of the short runs, since there is one long run. ``tenths`` holds the rate of the
long run by tenths of its commands; the first includes the start.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec

from labkit.experiments.bench.bulk import Bulk, drain, rates_of_tenths
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.subject import about, subject
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import interval_if_any, quotient, too_short
from labkit.experiments.results import archive
from labkit.run.settings import DEFAULTS
from labkit.service import Service

#: Short runs before and after the long one.
BEFORE, AFTER = 3, 3
AT_LEAST = 0.9


def growth(
    name: str,
    client: str,
    sizes: tuple[int, int],
    progress: Progress,
    report: Callable[[str], None],
    service: str | Service | None = None,
) -> dict[str, Any]:
    """Run the bench and archive its result. ``sizes``: commands of the long and of a short run.

    Raises ``UsageError`` for a service that cannot be measured.
    """
    import pandas as pd

    measured = subject("growth", service)

    long, short = sizes
    order = [short] * BEFORE + [long] + [short] * AFTER
    runs: list[Bulk] = []
    settings = {
        "commands": long,
        "small": short,
        "order": order,
        "partitions": DEFAULTS.partitions,
        "batch_size": DEFAULTS.batch_size,
        "handlers": 1,
        "projectors": 1,
        **about(measured),
    }
    with measuring(name, report, "growth", client=client, seed=None, settings=settings) as found:
        for number, count in enumerate(order):
            what = f"run {number + 1}"
            run = drain(
                name,
                client,
                measured,
                count,
                lambda d, n, w=what: progress(w, d, n),  # type: ignore[misc]
                short,
            )
            runs.append(run)
            report(f"{what} of {len(order)}: {_line(runs[-1])}")
    found["versions"] = runs[0].versions
    found |= summary(runs)
    looks = pd.json_normalize(
        [
            {"run": number, **msgspec.to_builtins(look)}
            for number, run in enumerate(runs)
            for look in run.looks
        ]
    )
    frames = {"runs": pd.DataFrame(found["runs"]), "looks": looks}
    found["folder"] = str(archive("bench-growth", found, frames))
    return found


def summary(runs: list[Bulk]) -> dict[str, Any]:
    """The figures of the runs; there is no ratio if one of them is wrong."""
    largest = max(run.commands for run in runs)
    (long,) = [run for run in runs if run.commands == largest]
    shorts = [run for run in runs if run is not long]
    found: dict[str, Any] = {
        "runs": [run.row() for run in runs],
        "wrong": [line for run in runs for line in run.wrong],
        "ratio": None,
        "at_least": AT_LEAST,
        "ok": not any(run.wrong for run in runs),
    }
    if not found["ok"]:
        return found
    small = [run.rate for run in shorts]
    low, high, level = interval_if_any(small)
    ratio = quotient(long.rate, median(small))
    return found | {
        "ratio": round(ratio, 3),
        "ratio_interval": [round(quotient(long.rate, end), 3) for end in (high, low)],
        "level": level,
        "too_short": too_short(min(run.seconds for run in runs)),
        "reached": ratio >= AT_LEAST,
        "commands_per_second": {"long": round(long.rate, 1), "short": round(median(small), 1)},
        "tenths": rates_of_tenths(long.looks, long.commands),
    }


def _line(run: Bulk) -> str:
    if run.wrong:
        return f"{run.commands:,} commands, WRONG: {run.wrong[0]}"
    return f"{run.commands:,} commands, {run.rate:,.0f} a second"
