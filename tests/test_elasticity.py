"""The bench of elasticity: its figures and its plot, on an imagined system; and once for real."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
from msgspec import structs
from typer.testing import CliRunner

from labkit import stack
from labkit.cli import bench_elasticity
from labkit.cli.main import app
from labkit.errors import UsageError
from labkit.experiments.bench import elasticity, elasticity_imagined
from labkit.experiments.bench import elasticity_figures as figures
from labkit.experiments.bench.elasticity import BY_LAG, CAPACITY, ELASTIC, FOUR, ONE, Arm
from labkit.experiments.load.offer import Loaded
from labkit.plots import elasticity as plot
from labkit.run.elastic import Look

imagine = cache(elasticity_imagined.imagine)


def row(arm: Arm, load: elasticity.Load = "peak") -> dict[str, float]:
    return figures.row(*imagine(arm, load), ELASTIC.up_above)


def test_scaled_by_lag_it_is_cheaper_than_many_and_sooner_normal_than_one() -> None:
    one, many, scaled = row(ONE), row(FOUR), row(BY_LAG)
    assert one["worker_seconds"] == pytest.approx(60 + one["drain_s"], abs=0.5)
    assert many["worker_seconds"] == pytest.approx(240, abs=2)
    assert 60 < scaled["worker_seconds"] < 180
    assert many["reaction_s"] == 0
    assert 0 < scaled["reaction_s"] < one["reaction_s"] / 2
    assert scaled["max_lag_s"] < one["max_lag_s"] / 2
    assert (one["moves"], many["moves"]) == (0, 0)
    assert scaled["most_workers"] > 2
    assert scaled["moves"] >= 4, "up and down"


def test_by_cpu_nothing_is_done_about_the_lag() -> None:
    cpu, one = row(elasticity.CPU), row(ONE)
    assert cpu["moves"] == 0
    assert cpu["reaction_s"] == one["reaction_s"]
    assert cpu["cpu_while_above"] == pytest.approx(0.05)


def test_the_partitions_are_a_ceiling() -> None:
    few, scaled = row(elasticity.CEILING), row(BY_LAG)
    assert few["most_workers"] == elasticity.FEW_PARTITIONS
    assert few["reaction_s"] > scaled["reaction_s"]


def test_the_days_need_more_than_one_worker_at_first() -> None:
    one, scaled = row(ONE, "days"), row(BY_LAG, "days")
    assert scaled["reaction_s"] < one["reaction_s"]
    _, looks = imagine(BY_LAG, "days")
    assert [look.wanted for look in looks][-1] < max(look.wanted for look in looks)


def test_the_lag_is_the_age_of_the_oldest_that_is_not_visible() -> None:
    commands = pd.DataFrame({"intended": [0.0, 1.0, 2.0], "visible": [0.1, 9.0, 3.0]}) * 1e9
    at, lags = figures.lag_over_time(commands, (0.0, 10e9))
    seen = dict(zip((at / 1e9).round(2), lags.round(3), strict=True))
    assert (seen[0.5], seen[5.0], seen[8.75], seen[9.25]) == (0, 4, 7.75, 0)
    assert list(figures.above(at, lags, 2.0)) == [(3.25, 9.0)]


def test_a_short_break_is_no_end_of_an_overload() -> None:
    at = np.arange(0, 10, figures.GRID_SECONDS) * 1e9
    lags = np.where((at / 1e9 >= 1) & (at / 1e9 < 8), 5.0, 0.0)
    lags[at == 4e9] = 0.0
    assert list(figures.above(at, lags, 1.0)) == [(1, 8)]
    lags[(at >= 4e9) & (at < 6e9)] = 0.0
    assert len(list(figures.above(at, lags, 1.0))) == 2


def test_a_rebalance_shows_as_a_dip_and_a_stall() -> None:
    """10 commits a second; after the change at 5 s none for 2 s, and then 20."""
    heard = np.concatenate([np.arange(0, 5, 0.1), np.arange(7.05, 15, 0.05)])
    commands = pd.DataFrame({"heard": heard * 1e9, "intended": heard * 1e9})
    loaded = Loaded(elasticity.plan_of("peak", 20, 1), commands, pd.DataFrame(), (0, 20e9), {}, 1)
    looks = [Look(1.0, 0, 1, 1, 0.1), Look(5.0, 3, 1, 2, 0.1), Look(30.0, 0, 2, 1, 0.1)]
    (move,) = figures.moves(loaded, looks)
    assert move["dip"] == 1
    assert move["stall_s"] == pytest.approx(2.05)
    assert (move["workers"], move["to"], move["before_per_s"]) == (1, 2, pytest.approx(10, abs=0.4))
    assert figures.worker_seconds(looks, (0, 20e9)) == 4 + 2 * 15


def drawn() -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, courses = [], []
    for number in range(2):
        for arm in (ONE, FOUR, BY_LAG):
            loaded, looks = imagine(arm)
            late = ["late"] if (number, arm) == (1, ONE) else []
            loaded = structs.replace(loaded, trouble=late)
            about = {"load": "peak", "arm": arm.name, "round": number}
            rows.append(about | figures.row(loaded, looks, ELASTIC.up_above))
            courses.append(figures.course(loaded, looks).assign(arm=arm.name))
    return pd.DataFrame(rows), pd.concat(courses[:3])


def test_the_summary_counts_the_runs_that_count() -> None:
    runs = drawn()[0]
    arms = [("peak", arm.name) for arm in (BY_LAG, ONE, FOUR)]
    table = figures.summary(runs, arms).set_index("arm")
    assert table.index.tolist() == [BY_LAG.name, ONE.name, FOUR.name]
    assert table.loc[ONE.name, ["runs", "thrown_out"]].tolist() == [1, 1]
    assert math.isnan(table["reaction_s_low"][ONE.name])
    assert table["cost_to_many"][ONE.name] == pytest.approx(0.28, abs=0.02)
    assert table["reaction_s_low"][BY_LAG.name] == table["reaction_s"][BY_LAG.name]
    assert table["level"][BY_LAG.name] == 0.5


def test_the_plot_says_what_it_shows() -> None:
    courses = drawn()[1]
    arms = [ONE.name, FOUR.name, BY_LAG.name]
    figure = plot.elasticity(courses, arms, capacity=CAPACITY, bound_s=ELASTIC.up_above)
    upper, lower = figure.axes[:3], figure.axes[3:]
    assert [ax.get_title().partition("\n")[0] for ax in upper] == arms
    capacity = upper[1].lines[0].get_ydata()
    assert set(np.asarray(capacity)) == {4 * CAPACITY}
    lag = np.asarray(lower[2].lines[0].get_ydata(), float)
    assert lag.max() == courses[courses["arm"] == BY_LAG.name]["lag_s"].max()
    title = figure.get_suptitle()
    assert title.startswith("by time lag: ")
    assert "of the worker seconds of “fixed, 4 workers”" in title
    with pytest.raises(ValueError, match="got no course of 'moon'"):
        plot.elasticity(courses, ["moon"], capacity=CAPACITY, bound_s=1.0)


def test_the_help_names_the_loads() -> None:
    assert bench_elasticity.LOADS == elasticity.LOADS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--load", "moon"], "--load must be one of peak, days, got 'moon'"),
        (["--seconds", "5"], "--seconds must be a number from 20 to 120, got '5'"),
        (["--rounds", "1"], "--rounds must be a whole number from 2 to 1000, got '1'"),
    ],
)
def test_bad_input_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(app, ["bench", "elasticity", *arguments], catch_exceptions=False)
    assert says in str(caught.value)


@pytest.mark.servers
@pytest.mark.slow
def test_a_small_bench_on_real_servers(servers: stack.Servers) -> None:
    """Whether its runs count is a matter of the machine; that nothing is lost is not."""
    found = elasticity.stretch(
        "lab", loads=["peak"], seconds=20, rounds=2, arms={"peak": (BY_LAG,)}
    )
    assert found.runs["red"].tolist() == ["", ""]
    assert found.ok
    assert (found.runs["worker_seconds"] > 20).all()
    assert np.isfinite(found.runs["max_lag_s"]).all(), "all became visible"
    report = json.loads((found.folder / "report.json").read_bytes())
    assert [arm["arm"] for arm in report["arms"]] == [BY_LAG.name]
    assert report["settings"]["arms"]["peak"][0]["bounds"]["most"] == elasticity.MANY
    kept = pd.read_parquet(found.folder / "courses.parquet")
    plot.elasticity(kept[kept["round"] == 0], [BY_LAG.name], capacity=CAPACITY, bound_s=1.5)
    assert found.report["folder"] == str(found.folder)
