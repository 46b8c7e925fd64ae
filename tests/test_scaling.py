"""The scalability law: what was put in comes out, and what cannot be fitted is refused."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from labkit.errors import UsageError
from labkit.experiments.bench.scaling import Law, fit

WORKERS = (1, 2, 3, 4, 6, 8)


def made(law: Law, noise: float = 0.0, rounds: int = 5, seed: int = 1) -> dict[int, list[float]]:
    rng = np.random.default_rng(seed)
    return {n: [law.at(n) * (1 + noise * rng.normal()) for _ in range(rounds)] for n in WORKERS}


@pytest.mark.parametrize(
    "law",
    [
        Law(9_000, 0.1, 0.02),
        Law(9_000, 0.0, 0.02),
        Law(9_000, 0.3, 0.0),
        Law(9_000, 0.0, 0.0),
        Law(9_000, 1.0, 0.0),
        Law(9_000, 1.0, 0.5),
    ],
)
def test_what_was_put_in_comes_out(law: Law) -> None:
    found = fit(made(law)).law
    assert found.rate == pytest.approx(law.rate, rel=1e-6)
    assert found.sigma == pytest.approx(law.sigma, abs=1e-6)
    assert found.kappa == pytest.approx(law.kappa, abs=1e-9)


def test_the_law_is_gunthers() -> None:
    law = Law(100, 0.1, 0.01)
    assert law.at(1) == 100
    assert law.at(4) == pytest.approx(400 / (1 + 0.1 * 3 + 0.01 * 4 * 3))


def test_the_peak_is_where_one_more_brings_less() -> None:
    law = Law(9_000, 0.1, 0.02)
    assert law.peak == pytest.approx(math.sqrt(0.9 / 0.02))
    assert law.at(law.peak - 0.5) < law.at(law.peak) > law.at(law.peak + 0.5)


def test_without_coherency_there_is_no_peak() -> None:
    found = fit(made(Law(9_000, 0.3, 0.0)))
    assert found.law.kappa == 0.0
    assert found.law.peak is None
    assert found.report()["peak"] is None


def test_where_all_has_to_wait_one_worker_is_best() -> None:
    assert fit(made(Law(9_000, 1.0, 0.5))).law.peak == 1.0


def test_intervals_hold_the_truth_and_grow_with_the_noise() -> None:
    law = Law(9_000, 0.1, 0.02)
    held = 0
    for seed in range(10):
        calm, wild = (fit(made(law, noise, seed=seed)) for noise in (0.02, 0.1))
        for name in ("rate", "sigma", "kappa", "peak"):
            low, high = calm.interval(name)
            held += low <= getattr(law, name) <= high
        low, high = wild.band(4)
        assert high - low > np.subtract(*calm.band(4)[::-1])
    assert held >= 0.8 * 10 * 4  # five runs a point: a bootstrap is somewhat too sure


def test_the_band_lies_around_the_curve() -> None:
    found = fit(made(Law(9_000, 0.1, 0.02), 0.05))
    for n in (1, 2.5, 6):
        low, high = found.band(n)
        assert low < found.law.at(n) < high


def test_the_same_seed_draws_the_same_runs() -> None:
    runs = made(Law(9_000, 0.1, 0.02), 0.05)
    assert fit(runs, seed=3) == fit(runs, seed=3) != fit(runs, seed=4)


def test_a_peak_that_may_not_be_there_has_no_upper_end() -> None:
    """Noise that is larger than what coherency costs: some draws find a peak, others none."""
    found = fit(made(Law(9_000, 0.3, 0.001), 0.1, seed=2))
    report = msgspec.json.decode(msgspec.json.encode(found.report()))
    assert found.interval("peak")[1] == math.inf
    assert report["intervals"]["peak"][1] is None
    assert report["most_workers"] == 8


@pytest.mark.parametrize("counts", [(), (1,), (1, 2, 4)])
def test_too_few_points_are_refused(counts: tuple[int, ...]) -> None:
    runs = made(Law(9_000, 0.1, 0.02))
    with pytest.raises(UsageError, match="at least 4 different numbers of workers"):
        fit({n: runs[n] for n in counts})


def test_arms_without_a_run_are_no_points() -> None:
    runs = made(Law(9_000, 0.1, 0.02))
    with pytest.raises(UsageError, match=r"got \[1, 2, 3\]"):
        fit({1: runs[1], 2: runs[2], 3: runs[3], 4: []})


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        fit({**made(Law(9_000, 0.1, 0.02)), 5: [rate]})


def test_no_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="of 0 workers"):
        fit({**made(Law(9_000, 0.1, 0.02)), 0: [1.0]})
