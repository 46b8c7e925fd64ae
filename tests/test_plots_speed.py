"""Plots of speed: what is drawn is what was measured, and the title says no more than that."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from labkit.experiments.bench.scaling import Law, fit
from labkit.experiments.bench.sweeps import summary
from labkit.plots.throughput import littles_law, scalability, throughput
from tests.test_plots import axes, labels, line
from tests.test_sweeps import runs

FAST = {"slow": [100.0, 110.0, 90.0], "fast": [400.0, 410.0, 390.0]}


def drawn(rates: dict[str, list[float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = runs(rates)
    speed = found["commands_per_second"].fillna(500.0)
    found = found.assign(visible_per_second=speed, red=np.where(found["green"], "", "C1, C9"))
    return found, summary(found, list(rates))


def words(ax: object) -> str:
    return " ".join(text.get_text() for text in ax.texts)  # type: ignore[attr-defined]


def test_every_run_is_drawn_in_its_arm() -> None:
    ax = throughput(*drawn(FAST), axes())
    speeds, places = line(ax, "a run")
    assert sorted(zip(np.round(np.array(places) + 0.22), speeds, strict=True)) == [
        (0, 90),
        (0, 100),
        (0, 110),
        (1, 390),
        (1, 400),
        (1, 410),
    ]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["slow", "fast"]
    assert "(× 4)" in words(ax)
    assert ax.get_title() == "fast: 4.0 times as fast as slow"
    assert "median and interval (confidence 75.0%)" in labels(ax)
    assert ax.get_xlabel().startswith("commands a second")


def test_how_many_times_is_said_within_the_rounds() -> None:
    """The machine was ten times as slow in the last two of three rounds."""
    ax = throughput(*drawn({"slow": [100.0, 10.0, 11.0], "fast": [800.0, 79.0, 30.0]}), axes())
    rounds = drawn({"slow": [10.0, 10.0, 11.0], "fast": [800.0, 79.0, 30.0]})
    assert throughput(*rounds, axes()).get_title() == "fast: 7.9 times as fast as slow"
    assert "no difference" in ax.get_title(), "its intervals overlap"


def test_intervals_that_overlap_say_nothing() -> None:
    ax = throughput(*drawn({"a": [100.0, 120.0], "b": [110.0, 130.0]}), axes())
    assert "no difference" in ax.get_title()


def test_a_run_that_was_thrown_out_has_a_cross_and_no_rate() -> None:
    ax = throughput(*drawn({**FAST, "cheats": [math.nan] * 3}), axes())
    assert line(ax, "thrown out")[0] == [500, 500, 500]
    assert 500 not in line(ax, "a run")[0]
    assert "no rate: C1, C9 red" in words(ax)
    assert "cheats" not in ax.get_title().splitlines()[0]
    assert "3 of 9 runs thrown out" in ax.get_title()
    assert "thrown out" not in " ".join(labels(throughput(*drawn(FAST), axes())))


def test_the_curve_is_the_law() -> None:
    law = Law(1_000, 0.1, 0.02)
    ax = scalability(law, axes(), most=8)
    workers, speeds = line(ax, "Universal")
    assert speeds == pytest.approx([law.at(n) for n in workers])
    workers, speeds = line(ax, "ideal")
    assert speeds == pytest.approx([1_000 * n for n in workers])
    assert "The peak is at 6.7 workers" in ax.get_title()
    assert "peak" in words(ax)


@pytest.mark.parametrize(
    ("law", "says"),
    [
        (Law(1_000, 0.0, 0.0), "no peak"),
        (Law(1_000, 0.25, 0.0), "at most 4.0 times one worker"),
        (Law(1_000, 0.9, 0.5), "One worker is best"),
        (Law(1_000, 0.0, 0.001), "31.6 workers, lies beyond"),
    ],
)
def test_the_title_says_what_more_workers_bring(law: Law, says: str) -> None:
    ax = scalability(law, axes(), most=8)
    assert says in ax.get_title()
    assert ("peak" in words(ax)) == ("One worker" in says)


def test_a_fit_is_drawn_with_its_runs_and_its_band() -> None:
    law = Law(1_000, 0.1, 0.02)
    rates = {n: [law.at(n), 1.05 * law.at(n), math.nan] for n in (1, 2, 3, 4)}
    measured = pd.DataFrame(
        [(n, rate) for n, some in rates.items() for rate in some],
        columns=["value", "commands_per_second"],
    )
    ax = scalability(fit({n: some[:2] for n, some in rates.items()}), axes(), measured)
    assert line(ax, "a run")[0] == [1, 1, 2, 2, 3, 3, 4, 4], "what has no rate is not there"
    assert "95% of the fits" in " ".join(labels(ax))
    assert "off the curve" in ax.get_title()


LAWS = pd.DataFrame(
    {
        "L": [4.1, 60.0],
        "lambda_W": [3.8, 62.0],
        "edges": [0.2, -1.0],
        "lambda": [500.0, 3000.0],
        "W_ms": [8.0, 20.3],
        "difference": [0.02, 0.017],
    }
)


def test_littles_law_is_a_point_a_run() -> None:
    ax = littles_law(LAWS, axes())
    assert line(ax, "a steady run") == ([4.0, 61.0], [4.1, 60.0])
    assert ax.get_title() == "Little's law holds: the worst of 2 runs is 2.0% off"
    assert "500 a second × 8.0 ms" in words(ax)


def test_a_run_off_the_law_is_thrown_out() -> None:
    ax = littles_law(LAWS.assign(difference=[0.02, 0.2]), axes())
    assert line(ax, "thrown out") == ([61.0], [60.0])
    assert ax.get_title() == "Little's law holds in 1 of 2 runs"


def test_nothing_measured_is_nothing_drawn() -> None:
    with pytest.raises(ValueError, match="no run"):
        throughput(pd.DataFrame(), pd.DataFrame(), axes())
    with pytest.raises(ValueError, match="no run"):
        littles_law(pd.DataFrame(), axes())
