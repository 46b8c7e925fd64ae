"""Does it get slower as it grows? A drain of a million commands beside short ones.

Every run begins empty, and its commands lie in the topic (``bulk.py``). Those of the long one are
those of a short one, again and again, by new customers each time: of the orders in both equally
many are a customer's first, which is other work for a store. Short runs come before the long one
and after it, so that a machine that slows down meanwhile is not taken for the store. The clock runs
from the first commit until all is visible: start-up does not count. ``ratio`` is the rate of the
long one to the median of the short ones, and its interval that of the short ones, by bootstrap: the
long one is a single run. Where it slows down is seen in ``tenths``: its rate while each tenth of
the commands became visible. The first has the start in it.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec

from labkit import stack
from labkit.experiments.bench.bulk import Bulk, drain, rates_of_tenths
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import interval
from labkit.experiments.results import archive, load_average, machine
from labkit.run.settings import DEFAULTS

#: Of the short runs; the later ones come after the long one.
BEFORE, AFTER = 3, 3
AT_LEAST = 0.9


def growth(
    name: str,
    client: str,
    sizes: tuple[int, int],
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """On real servers; the result is the JSON. ``sizes``: commands of the long and the short runs.

    Starts servers that are not up, and stops what it started. Raises ``StackError`` and
    ``TimedOut`` where servers or workers fail.
    """
    long, short = sizes
    order = [short] * BEFORE + [long] + [short] * AFTER
    runs: list[Bulk] = []
    with stack.borrowed(name, report) as servers:
        found: dict[str, Any] = {
            "bench": "growth",
            "client": client,
            "seed": None,
            "settings": {
                "commands": long,
                "small": short,
                "order": order,
                "partitions": DEFAULTS.partitions,
                "batch_size": DEFAULTS.batch_size,
                "handlers": 1,
                "projectors": 1,
            },
            "machine": machine(),
            "load_average_before": load_average(),
            "stack": servers.kind,
        }
        for number, count in enumerate(order):
            what = f"run {number + 1}"
            runs.append(drain(name, client, count, lambda d, n, w=what: progress(w, d, n), short))  # type: ignore[misc]
            report(f"{what} of {len(order)}: {_line(runs[-1])}")
        found["load_average_after"] = load_average()
    found["versions"] = runs[0].versions
    found |= summary(runs)
    import pandas as pd

    looks = pd.json_normalize(
        [
            {"run": number, **msgspec.to_builtins(look)}
            for number, run in enumerate(runs)
            for look in run.looks
        ]
    )
    archive("bench-growth", found, {"runs": pd.DataFrame(found["runs"]), "looks": looks})
    return found


def summary(runs: list[Bulk]) -> dict[str, Any]:
    """What the runs come to; where one of them is wrong there is no ratio."""
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
    low, high = interval(small)
    ratio = long.rate / median(small)
    return found | {
        "ratio": round(ratio, 3),
        "ratio_interval": [round(long.rate / high, 3), round(long.rate / low, 3)],
        "reached": ratio >= AT_LEAST,
        "commands_per_second": {"long": round(long.rate, 1), "short": round(median(small), 1)},
        "tenths": rates_of_tenths(long.looks, long.commands),
    }


def _line(run: Bulk) -> str:
    if run.wrong:
        return f"{run.commands:,} commands, WRONG: {run.wrong[0]}"
    return f"{run.commands:,} commands, {run.rate:,.0f} a second"
