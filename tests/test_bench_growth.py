"""``labkit bench memory`` and ``growth``, tiny, on real servers: what is counted; no times."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from msgspec import structs

from labkit import stack
from labkit.cli import main
from labkit.errors import TimedOut
from labkit.experiments.bench import bulk, growth, memory, totals
from labkit.experiments.bench.bulk import Bulk
from labkit.experiments.bench.observer import Observation
from labkit.experiments.bench.subject import subject
from labkit.experiments.bench.totals import Totals, expected, shown
from labkit.experiments.results import to_json
from labkit.experiments.verify.planted_bugs import planted
from labkit.lab import Lab
from labkit.stack import home as labs_home

SECOND = 10**9
MB = 10**6


def bench(monkeypatch: pytest.MonkeyPatch, file: Path, *command: str) -> tuple[int, Any]:
    """Exit code and JSON of a bench, run in this process."""
    monkeypatch.setattr(sys, "argv", ["labkit", "bench", *command, "--json", str(file)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0), json.loads(file.read_text())


def kept(kind: str) -> Path:
    return max((labs_home() / "results" / kind).iterdir())


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("memory", "--commands", "many"), "--commands must be a whole number .* got 'many'"),
        (("memory", "--client", "owl"), "--client must be one of .* got 'owl'"),
        (("growth", "--small", "7"), "--small must be a whole number .* got '7'"),
        (("growth", "--commands", "9000"), "--small must be less than --commands, got 50000"),
        (("growth", "--json", "/"), "--json '/' cannot be written"),
    ],
)
def test_bad_options_are_said_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["labkit", "bench", *command])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert re.search(named, capsys.readouterr().err)


# --- the figures


def run(visible: list[int], projector: list[int] | None = None, wrong: str = "") -> Bulk:
    """A look a second, at which all that is committed is visible; the handler holds a megabyte more
    than the projector."""
    held = projector or [100] * len(visible)
    looks = [
        Observation(n * SECOND, count, count, {}, {"handler": (mb + 1) * MB, "projector": mb * MB})
        for n, (count, mb) in enumerate(zip(visible, held, strict=True))
    ]
    return Bulk(visible[-1], looks, [wrong] if wrong else [], {})


def test_the_ratio_is_that_of_the_long_run_to_the_median_of_the_short_ones() -> None:
    shorts = [run([*range(0, 100, each), 100]) for each in (50, 25, 20)]
    long = run([0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1_000])
    found = growth.summary([*shorts[:2], long, shorts[2]])
    assert found["commands_per_second"] == {"long": 100, "short": 25}
    assert found["ratio"] == 4
    assert found["ratio_interval"] == [2, 5]
    assert found["level"] == 0.75, "three short runs"
    assert "too short to compare: measured for 2 s" in found["too_short"]
    assert found["tenths"] == [100.0] * 10
    assert found["reached"]


def test_a_run_that_took_no_time_has_no_rate() -> None:
    """The clock did not move between its looks."""
    still = run([0, 100])
    still.looks[:] = [structs.replace(look, at=7) for look in still.looks]
    assert math.isnan(still.rate)
    long = run([0, 500, 1_000])
    found = growth.summary([run([0, 50, 100]), still, long, run([0, 50, 100])])
    assert found["ratio_interval"] == [10, 10], "of those that have one"
    assert json.loads(to_json(found))["runs"][1]["commands_per_second"] is None


def test_the_clock_runs_from_the_first_commit() -> None:
    late, ahead = run([0, 0, 0, 50, 100]), run([0, 0, 0, 50, 100])
    assert late.seconds == 2
    ahead.looks[1:3] = [structs.replace(look, committed=100) for look in ahead.looks[1:3]]
    assert ahead.seconds == 4


def test_the_long_run_has_the_customers_of_the_short_ones_anew() -> None:
    placed = list(islice(subject("growth").all(1, lap=1_000), 3_000))
    known = [order.customer_id for order in placed]  # type: ignore[attr-defined]
    news = [len(set(known[lap : lap + 1_000])) for lap in (0, 1_000, 2_000)]
    assert news[0] == news[1] == news[2] == len(set(known)) / 3
    assert len({order.stream for order in placed}) == 3_000


@pytest.mark.parametrize("service", ["orders", "bank"])
def test_the_expected_totals_are_those_of_the_view(
    monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    """Computed in parts, without the log; some commands are refused."""
    measured = subject("growth", service)
    measured = structs.replace(measured, chosen=structs.replace(measured.chosen, options={}))
    with Lab(backend="memory", services=[service]) as lab:
        for command in islice(measured.all(1), 1_500):
            lab.bus.send(command)
        lab.bus.flush()
        while lab.handler.step(0):
            pass
        while lab.projector.step(0):
            pass
        found = expected(measured.service, lambda: islice(measured.all(1), 1_500), 1_500)
        assert found == shown(lab, measured.service, list(found.sums))
        monkeypatch.setattr(totals, "PART", 400)
        assert found == expected(measured.service, lambda: islice(measured.all(1), 1_500), 1_500)


def test_totals_are_told_in_words() -> None:
    assert str(Totals(1_000, {"version": 2_000})) == "1,000 streams with a total of version 2,000"


def test_where_it_slows_down_is_seen() -> None:
    looks = run([0, 100, 200, 300, 400, 500, 550, 600, 650, 700, 750, 1_000]).looks
    found = bulk.rates_of_tenths(looks, 1_000)
    assert found[:5] == [100.0] * 5
    assert found[5:7] == [50.0] * 2
    assert found[8:] == [250.0] * 2
    with pytest.raises(TimedOut, match="1,000 commands became visible, not 2,000"):
        bulk.passing(looks, 2_000)


def test_a_wrong_run_has_no_rate_and_its_growth_no_ratio() -> None:
    lost = run([0, 50, 100], wrong="the view holds 99")
    assert lost.row()["commands_per_second"] is None
    found = growth.summary([run([0, 10, 20]), lost])
    assert (found["ok"], found["ratio"], found["wrong"]) == (False, None, ["the view holds 99"])


def test_growth_is_what_stays_not_a_batch_that_passes() -> None:
    visible = [0, 50, 110, 120, 130, 500, 910, 920, 1_000]
    found = memory.summary(run(visible, [60, 70, 100, 180, 100, 90, 110, 400, 120]))
    assert (found["handler_mb"], found["projector_mb"]) == (401, 400)
    assert found["projector_growth_mb"] == 20
    assert found["targets"]["projector_growth_mb"]["reached"]
    assert not found["targets"]["projector_mb"]["reached"]
    assert found["peaks_of_tenths_mb"]["projector"] == [
        70,
        180,
        90,
        90,
        90,
        110,
        110,
        110,
        110,
        400,
    ]


def test_a_leak_misses_the_target() -> None:
    found = memory.summary(run(list(range(0, 1_001, 100)), list(range(50, 160, 10))))
    assert found["projector_growth_mb"] == 80
    assert not found["targets"]["projector_growth_mb"]["reached"]


# --- on real servers


@pytest.mark.servers
@pytest.mark.usefixtures("topics_dropped")
def test_a_tiny_bench_of_memory(
    servers: stack.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new" / "m.json"
    code, found = bench(monkeypatch, file, "memory", "--commands", "2000")
    assert code == 0
    assert (found["ok"], found["run"]["wrong"]) == (True, [])
    least, most = sorted([found["handler_mb"], found["projector_mb"]])
    assert 20 < least <= most < 400
    assert set(found["targets"]) <= set(found)
    for role in ("handler", "projector"):
        assert max(found["peaks_of_tenths_mb"][role]) <= found[f"{role}_mb"]
    assert {"labkit", "kafka-python", "kafka", "mongodb"} <= set(found["versions"])
    looks = pd.read_parquet(kept("bench-memory") / "looks.parquet")
    assert looks["memory.handler"].max() == pytest.approx(found["handler_mb"] * MB, rel=0.01)


@pytest.mark.servers
@pytest.mark.slow
def test_a_handler_that_died_once_is_told(
    servers: stack.Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is lost by it, but what it held before it died is gone."""
    with planted("death"):
        code, found = bench(
            monkeypatch,
            tmp_path / "m.json",
            "memory",
            "--commands",
            "30000",
            "--client",
            "confluent",
        )
    assert code == 1
    restarted, owners = found["run"]["wrong"]
    assert restarted == "the handler was started 2 times"
    assert owners.startswith("orders.handler:0, ") or "had more than one owner" in owners
    assert restarted in capsys.readouterr().err


@pytest.mark.servers
@pytest.mark.slow
def test_a_tiny_bench_of_growth(
    servers: stack.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "BEFORE", 1)
    monkeypatch.setattr(growth, "AFTER", 1)
    file = tmp_path / "new" / "g.json"
    code, found = bench(monkeypatch, file, "growth", "--commands", "3000", "--small", "1000")
    assert code == 0
    assert [one["commands"] for one in found["runs"]] == [1_000, 3_000, 1_000]
    assert found["settings"]["order"] == [1_000, 3_000, 1_000]
    long, short = found["commands_per_second"]["long"], found["commands_per_second"]["short"]
    assert found["ratio"] == pytest.approx(long / short, abs=0.01)
    low, high = found["ratio_interval"]
    assert 0 < low <= found["ratio"] <= high
    assert len(found["tenths"]) == 10
    assert {"labkit", "confluent-kafka", "kafka", "mongodb"} <= set(found["versions"])
    looks = pd.read_parquet(kept("bench-growth") / "looks.parquet")
    assert looks.groupby("run")["visible"].max().tolist() == [1_000, 3_000, 1_000]


@pytest.mark.servers
@pytest.mark.slow
def test_a_lost_command_is_seen(
    servers: stack.Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(growth, "BEFORE", 0)
    monkeypatch.setattr(growth, "AFTER", 1)
    with planted("passed-over"):
        code, found = bench(
            monkeypatch, tmp_path / "g.json", "growth", "--commands", "2000", "--small", "1000"
        )
    assert code == 1
    assert (found["ok"], found["ratio"]) == (False, None)
    assert all("the view holds" in one["wrong"][0] for one in found["runs"])
    assert "not 2,000 streams with" in capsys.readouterr().err
