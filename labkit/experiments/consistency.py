"""Consistency lag from a run's rows: stages, t-visibility, k-staleness, and three lags.

Of a load (``load.offer``) each command is a row: the instants of its stages, in monotonic
nanoseconds of one host, each taken by the process that did it::

    intended   the timetable      | decided   the handler, of this command
    sent       the generator      | heard     the bus: the reply that says "committed"
    polled     the handler        | fetched   the projector
    applied    the projector, before it writes
    stale, visible    the observer: the last look that missed it, and the first that saw it

*Consistency lag* is from ``heard`` to visible. Nobody saw the instant itself, so every figure has
two ends: it lies after ``stale`` and not after ``visible``. A command that was not seen until the
run ended is later than any other; one of which nobody took an instant is left out there.

t-visibility and k-staleness: Bailis, Venkataraman, Franklin, Hellerstein and Stoica,
*Probabilistically Bounded Staleness for Practical Partial Quorums*, VLDB 2012.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from labkit.errors import UsageError
from labkit.experiments.batches import batches
from labkit.experiments.freshness import RANGE

Milliseconds = NDArray[np.float64]

#: A stage ends with the instant that it is named after; ``visible`` has two ends.
INSTANTS = ("intended", "sent", "polled", "decided", "heard", "fetched", "applied", "visible")
STAGES = tuple(f"{a} → {b}" for a, b in pairwise(INSTANTS))
LAG = "lag: heard → visible"
WHOLE = "whole: intended → visible"
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}


def known(commands: pd.DataFrame) -> pd.DataFrame:
    """The commands that have a commit to be seen, with the ends of it made as narrow as they are.

    A batch of a projector (the same ``fetched``) is one transaction, so all of it became visible at
    once: after the last look that missed any of it, and not after the first that saw any. And what
    was seen at an instant had been applied before. Raises ``UsageError`` for no such commands.
    """
    found = commands[commands["outcome"].eq("accepted") & commands["heard"].notna()].copy()
    if found.empty:
        raise UsageError("no command of this run was accepted and heard of; is a handler running?")
    batch = found.groupby("fetched")
    seen = batch["visible"].transform("min").fillna(found["visible"])
    missed = batch["stale"].transform("max").fillna(found["stale"])
    found["visible"], found["stale"] = seen.fillna(np.inf), np.fmax(missed, found["applied"])
    return found


def stages(commands: pd.DataFrame) -> pd.DataFrame:
    """A row a command, in milliseconds: its stages, its lag and the whole, from end to end.

    What ends with ``visible`` has two columns: the later end under its name, the earlier under its
    name and `` (at least)``. ``heard → fetched`` is negative where the projector was before the
    bus: both read the same log, side by side.
    """
    at = known(commands)
    columns: dict[str, pd.Series[float]] = {}
    for begin, end in pairwise(INSTANTS):
        columns[f"{begin} → {end}"] = at[end] - at[begin]
    for name, begin in ((STAGES[-1], "applied"), (LAG, "heard"), (WHOLE, "intended")):
        columns[name] = at["visible"] - at[begin]
        columns[f"{name} (at least)"] = (at["stale"] - at[begin]).clip(lower=0)
    return pd.DataFrame(columns) / 1e6


def lag(commands: pd.DataFrame) -> pd.DataFrame:
    """Of each command ``stale_ms`` and ``fresh_ms``, after the reply: what ``plots`` draws."""
    found = stages(commands)
    return pd.DataFrame({"stale_ms": found[f"{LAG} (at least)"], "fresh_ms": found[LAG]})


# --- tables


def histogram(ms: pd.Series[float] | Milliseconds) -> HdrHistogram:
    """Of milliseconds, in microseconds. What is infinite is as late as it can hold; what is below
    zero counts as zero; what is not known is left out. Histograms can be added, percentiles not."""
    found = HdrHistogram(*RANGE)
    us = np.asarray(ms, np.float64) * 1e3
    us = np.clip(np.nan_to_num(us[~np.isnan(us)], posinf=RANGE[1]), 0, RANGE[1])
    for value, count in zip(*np.unique(us.astype(np.int64), return_counts=True), strict=True):
        found.record_value(int(value), int(count))
    return found


def table(found: pd.DataFrame) -> pd.DataFrame:
    """A row a column of ``stages``: percentiles, the greatest and the mean in ms, and how many.

    ``never`` of ``count`` had no end when the run ended: they are in the percentiles as the latest
    of all, and a mean of them there is not.
    """
    rows = {}
    for name, ms in found.items():
        of = histogram(ms)
        at = {p: of.get_value_at_percentile(q) / 1e3 for p, q in PERCENTILES.items()}
        never = int(np.isinf(ms).sum())
        rows[name] = at | {
            "max": np.inf if never else of.get_max_value() / 1e3,
            "mean": ms.mean(),
            "count": int(ms.notna().sum()),
            "never": never,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def adds_up(commands: pd.DataFrame) -> dict[str, float]:
    """Whether the stages add up to the whole, in milliseconds, and ``off``: how far they do not.

    The whole is the observer's: from ``intended`` to its two ends. The stages are the workers': as
    far as ``applied`` by their own instants, and then the time that the projector itself took to
    write a batch, by its own clock: where the next batch was waiting already, that one was fetched
    as soon as the write was done. So the two sides share no instant at their ends. ``off`` is how
    far outside of its two ends the sum lies, as a share of the whole. NaN where no batch waited.
    """
    at = known(commands)
    at = at[np.isfinite(at["visible"])]
    writing = write_times(at)
    found = {stage: float(stages(at)[stage].mean()) for stage in STAGES[:-1]}
    found["applied → next fetched"] = float(np.mean(writing)) if len(writing) else np.nan
    total = sum(found.values())
    low, high = (float((at[end] - at["intended"]).mean()) / 1e6 for end in ("stale", "visible"))
    off = max(low - total, total - high, 0.0 * total) / ((low + high) / 2)
    return found | {"sum": total, "whole (at least)": low, "whole": high, "off": off}


def write_times(at: pd.DataFrame) -> Milliseconds:
    """How long the writes of a projector took by its own clock, once for each command of a batch.

    Known only of batches after which the next one waited: its first commit had been heard of before
    this batch was applied.
    """
    found = batches(at, "fetched", "heard", "applied")
    found = found[found["pressed"]]
    took = (found["following"] - found["end"]).to_numpy(np.float64) / 1e6
    return np.repeat(took, found["size"].to_numpy())


# --- what a read sees


def t_visibility(lag_ms: pd.DataFrame, at_ms: Sequence[float] | Milliseconds) -> pd.DataFrame:
    """The chance that a read so many ms after the reply sees the write: at least, and at most.

    ``lag_ms`` has a row a write, ``stale_ms`` and ``fresh_ms``. A row a ``t_ms``.
    """
    t = np.asarray(at_ms, np.float64)
    ends = {"at_least": "fresh_ms", "at_most": "stale_ms"}
    count = max(len(lag_ms), 1)
    return pd.DataFrame({"t_ms": t}).assign(
        **{
            name: np.searchsorted(np.sort(lag_ms[end]), t, side="right") / count
            for name, end in ends.items()
        }
    )


def k_staleness(commands: pd.DataFrame, seed: int = 1, reads: int = 100_000) -> pd.DataFrame:
    """How many versions behind a read is: a row a ``k``, with the share of the reads.

    ``share`` takes a version for unseen until the first look that saw it, ``share_at_best`` until
    the last that missed it. The reads come at instants of their own between the first reply and the
    last, and ask for a stream as often as others write to it.
    """
    at = known(commands)
    rng = np.random.default_rng(seed)
    began, ended = at["heard"].min(), at["heard"].max()
    code, _ = pd.factorize(at["stream"])
    # One sorted line for all streams: each has a stretch of its own, as long as the run.
    stretch = int(ended - began) + 2

    def place(of: NDArray[np.int64], instants: Any) -> NDArray[np.int64]:
        since = np.clip(np.asarray(instants, np.float64) - began, 0, stretch - 1)
        return np.asarray(of * stretch + since.astype(np.int64), np.int64)

    asked = code[rng.integers(len(at), size=reads)]
    when = place(asked, rng.uniform(began, ended, reads))
    seen = {name: np.sort(place(code, at[end])) for name, end in ENDS.items()}
    committed = np.searchsorted(np.sort(place(code, at["heard"])), when, side="right")
    counts = {
        name: np.bincount(np.maximum(committed - np.searchsorted(ends, when, side="right"), 0))
        for name, ends in seen.items()
    }
    most = max(map(len, counts.values()))
    shares = {name: np.pad(n, (0, most - len(n))) / reads for name, n in counts.items()}
    return pd.DataFrame(shares).rename_axis("k")


#: Until when a version is taken for unseen.
ENDS = {"share": "visible", "share_at_best": "stale"}
