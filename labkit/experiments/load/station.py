"""One station of the lag model: a worker that takes all arrivals, at most one batch, in cycles.

A station is fitted to the batches of a run, and simulated by drawing from its cycles; ``model.py``
says how two of them make up the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from msgspec import Struct
from numpy.typing import NDArray
from scipy.optimize import nnls

from labkit.errors import UsageError

Milliseconds = NDArray[np.float64]
Numbers = NDArray[np.int64]

#: The fewest cycles that a station can be fitted to.
LEAST_CYCLES = 20
SHORTEST_MS = 0.1


class Line(NamedTuple):
    """Milliseconds of a batch: ``base``, and ``each`` for every command."""

    base: float
    each: float

    @classmethod
    def fit(cls, sizes: Numbers, ms: Milliseconds) -> Line:
        """Non-negative least squares."""
        (base, each), _ = nnls(np.column_stack([np.ones(len(sizes)), sizes]), ms)
        return cls(float(base), float(each))

    def at(self, size: float | Numbers) -> Any:
        return self.base + self.each * size


class Station(Struct, frozen=True):
    """The measured cycles of a station, in ms.

    The first four arrays have one entry for each cycle and are drawn together. ``busy``: the time
    until the next cycle can begin. ``out``: until others see the batch (of a handler: until its
    commits are read; of a projector: until a query sees them). ``busy_rest`` and ``out_rest`` are
    the residuals of these lines. ``reach``: from the last command that the next cycle takes to the
    begin of that cycle. ``late``: the delay of the listener. ``lead``: from a command to the cycle
    that begins for it. ``early``: how long before the last partition of a batch each partition is
    seen. ``most`` is the largest batch.
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
        """Fit a station to its ``batches``. Raises ``UsageError`` if there are too few."""
        if len(cycles) < LEAST_CYCLES:
            raise UsageError(f"{len(cycles)} batches are too few to fit; let the load last longer")
        pressed = cycles["pressed"].to_numpy(bool)
        presses = cycles["presses"].to_numpy(bool)
        size = cycles["size"].to_numpy(np.int64)
        until = ("end", "done", "following")
        out, done, cycle = (milliseconds(cycles[end] - cycles["begin"]) for end in until)
        # If nothing waited, the next cycle began late.
        longer = np.median((cycle / done)[presses]) if presses.sum() >= LEAST_CYCLES else 1.0
        busy = np.where(presses, cycle, np.fmin(done * longer, cycle))
        # The newest command of a batch arrived, on average, one gap before the deadline of the
        # batch. All events of one transaction reach a projector together: that is one arrival.
        newest = milliseconds(cycles["begin"] - cycles["last"])
        reach = np.fmax(newest - np.nansum(cycle) / cycles["arrivals"].sum(), 0.0)
        known = pressed & (size < most)
        reach[~known] = np.median(reach[known]) if known.any() else np.quantile(newest, 0.1)
        lead = milliseconds(cycles["begin"] - cycles["first"])[cycles["idle"].to_numpy(bool)]
        lines = Line.fit(size, busy), Line.fit(size, out)
        return cls(
            *lines,
            busy_rest=busy - lines[0].at(size),
            out_rest=out - lines[1].at(size),
            reach=np.roll(reach, -1),
            late=milliseconds(cycles["late"]),
            lead=lead if len(lead) else np.maximum(reach, 0),
            early=early,
            most=most,
        )

    def cycles(
        self, arrivals: Milliseconds, sizes: Numbers, rng: np.random.Generator
    ) -> Iterator[tuple[int, int, float, float, float]]:
        """Simulate one worker on sorted ``arrivals``, each of ``sizes`` commands.

        Yields for each cycle the range of its arrivals (start, stop), its begin, the instant at
        which others see its last command, and the delay of the listener.
        """
        waiting = np.concatenate([[0], np.cumsum(sizes)])
        ready, reach, taken = -np.inf, float(self.reach[0]), 0
        while taken < len(arrivals):
            drawn = int(rng.integers(len(self.busy_rest)))
            begin = max(ready, arrivals[taken] + float(rng.choice(self.lead)))
            # Arrivals at the same instant as the first are taken with it.
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
        """Simulate one worker for each owner: three rows with the begin of each arrival's cycle,
        the instant at which others see it, and the delay of the listener."""
        found = np.empty((3, len(arrivals)))
        for one in np.unique(owner):
            own = np.flatnonzero(owner == one)
            own = own[np.argsort(arrivals[own], kind="stable")]
            for start, stop, *when in self.cycles(arrivals[own], sizes[own], rng):
                found[:, own[start:stop]] = np.reshape(when, (3, 1))
        return found


def milliseconds(ns: pd.Series[float]) -> Milliseconds:
    return np.array(ns.to_numpy(np.float64) / 1e6, np.float64)
