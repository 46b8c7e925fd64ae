"""A model of the consistency lag: two stations in series, each with bulk service.

A *station* (a handler, then a projector) works in cycles: it takes all arrivals, at most one batch,
and is busy for ``base + each * size`` milliseconds plus a residual. The next cycle begins when this
one ends or, if nothing waits, with the next arrival. So a command waits for the rest of one cycle
and then for its own: a queue with bulk service (N. T. J. Bailey, *On Queueing Processes with Bulk
Service*, 1954), whose cycles grow with the load.

The simulation (Monte Carlo) resamples measurements: the lines are fitted to the cycles of a run,
and each simulated cycle takes all its residuals from one real cycle, since a slow cycle is slow in
all its parts. The model leaves out rebalances, two writers of one document, and that the stations
share the cores (except as far as the fit contains it, at its load).

For comparison there is the method of PBS (``consistency``): each stage of the lag is drawn
independently from its measured distribution. Where that differs from the run, the stages are not
independent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from msgspec import Struct, structs

from labkit.experiments.load.arrivals import Plan, instants
from labkit.experiments.load.batches import HANDLER, PROJECTOR, batches, marked, owners
from labkit.experiments.load.consistency import LAG, histogram, known, stages
from labkit.experiments.load.station import Milliseconds, Numbers, Station, milliseconds
from labkit.run.settings import DEFAULTS

if TYPE_CHECKING:
    from labkit.experiments.load.offer import Loaded

#: Whether an instant (ns) belongs to the fitted part of a run.
Which = Callable[[Any], Any]

#: The batch size of ``Projector``, which is not a setting of a run.
PROJECTOR_BATCH = 4_000
#: The length of a stretch, and the least number of stretches of a run.
STRETCH_SECONDS = 5.0
LEAST_STRETCHES = 6
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
#: The parts of the lag, as PBS draws them.
INDEPENDENT = ("heard → fetched", "fetched → applied", "applied → visible")


class Model(Struct, frozen=True):
    """Two stations in series.

    ``share`` is the share of the load of each partition; ``handlers`` and ``projectors`` hold the
    owner of each partition.
    """

    handler: Station
    projector: Station
    share: Milliseconds
    handlers: Numbers
    projectors: Numbers

    def run(self, arrivals: Milliseconds, seed: int = 1) -> pd.DataFrame:
        """Simulate commands that arrive at these instants (ms): one row for each command, with
        ``partition`` and the instants ``sent``, ``polled``, ``heard``, ``fetched`` and ``visible``
        in ms."""
        rng = np.random.default_rng(seed)
        at = np.sort(arrivals)
        partition = rng.choice(len(self.share), len(at), p=self.share)
        alone = np.ones(len(at), np.int64)
        polled, logged, _ = self.handler.work(self.handlers[partition], at, alone, rng)
        # The commits of one transaction to one partition stay together from here on.
        together = pd.DataFrame({"polled": polled, "partition": partition})
        unit = together.groupby(["polled", "partition"]).ngroup().to_numpy(np.int64)
        _, first, sizes = np.unique(unit, return_index=True, return_counts=True)
        came = logged[first] - rng.choice(self.handler.early, len(first))
        owner = self.projectors[partition[first]]
        begun, seen, late = self.projector.work(owner, came, sizes.astype(np.int64), rng)
        heard = came + late
        return together.assign(sent=at, heard=heard[unit], fetched=begun[unit], visible=seen[unit])

    def lag(self, plan: Plan) -> Milliseconds:
        """The simulated lag of the commands of a plan after its warm-up, in ms."""
        said = self.run(instants(plan) / 1e6, plan.seed)
        said = said[said["sent"] >= plan.warm_up * 1e3]
        return np.asarray((said["visible"] - said["heard"]).clip(lower=0), np.float64)


def fit(
    commands: pd.DataFrame,
    batch_size: int = DEFAULTS.batch_size,
    fitted: Which = lambda at: at > 0,
) -> Model:
    """Fit the model to the rows of a run. Raises ``UsageError`` if it is too short."""
    at = marked(known(commands))
    at = at[np.isfinite(at["visible"])]
    share = np.bincount(at["partition"]).astype(np.float64)
    one = at.drop_duplicates("partition").index
    stations: list[Station] = []
    whose: list[Numbers] = []
    for of, most in ((HANDLER, batch_size), (PROJECTOR, PROJECTOR_BATCH)):
        cycles = batches(at, of)
        units = at.groupby([of.begin, "partition"])[of.ends].max()
        early = milliseconds(units.groupby(level=0).transform("max") - units)
        stations.append(Station.fit(cycles[fitted(cycles["begin"])], early, most))
        owner = np.zeros(len(share), np.int64)
        owner[at.loc[one, "partition"]] = pd.Series(owners(at, of.begin), at.index)[one]
        whose.append(owner)
    handler, projector = stations
    return Model(handler, projector, share / share.sum(), whose[0], whose[1])


class Prediction(Struct, frozen=True):
    """The predicted and the measured lag of commands that the model has not seen, in ms.

    ``independent_ms`` is the prediction of PBS, with independent stages.
    """

    lag_ms: Milliseconds
    measured_ms: Milliseconds
    independent_ms: Milliseconds

    def report(self) -> dict[str, dict[str, float]]:
        """For each percentile, in ms: the measured lag, that of the model and that of independent
        stages, and the relative errors of both."""
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
        """The relative error of the model at the median."""
        return self.report()["p50"]["error"]


def predict(loaded: Loaded) -> Prediction:
    """Fit one half of a run, and predict the lag of the other half.

    The window is divided into stretches of ``STRETCH_SECONDS``, and every other one is fitted, so
    that both halves cover the same conditions. The model uses no measurement of the other half, not
    even its arrivals: it simulates a timetable of the same pattern with another seed. Raises
    ``UsageError`` if the run is too short.
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
    """``count`` lags in ms, with each stage drawn independently from its measured distribution."""
    rng = np.random.default_rng(seed)
    of = stages(commands)[list(INDEPENDENT)].replace(np.inf, np.nan).dropna()
    drawn = [rng.choice(ms.to_numpy(np.float64), count) for _, ms in of.items()]
    return np.asarray(np.maximum(np.sum(drawn, axis=0), 0.0), np.float64)
