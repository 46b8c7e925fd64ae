"""The timetable of a burst: a usual rate, a peak, and the usual rate again. Pure.

The peak is of one greedy client for the greater part. Each client is one of ``CLIENTS`` addresses.
"""

from __future__ import annotations

from random import Random

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from labkit.experiments.burst.arm import Call
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan

CLIENTS = 8
#: Of the calls of a peak beyond the usual rate, the first client sends this share.
GREEDY = 0.6
#: One call in so many reads.
READS = 5
#: Urgencies (RFC 9218) with their shares: urgent, usual, and what can wait.
URGENCIES = {1: 0.2, 3: 0.6, 6: 0.2}


class Burst(Struct, frozen=True, kw_only=True):
    """``usual`` and ``peak`` are in calls a second, the others in seconds."""

    usual: float
    peak: float
    before: float
    during: float
    after: float
    seed: int

    @property
    def begins(self) -> float:
        """When the peak begins, from the start."""
        return self.before

    @property
    def ends(self) -> float:
        """When the peak ends, from the start."""
        return self.before + self.during


def timetable(burst: Burst, first: int) -> list[Call]:
    """The calls, by their instants; commands are numbered from ``first``."""
    pieces = (
        (0.0, burst.before, burst.usual),
        (burst.begins, burst.during, burst.peak),
        (burst.ends, burst.after, burst.usual),
    )
    at = np.concatenate([_poisson(burst.seed, n, *piece) for n, piece in enumerate(pieces)])
    random = Random(burst.seed)
    names, shares = list(URGENCIES), list(URGENCIES.values())
    extra = max(0.0, 1 - burst.usual / burst.peak) * GREEDY
    calls, number = [], first
    for place, instant in enumerate(at.tolist()):
        peak = burst.begins <= instant / 1e9 < burst.ends
        greedy = peak and random.random() < extra
        client = 0 if greedy else random.randrange(CLIENTS)
        urgency = random.choices(names, shares)[0]
        read = place % READS == READS - 1
        calls.append(Call(instant, number, read, client, urgency))
        number += not read
    return calls


def _poisson(
    seed: int, number: int, start: float, seconds: float, rate: float
) -> NDArray[np.int64]:
    plan = Plan(rate=rate, seconds=seconds, warm_up=0.0, seed=3 * seed + number)
    return arrivals.instants(plan) + int(start * 1e9)
