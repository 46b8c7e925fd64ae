"""The same bench without servers: one queue in front of workers of a known capacity.

It predicts what the bench measures, and shows the decisions of an autoscaler in a second. Left out
are the pauses of a rebalance, and that each partition has a queue of its own.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from labkit.experiments.bench.elasticity import CAPACITY, Arm, Load, plan_of
from labkit.experiments.load import arrivals
from labkit.experiments.load.offer import Loaded
from labkit.run.autoscaler import Autoscaler
from labkit.run.elastic import LOOK_SECONDS, Look

TICK_SECONDS = 0.01
#: The time from the decision until a new worker works.
JOIN_SECONDS = 2.0
#: The share of a core that a worker takes: it waits.
IDLE = 0.05
START = 1_000.0


def imagine(
    arm: Arm, load: Load = "peak", seconds: float = 60.0, seed: int = 1
) -> tuple[Loaded, list[Look]]:
    """What ``elasticity.run`` returns, as far as the figures need it."""
    plan = plan_of(load, seconds, seed)
    intended = arrivals.instants(plan) / 1e9
    visible = np.full(len(intended), math.nan)
    scaler = Autoscaler(arm.bounds, arm.partitions)
    workers = active = scaler.least
    looks = [Look(START - LOOK_SECONDS, 0.0, 0, workers, IDLE)]
    joins: list[tuple[float, int]] = []
    done, now, budget = 0, 0.0, 0.0
    for tick in range(int(100 * seconds / TICK_SECONDS)):
        if done == len(intended) and now >= seconds:
            break
        now = tick * TICK_SECONDS
        if tick % round(LOOK_SECONDS / TICK_SECONDS) == 0:
            lag = max(0.0, now - float(intended[done])) if done < len(intended) else 0.0
            wanted = scaler.wanted(START + now, lag if arm.by == "lag" else IDLE, workers)
            looks.append(Look(START + now, lag, workers, wanted, IDLE))
            if wanted < workers:
                joins, active = [], wanted
            elif wanted > workers:
                joins.append((now + JOIN_SECONDS, wanted))
            workers = wanted
        while joins and joins[0][0] <= now:
            active = joins.pop(0)[1]
        each = active * CAPACITY * TICK_SECONDS
        budget = min(budget + each, each + 1)  # what was not used is lost
        while budget >= 1 and done < len(intended) and intended[done] <= now:
            visible[done] = now
            done, budget = done + 1, budget - 1
    commands = pd.DataFrame({"intended": intended, "visible": visible, "heard": visible})
    window = (START * 1e9, (START + seconds) * 1e9)
    report = {"checkers": {"C1": {"ok": True}}}
    return Loaded(plan, (commands + START) * 1e9, pd.DataFrame(), window, report, done), looks
