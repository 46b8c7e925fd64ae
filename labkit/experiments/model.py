"""A model of the consistency lag: two stations in a row, each of which takes all that waits.

A *station* (a handler, then a projector) works in cycles: it takes what has arrived, at most a
batch, and is busy for ``base + each * size`` milliseconds, plus what is left over. The next cycle
begins when this one has ended, or, where nothing waits, when something comes. So a command waits
for the rest of one cycle and then for its own: a queue with bulk service (N. T. J. Bailey, *On
Queueing Processes with Bulk Service*, 1954), whose cycles grow with the load.

All of it is measured, and drawn again (Monte Carlo): the lines are fitted to the cycles of a run;
and a simulated cycle takes over from a real one what the lines do not explain, all of it from the
same one, since a slow cycle is slow in all its parts. What is left out: that the stations share the
cores (the fit has that in it, at its load), rebalances, and two writers of one document.

For comparison, the plain method of PBS (``consistency``): each stage of the lag drawn on its own
from its measured distribution. Where that differs from the run, the stages are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from msgspec import Struct
from numpy.typing import NDArray
from scipy.optimize import nnls

from labkit.errors import UsageError
from labkit.experiments.batches import batches, owners
from labkit.experiments.consistency import LAG, histogram, known, stages

Milliseconds = NDArray[np.float64]
Numbers = NDArray[np.int64]

#: A station that was seen in fewer cycles is not fitted.
LEAST_CYCLES = 20
SHORTEST_MS = 0.1
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
#: Instants (ms) of a load, for a seed.
Arrivals = Callable[[int], Milliseconds]
#: The parts of the lag, as PBS draws them.
INDEPENDENT = ("heard → fetched", "fetched → applied", "applied → visible")


class Line(NamedTuple):
    """Milliseconds that a batch takes: some, and some more for each command."""

    base: float
    each: float

    @classmethod
    def fit(cls, sizes: Numbers, ms: Milliseconds) -> Line:
        """Least squares, neither below zero."""
        (base, each), _ = nnls(np.column_stack([np.ones(len(sizes)), sizes]), ms)
        return cls(float(base), float(each))

    def at(self, size: float | Numbers) -> Any:
        """Of a batch of so many."""
        return self.base + self.each * size


class Station(Struct, frozen=True):
    """What its cycles were like, in ms; the arrays have an entry a cycle, drawn together.

    ``busy``: until the next cycle may begin. ``out``: until others see the batch (a handler's:
    until its commits are heard of; a projector's: until a query sees them). ``busy_rest`` and
    ``out_rest`` are what these lines leave over. ``reach``: how long before the next cycle the last
    command came that it took with it; ``lead``: from a command to a cycle that began for it.
    ``early``: by how much a partition of a batch is seen before the last of them.
    """

    busy: Line
    out: Line
    busy_rest: Milliseconds
    out_rest: Milliseconds
    reach: Milliseconds
    lead: Milliseconds
    early: Milliseconds
    most: int = 4_000

    @classmethod
    def fit(cls, commands: pd.DataFrame, begin: str, arrives: str, ends: str, most: int) -> Station:
        """From the instants of the commands. Raises ``UsageError`` for too few batches."""
        found = batches(commands, begin, arrives, ends)
        if len(found) < LEAST_CYCLES:
            raise UsageError(f"{len(found)} batches are too few to fit; let the load last longer")
        pressed = found["pressed"].to_numpy(bool)
        size = found["size"].to_numpy(np.int64)
        out = _ms(found["end"] - found["begin"])
        busy = _ms(found["following"] - found["begin"])
        # Where nothing waited, the next cycle began late, for want of work.
        longer = np.median(busy[pressed] / out[pressed]) if pressed.any() else 1.0
        busy[~pressed] = out[~pressed] * longer
        # The newest of a batch came, on average, one gap before it would have been too late.
        gap = (found["last"].max() - found["first"].min()) / 1e6 / size.sum()
        reach = _ms(found["begin"] - found["last"]) - gap
        reach[size >= most] = np.median(reach)
        late = ~found.groupby("owner")["pressed"].shift(1, fill_value=True).to_numpy(bool)
        lead = _ms(found["begin"] - found["first"])[late]
        units = commands.groupby([begin, "partition"])[ends].max()
        early = _ms(units.groupby(level=0).transform("max") - units)
        lines = Line.fit(size, busy), Line.fit(size, out)
        return cls(
            *lines,
            busy_rest=busy - lines[0].at(size),
            out_rest=out - lines[1].at(size),
            reach=np.roll(reach, -1),
            lead=lead if len(lead) else np.maximum(reach, 0),
            early=early,
            most=most,
        )

    def cycles(
        self, arrivals: Milliseconds, sizes: Numbers, rng: np.random.Generator
    ) -> Iterator[tuple[int, int, float, float]]:
        """What arrives (sorted), and how much of it at once: of each cycle from which to which it
        took, when it began, and when others saw the last of it."""
        waiting = np.concatenate([[0], np.cumsum(sizes)])
        ready, reach, taken = -np.inf, float(self.reach[0]), 0
        while taken < len(arrivals):
            drawn = int(rng.integers(len(self.busy_rest)))
            begin = max(ready, arrivals[taken] + float(rng.choice(self.lead)))
            # What came at the same time as the first is taken with it.
            reached = max(begin - reach, arrivals[taken])
            until = int(np.searchsorted(arrivals, reached, side="right"))
            full = int(np.searchsorted(waiting, waiting[taken] + self.most, side="right")) - 1
            until = max(taken + 1, min(until, full))
            size = int(waiting[until] - waiting[taken])
            yield taken, until, begin, begin + max(self.out.at(size) + self.out_rest[drawn], 0.0)
            ready = begin + max(self.busy.at(size) + self.busy_rest[drawn], SHORTEST_MS)
            reach, taken = float(self.reach[drawn]), until

    def work(
        self, owner: Numbers, arrivals: Milliseconds, sizes: Numbers, rng: np.random.Generator
    ) -> tuple[Milliseconds, Milliseconds]:
        """When each was begun and seen, by as many of these stations as there are owners."""
        begun, seen = np.empty(len(arrivals)), np.empty(len(arrivals))
        for one in np.unique(owner):
            own = np.flatnonzero(owner == one)
            own = own[np.argsort(arrivals[own], kind="stable")]
            for start, stop, begin, end in self.cycles(arrivals[own], sizes[own], rng):
                begun[own[start:stop]], seen[own[start:stop]] = begin, end
        return begun, seen


class Model(Struct, frozen=True):
    """The two stations, and what goes through them.

    ``share`` is how much of the load each partition gets; ``handlers`` and ``projectors`` name the
    owner of each.
    """

    handler: Station
    projector: Station
    share: Milliseconds
    handlers: Numbers
    projectors: Numbers

    def run(self, arrivals: Milliseconds, seed: int = 1) -> pd.DataFrame:
        """Commands that arrive at such instants (ms): a row each, with ``partition`` and the
        instants ``sent``, ``polled``, ``heard``, ``fetched`` and ``visible``, in ms."""
        rng = np.random.default_rng(seed)
        at = np.sort(arrivals)
        partition = rng.choice(len(self.share), len(at), p=self.share)
        polled, heard = self.handler.work(
            self.handlers[partition], at, np.ones(len(at), np.int64), rng
        )
        # From here on, what one transaction wrote to one partition stays together.
        units = pd.DataFrame({"polled": polled, "partition": partition})
        code = units.groupby(["polled", "partition"]).ngroup().to_numpy(np.int64)
        _, first, sizes = np.unique(code, return_index=True, return_counts=True)
        arrive = heard[first] - rng.choice(self.handler.early, len(first))
        begun, seen = self.projector.work(
            self.projectors[partition[first]], arrive, sizes.astype(np.int64), rng
        )
        return pd.DataFrame(
            {
                "partition": partition,
                "sent": at,
                "polled": polled,
                "heard": arrive[code],
                "fetched": begun[code],
                "visible": seen[code],
            }
        )


def fit(commands: pd.DataFrame, batch_size: int = 4_000) -> Model:
    """From a run's rows. Raises ``UsageError`` where it is too short, or too idle, to fit."""
    at = known(commands)
    at = at[np.isfinite(at["visible"])]
    share = np.bincount(at["partition"]).astype(np.float64)
    of_partition = at.drop_duplicates("partition").index
    found = []
    for begin in ("polled", "fetched"):
        owner = np.zeros(len(share), np.int64)
        who = pd.Series(owners(at, begin), at.index)
        owner[at.loc[of_partition, "partition"]] = who[of_partition]
        found.append(owner)
    return Model(
        Station.fit(at, "polled", "sent", "heard", batch_size),
        Station.fit(at, "fetched", "heard", "visible", 4_000),
        share / share.sum(),
        *found,
    )


class Prediction(Struct, frozen=True):
    """The lag of commands that the model has not seen, in ms, beside what was measured of them.

    ``independent`` is PBS's: each stage drawn on its own.
    """

    lag_ms: Milliseconds
    measured_ms: Milliseconds
    independent_ms: Milliseconds

    def error(self, percentile: float, of: str = "lag_ms") -> float:
        """How far it is from what was measured, as a share of that."""
        said, was = (
            histogram(ms).get_value_at_percentile(percentile)
            for ms in (getattr(self, of), self.measured_ms)
        )
        return float(abs(said - was) / max(was, 1))

    def report(self) -> dict[str, float]:
        """For a JSON: percentiles in ms, and the errors as shares."""
        found: dict[str, float] = {}
        for name, percentile in PERCENTILES.items():
            for what in ("measured", "lag", "independent"):
                ms = histogram(getattr(self, f"{what}_ms")).get_value_at_percentile(percentile)
                found[f"{'model' if what == 'lag' else what}_{name}_ms"] = ms / 1e3
            found[f"error_{name}"] = self.error(percentile)
            found[f"independent_error_{name}"] = self.error(percentile, "independent_ms")
        return found


def predict(
    commands: pd.DataFrame, arrivals: Arrivals, *, batch_size: int = 4_000, seed: int = 1
) -> Prediction:
    """Fit the first half of a run, and predict the lag of the second.

    ``arrivals(seed)`` are instants (ms) of the same pattern, drawn anew: of the second half the
    model knows neither the load's own instants nor anything that was measured.
    """
    at = commands.sort_values("intended")
    first, second = at.iloc[: len(at) // 2], at.iloc[len(at) // 2 :]
    said = fit(first, batch_size).run(arrivals(seed), seed)
    lag = (said["visible"] - said["heard"]).to_numpy(np.float64)
    return Prediction(
        lag[len(lag) // 10 :],  # it starts empty
        stages(second)[LAG].to_numpy(np.float64),
        independent(first, len(second), seed),
    )


def independent(commands: pd.DataFrame, count: int, seed: int = 1) -> Milliseconds:
    """So many lags, each stage drawn on its own from its measured distribution (ms)."""
    rng = np.random.default_rng(seed)
    of = stages(commands)[list(INDEPENDENT)].replace(np.inf, np.nan).dropna()
    drawn = [rng.choice(ms.to_numpy(np.float64), count) for _, ms in of.items()]
    return np.asarray(np.maximum(np.sum(drawn, axis=0), 0.0), np.float64)


def _ms(ns: pd.Series[float]) -> Milliseconds:
    return np.asarray(ns.to_numpy(np.float64) / 1e6, np.float64)
