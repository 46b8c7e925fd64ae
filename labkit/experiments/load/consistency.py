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
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from labkit.errors import UsageError
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


def adds_up(commands: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """Whether the stages add up to the whole: their means in ms over the commands that were probed.

    A row a stage, then ``sum`` and ``whole``, and the two ends of each (``at_least``, ``at_most``).
    The stages are the workers' and the listener's, each by its own instants. The whole is that of
    the probe (``probe.py``), a reader of its own who asks for the documents: from ``intended`` to
    its last read that missed the command, and its first that had it. So no instant at the end of
    one side stands at the end of the other. ``off_by`` gives the difference as a share.
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
    """How far the sum is from the whole in ``adds_up``, middle from middle, as a share."""
    middle = sums.mean(axis=1)
    return float(abs(middle["sum"] / middle["whole"] - 1))


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


# --- three lags


def three_lags(loaded: Loaded) -> pd.DataFrame:
    """What three people would call the lag of the view, at each look of the observer.

    Columns: ``at`` (s, from the begin of the window); ``offsets``: how far the projector's position
    is behind the end of its topic; ``commits``: how many were heard of and are not visible;
    ``by_offsets_ms``: these offsets at the rate of the commits, which is what is read off a
    dashboard; ``age_ms``: how long ago the oldest unseen commit was heard of; ``probe_ms``: the
    median lag of those that were heard of since the look before (0 where the view was first).
    Offsets are more than commits: each transaction leaves a marker in each partition that it wrote
    to, and that takes one, too.
    """
    commands, (began, ended) = known(loaded.commands), loaded.window
    looks = loaded.samples.iloc[::SELDOM]
    looks = looks[looks["at"].between(began, ended)]
    at = looks["at"].to_numpy(np.float64)
    heard, visible = (np.sort(commands[name].to_numpy()) for name in ("heard", "visible"))
    told, seen = (np.searchsorted(ends, at, side="right") for ends in (heard, visible))
    rate = len(commands) / (heard[-1] - heard[0])
    # In the order in which they were heard of, whatever is not seen yet starts with the oldest.
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
