"""The interval of a figure of a few runs, against what is known about it."""

from statistics import fmean, median

import numpy as np
import pytest

from labkit.errors import UsageError
from labkit.experiments.intervals import interval


def test_the_interval_holds_the_statistic_and_stays_inside_the_runs() -> None:
    runs = [4_100.0, 4_300.0, 4_250.0, 3_900.0, 4_400.0]
    low, high = interval(runs)
    assert min(runs) <= low < median(runs) < high <= max(runs)


def test_it_is_the_same_for_the_same_seed() -> None:
    runs = list(np.random.default_rng(3).normal(100, 10, 12))
    assert interval(runs, fmean, seed=4) == interval(runs, fmean, seed=4)
    assert interval(runs, fmean, seed=4) != interval(runs, fmean, seed=5)


def test_of_a_hundred_experiments_about_ninety_five_hold_the_truth() -> None:
    drawn = np.random.default_rng(1).normal(50, 5, (100, 20))
    held = sum(low <= 50 <= high for low, high in (interval(list(row), fmean) for row in drawn))
    assert 88 <= held <= 99


def test_a_higher_level_is_wider() -> None:
    runs = list(np.random.default_rng(2).normal(100, 10, 20))
    narrow, wide = interval(runs, fmean, level=0.5), interval(runs, fmean, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_runs_that_all_say_the_same_give_no_width() -> None:
    assert interval([5.0, 5.0, 5.0]) == (5.0, 5.0)


def test_one_run_of_five_that_differs_has_an_interval_too() -> None:
    """The median does not change whichever run is left out, so BCa alone gives no number."""
    assert interval([1.0, 1.0, 1.0, 1.0, 2.0]) == (1.0, 2.0)


@pytest.mark.parametrize("runs", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_is_no_set_of_runs_is_refused(runs: list[float]) -> None:
    with pytest.raises(UsageError, match="an interval needs"):
        interval(runs)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(UsageError, match=f"between 0 and 1, got {level}"):
        interval([1.0, 2.0], level=level)
