"""The Universal Scalability Law: throughput against the number of workers, and its peak.

::

    X(N) = lambda * N / (1 + sigma * (N - 1) + kappa * N * (N - 1))

``lambda`` is the rate of one worker. ``sigma`` (contention) is the serial share of the work: alone
it leads to a ceiling, lambda / sigma, as in Amdahl's law. ``kappa`` (coherency) is the cost of each
pair of workers that must agree: with it the rate falls again beyond N* = sqrt((1 - sigma) / kappa).
Neil Gunther, "A General Theory of Computational Scalability Based on Rational Functions", 2008
(arXiv:0808.1431).

The reciprocal form N / X(N) is a sum of 1, N and N * (N - 1) with non-negative factors. So the fit
is a non-negative least-squares problem with one solution, in which a factor can be exactly 0. The
weights make the *relative* distance of a run from the curve count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from labkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The law has three parameters; only a fourth point can contradict it.
LEAST_POINTS = 4
#: Bootstrap samples.
RESAMPLES = 999
#: A smaller factor is a rounding error of 0.
ROUNDING = 1e-12


class Law(Struct, frozen=True):
    """``rate`` is lambda, in commands per second; ``sigma`` and ``kappa`` have no unit."""

    rate: float
    sigma: float
    kappa: float

    def at(self, workers: float) -> float:
        """Commands per second of ``workers`` workers."""
        n = workers
        return self.rate * n / (1 + self.sigma * (n - 1) + self.kappa * n * (n - 1))

    @property
    def peak(self) -> float | None:
        """The number of workers with the highest rate, at least 1; ``None``: there is no peak."""
        if self.kappa == 0:
            return None
        return max(1.0, math.sqrt((1 - self.sigma) / self.kappa))


class Scaling(Struct, frozen=True):
    """A law, and the laws of the bootstrap samples (``draws``).

    ``most`` is the largest measured number of workers. ``error`` is the mean relative distance of a
    run from the curve.
    """

    law: Law
    draws: list[Law]
    most: int
    error: float
    level: float

    def band(self, workers: float) -> tuple[float, float]:
        """The interval of the rate at ``workers``, in commands per second."""
        return self._middle([law.at(workers) for law in self.draws])

    def interval(self, name: str) -> tuple[float, float]:
        """The interval of ``rate``, ``sigma``, ``kappa`` or ``peak`` (infinite: none)."""
        found = [getattr(law, name) for law in self.draws]
        return self._middle([math.inf if value is None else value for value in found])

    def _middle(self, values: Sequence[float]) -> tuple[float, float]:
        """Ends from the sample itself: an interpolation with infinity would be infinite."""
        ordered = sorted(values)
        out = round((1 - self.level) / 2 * (len(ordered) - 1))
        return ordered[out], ordered[-1 - out]

    def report(self) -> dict[str, Any]:
        """The fit for the JSON, with an infinite end as ``null``."""
        names = ("rate", "sigma", "kappa", "peak")
        ends = {name: self.interval(name) for name in names}
        intervals = {name: [e if math.isfinite(e) else None for e in ends[name]] for name in names}
        return {
            **structs.asdict(self.law),
            "peak": self.law.peak,
            "intervals": intervals,
            "level": self.level,
            "most_workers": self.most,
            "mean_error": round(self.error, 4),
        }


def fit(runs: Mapping[int, Sequence[float]], seed: int = 1, level: float = 0.95) -> Scaling:
    """Fit the law to ``runs``: the commands per second of each run, by number of workers.

    The interval is the percentile bootstrap over whole runs, resampled for each number of workers
    (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). Raises
    ``UsageError`` for fewer than four numbers of workers, and for a rate that is not positive.
    """
    import numpy as np

    points = {int(n): [float(rate) for rate in rates] for n, rates in runs.items() if len(rates)}
    if len(points) < LEAST_POINTS:
        raise UsageError(
            f"the scalability law needs runs of at least {LEAST_POINTS} different numbers of "
            f"workers, got {sorted(points)}; measure some more"
        )
    for n, rates in points.items():
        if n < 1 or not all(0 < rate < math.inf for rate in rates):
            raise UsageError(f"of {n} workers (at least 1) each rate must be positive, got {rates}")
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval must lie between 0 and 1, got {level!r}")
    rng = np.random.default_rng(seed)
    workers = np.repeat(list(points), [len(rates) for rates in points.values()]).astype(float)
    law = _solve(workers, np.concatenate([np.array(rates) for rates in points.values()]))
    draws = [
        _solve(workers, np.concatenate([rng.choice(r, len(r)) for r in points.values()]))
        for _ in range(RESAMPLES)
    ]
    errors = [abs(rate / law.at(n) - 1) for n, rates in points.items() for rate in rates]
    return Scaling(law, draws, max(points), sum(errors) / len(errors), level)


def _solve(n: NDArray[np.float64], rates: NDArray[np.float64]) -> Law:
    """Fit N / X = free + shared * N + pairs * N (N - 1), where rate = 1 / (free + shared)."""
    import numpy as np
    from scipy.optimize import nnls

    columns = np.stack([np.ones_like(n), n, n * (n - 1)], axis=1)
    (free, shared, pairs), _ = nnls(columns * (rates / n)[:, None], np.ones_like(n))
    one = free + shared
    kappa = float(pairs / one)
    return Law(float(1 / one), float(shared / one), kappa if kappa > ROUNDING else 0.0)
