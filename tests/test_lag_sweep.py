"""``labkit bench lag``: one factor, a load for each value, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from labkit import stack
from labkit.cli import lag
from labkit.cli.main import app
from labkit.errors import UsageError
from labkit.experiments.load import lag_sweep
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.imagined import imagine


def test_a_row_says_what_a_run_found() -> None:
    loaded, _ = imagine(Plan(rate=500.0, seconds=4.0, warm_up=1.0))
    found = lag_sweep.row(loaded)
    assert found["at_least_p50"] < found["p50"] < found["p99"] <= found["max"] * 1.01
    assert found["p50"] < found["reply_p50"] + found["p50"]
    assert found["ok"]
    assert found["never"] == 0
    assert found["handler_batch"] * 50 < len(loaded.commands)


def test_runs_that_do_not_count_are_thrown_out() -> None:
    rows = [(1, 5.0, True), (1, 7.0, True), (1, 99.0, False), (2, 9.0, True), (2, 50.0, False)]
    runs = pd.DataFrame(rows, columns=["projectors", "p50", "ok"])
    runs = runs.assign(p99=runs["p50"] * 2, reply_p50=3.0)
    found = lag_sweep.summary(runs, "projectors")
    assert found["p50"].to_list() == [6, 9]
    assert found["thrown_out"].to_list() == [1, 1]
    assert found["p50_low"][0] == 5
    assert found["p50_high"][0] == 7
    assert found["level"][0] == 0.5, "two runs"
    assert found["p50_low"].isna().to_list() == [False, True], "one run has no interval"


def test_the_help_names_the_factors() -> None:
    assert tuple(lag_sweep.FACTORS) == lag.FACTORS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["moon"], "factor must be one of rate, batch_size, linger, projectors, write_concern"),
        (["rate", "--rounds", "1"], "--rounds must be a whole number from 2 to 1000, got '1'"),
        (["rate", "--rate", "fast"], "--rate must be a number from 1 to 1000000, got 'fast'"),
        (["rate", "--seconds", "0"], "--seconds must be a number from 1 to 3600, got '0'"),
        (["rate", "--client", "pigeon"], "pigeon"),
    ],
)
def test_bad_input_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(app, ["bench", "lag", *arguments], catch_exceptions=False)
    assert says in str(caught.value)


@pytest.mark.servers
@pytest.mark.slow
def test_a_small_sweep_on_real_servers(servers: stack.Servers, tmp_path: Path) -> None:
    file = tmp_path / "lag.json"
    plan = ["--rate", "100", "--seconds", "2", "--rounds", "2"]
    CliRunner().invoke(app, ["bench", "lag", "write_concern", *plan, "--json", str(file)])
    report = json.loads(file.read_bytes())
    assert [row["write_concern"] for row in report["values"]] == ["1", "majority"]
    assert report["settings"]["plan"]["rate"] == 100
    (folder,) = (stack.home() / "results" / "lag").iterdir()
    runs = pd.read_parquet(folder / "runs.parquet")
    assert sorted(zip(runs["round"], runs["write_concern"], strict=True)) == [
        *((0, "1"), (0, "majority"), (1, "1"), (1, "majority"))
    ]
    assert sorted(runs["order"]) == [0, 1, 2, 3]
    assert (runs["never"] == 0).all()
