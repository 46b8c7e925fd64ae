"""An imagined run: the frames of a load, simulated with a model whose stations are given.

It needs no servers, and its true figures are known, which the tests use.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from msgspec import structs
from numpy.typing import NDArray

from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.model import Model
from labkit.experiments.load.observer import OBSERVE_SECONDS, SELDOM
from labkit.experiments.load.offer import Loaded, offer
from labkit.experiments.load.probe import can_probe, probed
from labkit.experiments.load.station import Line, Station
from labkit.experiments.scratch import scratch_run
from labkit.run.settings import DEFAULTS

PARTITIONS = 4
#: Milliseconds between two looks of the listener, and between two reads of the probe.
LOOK_MS, PROBE_MS = 3.0, 4.0
#: The share of a cycle before its write.
THINKING = 0.2
MS = 1e6


def stations(busy: float = 1.0) -> Model:
    """A handler and a projector with typical times of a machine with two cores.

    ``busy`` multiplies these times.
    """
    rng = np.random.default_rng(1)

    def station(base: float, each: float, extra: float) -> Station:
        line = Line(base * busy, each * busy)
        rest = rng.gamma(2.0, base * busy / 10, 500)
        rest -= rest.mean()
        return Station(
            busy=line,
            out=Line(line.base + extra, line.each),
            busy_rest=rest,
            out_rest=rest,
            reach=rng.gamma(4.0, 0.2, 500),
            late=np.zeros(500),
            lead=rng.gamma(4.0, 0.4, 500),
            early=np.zeros(1),
        )

    one = np.zeros(PARTITIONS, np.int64)
    share = np.full(PARTITIONS, 1 / PARTITIONS)
    return Model(station(9.0, 0.10, 1.5), station(6.0, 0.12, 0.0), share, one, one)


def imagine(plan: Plan, model: Model | None = None) -> tuple[Loaded, pd.DataFrame]:
    """What ``probe.probed`` would return for a load on these stations."""
    rng = np.random.default_rng(plan.seed)
    model = model or stations()
    said = model.run(arrivals.instants(plan) / MS, plan.seed)
    count = len(said)
    frame = pd.DataFrame(
        {
            "id": [f"c{number}" for number in range(count)],
            "stream": [command.stream for command in arrivals.commands(plan, count)],
            "partition": said["partition"],
            "offset": said.groupby("partition").cumcount(),
            "outcome": "accepted",
        }
    )
    frame["version"] = frame.groupby("stream").cumcount() + 1
    at = {name: said[name] for name in ("polled", "heard", "fetched", "visible")}
    at["intended"], at["sent"] = said["sent"] - 0.2, said["sent"]
    at["acked"] = said["sent"] + 1.0
    for name, begin, end in (("decided", "polled", "heard"), ("applied", "fetched", "visible")):
        at[name] = at[begin] + THINKING * (at[end] - at[begin])
    looks = _looks(said["visible"], LOOK_MS, rng)
    stale, visible = _ends(said["visible"], looks)
    whole = frame.assign(**at).assign(stale=stale, visible=visible)
    instants = [*at, "stale"]
    whole[instants] *= MS
    opened = plan.warm_up * 1e9
    window = (opened, opened + plan.seconds * 1e9)
    inside = whole[whole["intended"].between(*window, inclusive="left")].reset_index(drop=True)
    asked = whole[:: max(1, count // 2_000)]
    probes = pd.DataFrame({"stream": asked["stream"]})
    looks = _looks(said["visible"], PROBE_MS, rng)
    ends = _ends(said["visible"].loc[asked.index], looks)
    probes["stale"], probes["visible"] = (end * MS for end in ends)
    settings = {"plan": arrivals.shape(plan), "lab": structs.asdict(DEFAULTS)}
    report = {"settings": settings, "seed": plan.seed, "versions": {}}
    return Loaded(plan, inside, _samples(said), window, report, count), probes


def measured(plan: Plan, backend: str) -> tuple[Loaded, pd.DataFrame]:
    """A load and the rows of its probe (none if a probe cannot be used): on real servers, or
    imagined if the backend is ``memory``."""
    if backend == "memory":
        return imagine(plan)
    with scratch_run("lab", services=[plan.service]) as lab:
        lab.start()
        if can_probe(plan):
            return probed(lab, plan, dry=False)
        nothing = pd.DataFrame(columns=["stream", "stale", "visible"])
        return offer(lab, plan, dry=False), nothing


def _looks(seen: pd.Series[float], every: float, rng: np.random.Generator) -> NDArray[np.float64]:
    count = int(seen.max() / every) + 10
    return np.cumsum(rng.uniform(0.5, 1.5, count + count // 2) * every)


def _ends(
    seen: pd.Series[float], looks: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first = np.searchsorted(looks, seen)
    return looks[np.maximum(first - 1, 0)], looks[first]


def _samples(said: pd.DataFrame) -> pd.DataFrame:
    """The observer's looks. A transaction leaves a marker in each partition that it writes to."""
    at = np.arange(0.0, said["visible"].max(), OBSERVE_SECONDS * 1e3)
    batch = said.groupby(["polled", "partition"]).agg({"heard": "max", "visible": "max"})

    def until(instants: pd.Series[float], looks: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.searchsorted(np.sort(instants), looks, side="right")

    seldom = at[np.arange(len(at)) // SELDOM * SELDOM]
    sent, seen = until(said["sent"], at), until(said["visible"], at)
    committed = until(said["heard"], seldom)
    behind = committed - until(said["visible"], seldom)
    markers = until(batch["heard"], seldom) - until(batch["visible"], seldom)
    return pd.DataFrame(
        {
            "at": at * MS,
            "sent": sent,
            "committed": committed,
            "visible": seen,
            "in_system": sent - seen,
            "handler_lag": until(said["sent"], seldom) - committed,
            "projector_lag": behind + markers,
            "look_ns": 0.0,
        }
    )
