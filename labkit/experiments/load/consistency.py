"""Consistency lag from a run's rows: stages, t-visibility, k-staleness, and three lags.

Of a load (``load.offer``) each command is a row: the instants of its stages, in monotonic
nanoseconds of one host, each taken by the process that did it::

    intended   the timetable      | decided   the handler, of this command
    sent       the generator      | heard     the bus: the reply that says "committed"
    polled     the handler        | fetched   the projector
    applied    the projector, before it writes
    stale, visible    the observer: the last look that missed it, and the first that saw it

*Consistency lag* is the time from ``heard`` to visible. The instant itself is not observed, so
every figure has two ends: it lies after ``stale`` and not after ``visible``. A command that was not
seen before the run ended is later than all others; one without an instant is left out there.

t-visibility and k-staleness: Bailis, Venkataraman, Franklin, Hellerstein and Stoica,
*Probabilistically Bounded Staleness for Practical Partial Quorums*, VLDB 2012.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from labkit.errors import UsageError
from labkit.experiments.intervals import quotient
from labkit.experiments.load.observer import SELDOM
from labkit.experiments.percentiles import RANGE

if TYPE_CHECKING:
    from labkit.experiments.load.offer import Loaded

Milliseconds = NDArray[np.float64]

#: A stage ends with the instant that it is named after; ``visible`` has two ends.
INSTANTS = ("intended", "sent", "polled", "decided", "heard", "fetched", "applied", "visible")
STAGES = tuple(f"{a} → {b}" for a, b in pairwise(INSTANTS))
LAG = "lag: heard → visible"
WHOLE = "whole: intended → visible"
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}


def known(commands: pd.DataFrame) -> pd.DataFrame:
    """The accepted commands whose commit was heard, with the two ends as close as possible.

    A projector writes a batch (the same ``fetched``) in one transaction, so all of it became
    visible at once: after the last look that missed any of it, and not after the first look that
    saw any. ``visible`` is never before ``applied``. Raises ``UsageError`` if there are none.
    """
    found = commands[commands["outcome"].eq("accepted") & commands["heard"].notna()].copy()
    if found.empty:
        raise UsageError("no command of this run was accepted and heard; is a handler running?")
    batch = found.groupby("fetched")
    seen = batch["visible"].transform("min").fillna(found["visible"])
    missed = batch["stale"].transform("max").fillna(found["stale"])
    found["visible"], found["stale"] = seen.fillna(np.inf), np.fmax(missed, found["applied"])
    return found


def stages(commands: pd.DataFrame) -> pd.DataFrame:
    """One row for each command, in milliseconds: its stages, its lag, and the whole.

    Figures that end with ``visible`` have two columns: the later end under the name, and the
    earlier end under the name with `` (at least)``. ``heard → fetched`` is negative if the
    projector read the commit before the listener did.
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
    """``stale_ms`` and ``fresh_ms`` of each command, from the reply, as ``plots`` needs them."""
    found = stages(commands)
    return pd.DataFrame({"stale_ms": found[f"{LAG} (at least)"], "fresh_ms": found[LAG]})


# --- tables


def histogram(ms: pd.Series[float] | Milliseconds) -> HdrHistogram:
    """A histogram in microseconds. Infinity counts as its greatest value and a negative value as
    zero; NaN is left out. Histograms can be added, percentiles cannot."""
    found = HdrHistogram(*RANGE)
    us = np.asarray(ms, np.float64) * 1e3
    us = np.clip(np.nan_to_num(us[~np.isnan(us)], posinf=RANGE[1]), 0, RANGE[1])
    for value, count in zip(*np.unique(us.astype(np.int64), return_counts=True), strict=True):
        found.record_value(int(value), int(count))
    return found


def table(found: pd.DataFrame) -> pd.DataFrame:
    """One row for each column of ``stages``: percentiles, maximum and mean in ms, and counts.

    ``never`` of ``count`` had no end when the run ended: the percentiles count them as the latest,
    and the mean is infinite.
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


def adds_up(commands: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """Whether the stages add up to the whole: means in ms over the probed commands.

    One row for each stage, then ``sum`` and ``whole``, with two ends each (``at_least``,
    ``at_most``). The stages come from instants of the workers and the listener. The whole comes
    from the probe (``probe.py``), which reads the documents themselves: from ``intended`` to its
    last read without the command, and its first read with it. So the two sides end with independent
    instants. ``off_by`` gives the difference as a share.
    """
    at = known(commands).merge(probes, on="stream", suffixes=("", "_probed"))
    at = at.replace(np.inf, np.nan).dropna(subset=["visible", "stale_probed", "visible_probed"])
    each = stages(at).mean()
    rows = {stage: (each[stage], each[stage]) for stage in STAGES[:-1]}
    rows[STAGES[-1]] = each[f"{STAGES[-1]} (at least)"], each[STAGES[-1]]
    low, high = (sum(ends) for ends in zip(*rows.values(), strict=True))
    whole = [(at[f"{end}_probed"] - at["intended"]).mean() / 1e6 for end in ("stale", "visible")]
    rows |= {"sum": (low, high), "whole": (whole[0], whole[1])}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["at_least", "at_most"])


def off_by(sums: pd.DataFrame) -> float:
    """The difference of ``sum`` and ``whole`` in ``adds_up``, between their middles, as a share."""
    middle = sums.mean(axis=1)
    return float(abs(middle["sum"] / middle["whole"] - 1))


# --- what a read sees


def t_visibility(lag_ms: pd.DataFrame, at_ms: Sequence[float] | Milliseconds) -> pd.DataFrame:
    """The probability that a read ``t_ms`` after the reply sees the write: at least, and at most.

    ``lag_ms`` has a row for each write, with ``stale_ms`` and ``fresh_ms``. The result has a row
    for each ``t_ms``.
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
    """How many versions ``k`` a read is behind: a row for each ``k``, with the share of the reads.

    ``share`` counts a version as unseen until the first look that saw it, ``share_at_best`` until
    the last look that missed it. Reads are drawn uniformly between the first and the last reply,
    and of each stream in proportion to its writes.
    """
    at = known(commands)
    rng = np.random.default_rng(seed)
    began, ended = at["heard"].min(), at["heard"].max()
    code, _ = pd.factorize(at["stream"])
    # One sorted axis for all streams: each has its own stretch, as long as the run.
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


#: Until when a version counts as unseen.
ENDS = {"share": "visible", "share_at_best": "stale"}


# --- three lags


def three_lags(loaded: Loaded) -> pd.DataFrame:
    """Three definitions of the view's lag, at each look of the observer.

    Columns: ``at`` (s, from the start of the window); ``offsets``: how far the projector's position
    is behind the end of its topic; ``commits``: how many were heard and are not visible;
    ``by_offsets_ms``: these offsets divided by the rate of the commits, as on a dashboard;
    ``age_ms``: how long ago the oldest unseen commit was heard; ``probe_ms``: the median lag of the
    commits heard since the previous look (0 if the view was first). There are more offsets than
    commits: each transaction leaves a marker in each partition that it wrote to.
    """
    commands, (began, ended) = known(loaded.commands), loaded.window
    looks = loaded.samples.iloc[::SELDOM]
    looks = looks[looks["at"].between(began, ended)]
    at = looks["at"].to_numpy(np.float64)
    heard, visible = (np.sort(commands[name].to_numpy()) for name in ("heard", "visible"))
    told, seen = (np.searchsorted(ends, at, side="right") for ends in (heard, visible))
    rate = quotient(len(commands), float(heard[-1] - heard[0]))
    # In the order in which they were heard, the unseen ones begin with the oldest.
    ordered = commands.sort_values("heard")
    latest = np.maximum.accumulate(ordered["visible"].to_numpy())
    oldest = np.append(heard, np.inf)[np.searchsorted(latest, at, side="right")]
    following = np.searchsorted(at, ordered["heard"])
    probe = (ordered["visible"] - ordered["heard"]).groupby(following).median() / 1e6
    return pd.DataFrame(
        {
            "at": (at - began) / 1e9,
            "offsets": looks["projector_lag"].to_numpy(np.float64),
            "commits": np.maximum(told - seen, 0),
            "by_offsets_ms": looks["projector_lag"].to_numpy(np.float64) / rate / 1e6,
            "age_ms": np.maximum(at - oldest, 0.0) / 1e6,
            "probe_ms": probe.reindex(np.arange(len(at))).clip(lower=0).to_numpy(np.float64),
        }
    )
