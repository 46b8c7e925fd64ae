"""Where a figure stands in the result of each experiment: what a case gives as ``figure``.

Each function gives a reader of a result. A reader raises ``LookupError`` or ``TypeError`` where the
result does not hold the figure, and ``UsageError`` where the figure has no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from labkit.experiments.verdict.figures import Figure, measured, share

Json = Mapping[str, Any]
Read = Callable[[Json], Figure]


def to_bare(kind: str) -> Read:
    """The latency of one command, ``reply`` or ``visible``, to that of a bare transaction."""

    def read(found: Json) -> Figure:
        ratio = found["ratios"][kind]
        return measured(ratio["median"], ratio["interval"])

    return read


def stale(strategy: str) -> Read:
    """Reads just after an answer that do not show it."""

    def read(found: Json) -> Figure:
        row = found["strategies"][strategy]
        return share(row["stale"], row["tries"])

    return read


def wrong(*checkers: str) -> Read:
    """Of the facts that the checkers looked at, the share that was wrong."""

    def read(found: Json) -> Figure:
        some = [found["checkers"][name] for name in checkers]
        return share(sum(c["found"] for c in some), sum(c["checked"] for c in some))

    return read


def workers(arm: str) -> Read:
    """Throughput of so many workers to that of one."""

    def read(found: Json) -> Figure:
        row = found["arms"][arm]
        return measured(row["ratio"], (row["ratio_low"], row["ratio_high"]))

    return read


def lag(rate: float, name: str) -> Read:
    """A percentile of the lag at a share of the plan's rate."""

    def read(found: Json) -> Figure:
        row = next(row for row in found["values"] if row["rate"] == rate)
        return measured(row[name], (row[f"{name}_low"], row[f"{name}_high"]), "ms")

    return read


def cost(name: str, arm: str = "labkit") -> Read:
    """A figure of an arm of ``bench cost``."""

    def read(found: Json) -> Figure:
        figure = found["figures"][name]
        row = figure["arms"][arm]
        return measured(row["median"], row["interval"], figure["unit"])

    return read


def to_crud(name: str) -> Read:
    """A figure of labkit to that of CRUD, within each run."""

    def read(found: Json) -> Figure:
        ratio = found["figures"][name]["crud_to_labkit"]
        low, high = ratio["interval"]
        return measured(1 / ratio["ratio"], (1 / high, 1 / low))

    return read


def burst(name: str, times: float) -> Read:
    """A figure of a peak of ``times`` what the workers do, without any protection."""

    def read(found: Json) -> Figure:
        row = next(row for row in found["peaks"] if row["times"] == times)[name]
        return measured(row["median"], row["interval"])

    return read


def protected(name: str, mechanism: str) -> Read:
    """A figure of the peak at which mechanisms are compared."""

    def read(found: Json) -> Figure:
        row = next(row for row in found["mechanisms"] if row["mechanism"] == mechanism)[name]
        return measured(row["median"], row["interval"])

    return read


def elastic(name: str, load: str, arm: str, unit: str = "") -> Read:
    """A figure of an arm of ``bench elasticity``."""

    def read(found: Json) -> Figure:
        row = next(r for r in found["arms"] if (r["load"], r["arm"]) == (load, arm))
        return measured(row[name], (row[f"{name}_low"], row[f"{name}_high"]), unit)

    return read
