"""What a few runs can say, against what is known about it."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest

from labkit.errors import UsageError
from labkit.experiments.intervals import (
    LEAST_SECONDS,
    NO_INTERVAL,
    interval,
    interval_if_any,
    quotient,
    too_short,
)
from labkit.plots.rule_of_three import at_most, counted


@pytest.mark.parametrize(
    ("runs", "ends", "level"),
    [
        (2, (1, 2), 0.5),
        (5, (1, 5), 0.9375),  # the most that five runs can say, and no 95 %
        (6, (1, 6), 0.96875),
        (8, (1, 8), 0.9921875),
        (9, (2, 8), 0.9609375),
        (20, (6, 15), 0.9586105),
    ],
)
def test_the_level_is_what_so_many_runs_can_say(
    runs: int, ends: tuple[float, float], level: float
) -> None:
    """Against a table of the binomial distribution (Conover, table A3)."""
    low, high, said = interval([float(n) for n in range(runs, 0, -1)])
    assert (low, high) == ends
    assert said == pytest.approx(level)


@pytest.mark.parametrize("runs", [5, 6, 9])
def test_as_many_experiments_hold_the_true_median_as_the_level_says(runs: int) -> None:
    """Also where the runs are as skewed as times are."""
    drawn = np.random.default_rng(1).exponential(1.0, (4_000, runs))
    found = [interval(row) for row in drawn.tolist()]
    held = np.mean([low <= math.log(2) <= high for low, high, _ in found])
    assert held == pytest.approx(found[0].level, abs=0.015)


def test_runs_that_all_say_the_same_give_no_width() -> None:
    assert interval([5.0, 5.0, 5.0])[:2] == (5.0, 5.0)


def test_the_interval_holds_the_median_of_the_runs() -> None:
    for runs in range(2, 60):
        low, high, _ = interval(values := np.random.default_rng(runs).normal(size=runs).tolist())
        assert low <= median(values) <= high


@pytest.mark.parametrize("runs", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_is_no_set_of_runs_is_refused(runs: list[float]) -> None:
    with pytest.raises(UsageError, match="an interval needs"):
        interval(runs)
    assert interval_if_any(runs) is NO_INTERVAL


def test_nothing_is_divided_by_no_time() -> None:
    assert quotient(3, 2) == 1.5
    assert math.isnan(quotient(3, 0.0))
    assert math.isnan(quotient(3, 0))


def test_a_rate_of_a_short_time_is_not_to_be_compared() -> None:
    assert too_short(LEAST_SECONDS) == ""
    said = too_short(0.123)
    assert said.startswith("too short to compare: measured for 0.12 s, and below 5 s the warm-up")


@pytest.mark.parametrize(
    ("count", "tries", "most", "said"),
    [
        (0, 40, 0.075, "0 of 40 (at most 7.5 %)"),
        (0, 10_000, 0.0003, "0 of 10,000 (at most 0.03 %)"),
        (0, 2, 1.0, "0 of 2 (at most 1e+02 %)"),
        (1, 40, None, "1 of 40"),
        (0, 0, None, "0 of 0"),
    ],
)
def test_zero_cases_are_said_with_their_bound(
    count: int, tries: int, most: float | None, said: str
) -> None:
    assert at_most(count, tries) == most
    assert counted(count, tries) == said.replace("1e+02", "100")


def test_the_rule_of_three_is_about_five_percent() -> None:
    for tries in (10, 40, 10_000):
        assert (1 - at_most(0, tries)) ** tries == pytest.approx(0.05, abs=0.022)  # type: ignore[operator]
