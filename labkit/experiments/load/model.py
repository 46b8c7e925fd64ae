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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from msgspec import Struct, structs
from numpy.typing import NDArray
from scipy.optimize import nnls

from labkit.errors import UsageError
from labkit.experiments.load.arrivals import Plan, instants
from labkit.experiments.load.batches import HANDLER, PROJECTOR, batches, marked, owners
from labkit.experiments.load.consistency import LAG, histogram, known, stages
from labkit.run.settings import DEFAULTS

if TYPE_CHECKING:
    from labkit.experiments.load.offer import Loaded

Milliseconds = NDArray[np.float64]
Numbers = NDArray[np.int64]
#: Whether an instant (ns) belongs to what is fitted.
Which = Callable[[Any], Any]

#: A station that was seen in fewer cycles is not fitted.
LEAST_CYCLES = 20
SHORTEST_MS = 0.1
#: As ``Projector`` has it; it is no setting of a run.
PROJECTOR_BATCH = 4_000
#: A run is cut into stretches of so many seconds, and into so many at least.
STRETCH_SECONDS = 5.0
LEAST_STRETCHES = 6
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
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
    command came that it took with it; ``late``: how long the listener took to hear of what it took;
    ``lead``: from a command to a cycle that began for it.
    ``early``: by how much a partition of a batch is seen before the last of them.
    """

    busy: Line
    out: Line
    busy_rest: Milliseconds
    out_rest: Milliseconds
    reach: Milliseconds
    late: Milliseconds
    lead: Milliseconds
    early: Milliseconds
    most: int = 4_000

    @classmethod
    def fit(cls, cycles: pd.DataFrame, early: Milliseconds, most: int) -> Station:
        """From ``batches``. Raises ``UsageError`` where there are too few."""
        if len(cycles) < LEAST_CYCLES:
            raise UsageError(f"{len(cycles)} batches are too few to fit; let the load last longer")
        pressed = cycles["pressed"].to_numpy(bool)
        presses = cycles["presses"].to_numpy(bool)
        size = cycles["size"].to_numpy(np.int64)
        until = ("end", "done", "following")
        out, done, cycle = (_ms(cycles[end] - cycles["begin"]) for end in until)
        # Where nothing waited, the next cycle began late, for want of work.
        longer = np.median((cycle / done)[presses]) if presses.sum() >= LEAST_CYCLES else 1.0
        busy = np.where(presses, cycle, np.fmin(done * longer, cycle))
        # The newest of a batch came, on average, one gap before it would have been too late. What
        # a projector gets comes together, as a transaction of the handler: that is one arrival.
        newest = _ms(cycles["begin"] - cycles["last"])
        reach = np.fmax(newest - np.nansum(cycle) / cycles["arrivals"].sum(), 0.0)
        known = pressed & (size < most)
        reach[~known] = np.median(reach[known]) if known.any() else np.quantile(newest, 0.1)
        lead = _ms(cycles["begin"] - cycles["first"])[cycles["idle"].to_numpy(bool)]
        lines = Line.fit(size, busy), Line.fit(size, out)
        return cls(
            *lines,
            busy_rest=busy - lines[0].at(size),
            out_rest=out - lines[1].at(size),
            reach=np.roll(reach, -1),
            late=_ms(cycles["late"]),
            lead=lead if len(lead) else np.maximum(reach, 0),
            early=early,
            most=most,
        )

    def cycles(
        self, arrivals: Milliseconds, sizes: Numbers, rng: np.random.Generator
    ) -> Iterator[tuple[int, int, float, float, float]]:
        """What arrives (sorted), and how much of it at once: of each cycle from which to which it
        took, when it began, when others saw the last of it, and how late the listener was."""
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
            seen = begin + max(self.out.at(size) + self.out_rest[drawn], 0.0)
            yield taken, until, begin, seen, float(self.late[drawn])
            ready = begin + max(self.busy.at(size) + self.busy_rest[drawn], SHORTEST_MS)
            reach, taken = float(self.reach[drawn]), until

    def work(
        self, owner: Numbers, arrivals: Milliseconds, sizes: Numbers, rng: np.random.Generator
    ) -> Milliseconds:
        """When each was begun and seen, and how late it was heard of, by as many of these stations
        as there are owners: three rows."""
        found = np.empty((3, len(arrivals)))
        for one in np.unique(owner):
            own = np.flatnonzero(owner == one)
            own = own[np.argsort(arrivals[own], kind="stable")]
            for start, stop, *when in self.cycles(arrivals[own], sizes[own], rng):
                found[:, own[start:stop]] = np.reshape(when, (3, 1))
        return found


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
        alone = np.ones(len(at), np.int64)
        polled, logged, _ = self.handler.work(self.handlers[partition], at, alone, rng)
        # From here on, what one transaction wrote to one partition stays together.
        together = pd.DataFrame({"polled": polled, "partition": partition})
        unit = together.groupby(["polled", "partition"]).ngroup().to_numpy(np.int64)
        _, first, sizes = np.unique(unit, return_index=True, return_counts=True)
        came = logged[first] - rng.choice(self.handler.early, len(first))
        owner = self.projectors[partition[first]]
        begun, seen, late = self.projector.work(owner, came, sizes.astype(np.int64), rng)
        heard = came + late
        return together.assign(sent=at, heard=heard[unit], fetched=begun[unit], visible=seen[unit])

    def lag(self, plan: Plan) -> Milliseconds:
        """Of the commands of a plan, without its warm-up."""
        said = self.run(instants(plan) / 1e6, plan.seed)
        said = said[said["sent"] >= plan.warm_up * 1e3]
        return np.asarray((said["visible"] - said["heard"]).clip(lower=0), np.float64)


def fit(
    commands: pd.DataFrame,
    batch_size: int = DEFAULTS.batch_size,
    fitted: Which = lambda at: at > 0,
) -> Model:
    """From a run's rows. Raises ``UsageError`` where it is too short to fit."""
    at = marked(known(commands))
    at = at[np.isfinite(at["visible"])]
    share = np.bincount(at["partition"]).astype(np.float64)
    one = at.drop_duplicates("partition").index
    stations: list[Station] = []
    whose: list[Numbers] = []
    for of, most in ((HANDLER, batch_size), (PROJECTOR, PROJECTOR_BATCH)):
        cycles = batches(at, of)
        units = at.groupby([of.begin, "partition"])[of.ends].max()
        early = _ms(units.groupby(level=0).transform("max") - units)
        stations.append(Station.fit(cycles[fitted(cycles["begin"])], early, most))
        owner = np.zeros(len(share), np.int64)
        owner[at.loc[one, "partition"]] = pd.Series(owners(at, of.begin), at.index)[one]
        whose.append(owner)
    handler, projector = stations
    return Model(handler, projector, share / share.sum(), whose[0], whose[1])


class Prediction(Struct, frozen=True):
    """The lag of commands that the model has not seen, in ms, beside what was measured of them.

    ``independent_ms`` is PBS's: each stage drawn on its own.
    """

    lag_ms: Milliseconds
    measured_ms: Milliseconds
    independent_ms: Milliseconds

    def report(self) -> dict[str, dict[str, float]]:
        """For each percentile in ms: what was measured, what the model said and the plain method,
        and how far each of these is from what was measured, as a share of that."""
        found = {}
        for name, percentile in PERCENTILES.items():
            was, said, plain = (
                histogram(ms).get_value_at_percentile(percentile) / 1e3
                for ms in (self.measured_ms, self.lag_ms, self.independent_ms)
            )
            found[name] = {"measured_ms": was, "model_ms": said, "independent_ms": plain} | {
                f"{of}error": abs(ms - was) / max(was, 1e-3)
                for of, ms in (("", said), ("independent_", plain))
            }
        return found

    @property
    def error_p50(self) -> float:
        """Of the model, on the median."""
        return self.report()["p50"]["error"]


def predict(loaded: Loaded) -> Prediction:
    """Fit one half of a run, and predict the lag of the other half.

    The window is cut into stretches of ``STRETCH_SECONDS``, and every other one is fitted: so both
    halves have seen the same machine. Of the rest the model knows nothing that was measured, nor
    when its commands came: it is run with a timetable of the same pattern, drawn anew. Raises
    ``UsageError`` where the run is too short.
    """
    commands, plan = loaded.commands, loaded.plan
    began, ended = commands["intended"].min(), commands["intended"].max()
    stretch = min(STRETCH_SECONDS * 1e9, (ended - began) / LEAST_STRETCHES)

    def fitted(at: Any) -> Any:
        return (at - began) // stretch % 2 == 0

    again = structs.replace(plan, seed=plan.seed + 1)
    first, rest = (commands[fitted(commands["heard"]) == half] for half in (True, False))
    return Prediction(
        fit(commands, loaded.report["settings"]["lab"]["batch_size"], fitted).lag(again),
        stages(rest)[LAG].to_numpy(np.float64),
        independent(first, len(rest), again.seed),
    )


def independent(commands: pd.DataFrame, count: int, seed: int = 1) -> Milliseconds:
    """So many lags, each stage drawn on its own from its measured distribution (ms)."""
    rng = np.random.default_rng(seed)
    of = stages(commands)[list(INDEPENDENT)].replace(np.inf, np.nan).dropna()
    drawn = [rng.choice(ms.to_numpy(np.float64), count) for _, ms in of.items()]
    return np.asarray(np.maximum(np.sum(drawn, axis=0), 0.0), np.float64)


def _ms(ns: pd.Series[float]) -> Milliseconds:
    return np.array(ns.to_numpy(np.float64) / 1e6, np.float64)
