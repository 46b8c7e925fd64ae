"""``labkit bench cost``: its figures, its verdict, its options; and once, tiny, on real servers."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit.cli import main
from labkit.errors import UsageError
from labkit.experiments.cost import figures, offering, outcome, size
from labkit.experiments.cost.agreement import AGREE
from labkit.experiments.cost.arm import ARMS, RIGHT
from labkit.experiments.verify.verdict import Verdict, verdict

GREEN, RED = verdict(3, []), verdict(3, ["lost"])


def bench(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """The exit code of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["labkit", "bench", "cost", *options])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0)


# --- bad input


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--runs", "0"), "--runs must be a whole number from 1 .* got '0'"),
        (("--writers", "0"), "--writers must be a whole number from 1 .* got '0'"),
        (("--writers", "-4"), "--writers must be a whole number from 1 .* got '-4'"),
        (("--seconds", "0"), "--seconds must be a number from 0.2 to 30, got '0'"),
        (("--rate", "0"), "--rate must be a number from 1 .* got '0'"),
        (("--only", "contention,spead"), "--only must be of latency, .* got 'spead'"),
        (("--client", "owl"), "--client must be one of .* got 'owl'"),
        (("--json", "/"), "--json '/' cannot be written"),
    ],
)
def test_bad_options_are_said_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: tuple[str, str],
    named: str,
) -> None:
    assert bench(monkeypatch, *option) == 2
    assert re.search(named, capsys.readouterr().err)


def test_a_rate_that_the_clients_cannot_offer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offering, "ability", lambda: 1_000.0)
    offering.check_rate(999)
    with pytest.raises(
        UsageError, match=r"--rate 1001 is more than the clients can offer .* 1,000"
    ):
        offering.check_rate(1_001)


def test_it_is_refused_before_servers_are_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(offering, "ability", lambda: 1_000.0)
    monkeypatch.setattr("labkit.stack.borrowed", lambda *_: pytest.fail("servers"))
    assert bench(monkeypatch, "--rate", "2000") == 2
    assert "--rate 2000 is more than the clients can offer" in capsys.readouterr().err


def test_the_ability_is_that_of_an_arm_that_does_nothing() -> None:
    assert offering.ability() > 10


# --- the figures


def rows(**each: dict[str, list[float]]) -> list[dict[str, Any]]:
    """By arm and figure, the values of the runs."""
    return [
        {"run": run, "arm": arm, **{name: values[run] for name, values in found.items()}}
        for arm, found in each.items()
        for run in range(len(next(iter(found.values()))))
    ]


def test_two_arms_are_compared_within_each_run() -> None:
    """The machine was ten times as slow in the second run: that is no difference of the arms."""
    crud = {"write_p50_ms": [2.0, 20, 2, 2, 2, 2], "writes_per_s": [10.0, 30, 20, 20, 20, 20]}
    labkit = {"write_p50_ms": [4.0, 40, 4, 4, 4, 4], "writes_per_s": [20.0] * 6}
    found = figures.summary(rows(crud=crud, labkit=labkit))
    write = found["write_p50_ms"]
    assert write["arms"]["crud"]["interval"] == [2, 20]
    assert write["crud_to_labkit"]["ratio"] == 0.5
    assert write["crud_to_labkit"]["interval"] == [0.5, 0.5]
    assert write["crud_to_labkit"]["winner"] == "crud"
    assert found["writes_per_s"]["crud_to_labkit"]["winner"] == "even", "the interval holds 0"
    assert [won["figure"] for won in figures.wins(found, "crud")] == ["write_p50_ms"]
    assert figures.wins(found, "labkit") == []


@pytest.mark.parametrize(
    ("figure", "crud", "winner"),
    [
        ("writes_per_s", 30.0, "crud"),
        ("writes_per_s", 10.0, "labkit"),
        ("stale_share", 0.0, "crud"),
        ("hot_64_conflicts", 1.0, ""),
        ("past_answered", 20.0, "even"),
    ],
)
def test_more_or_less_is_better(figure: str, crud: float, winner: str) -> None:
    found = figures.summary(rows(crud={figure: [crud] * 2}, labkit={figure: [20.0] * 2}))
    assert found[figure]["crud_to_labkit"]["winner"] == winner


def test_what_an_arm_has_no_figure_for_is_not_compared() -> None:
    found = figures.summary(rows(crud={"past_ms": [math.nan]}, labkit={"past_ms": [3.0]}))
    assert found["past_ms"]["crud_to_labkit"]["winner"] == ""
    assert list(found["past_ms"]["arms"]) == ["labkit"]


# --- the verdict


def judged(**wrong: Verdict) -> dict[str, Any]:
    """One run in which the naive arm is red and the others are green, but for ``wrong``."""
    usual = {arm: RED if arm == "naive" else GREEN for arm in ARMS} | wrong
    each = {"latency_s": 5.0, "write_p50_ms": 1.0, "resent": 7}
    found = rows(**{arm: {name: [value] for name, value in each.items()} for arm in ARMS})
    return outcome.judge(found, {arm: [{"C9": one}] for arm, one in usual.items()}, 5.0)


def test_a_bench_is_right_if_only_the_naive_arm_is_red() -> None:
    found = judged()
    assert found["ok"]
    assert found["wrong"] == []
    assert found["anomalies"] == {"C9": [1]}
    assert found["too_short"] == {}


@pytest.mark.parametrize("arm", RIGHT)
def test_an_arm_that_claims_to_be_right_and_is_not_fails_the_bench(arm: str) -> None:
    found = judged(**{arm: RED})
    assert not found["ok"]
    assert found["wrong"] == [f"{arm}, run 1: C9: lost"]


def test_a_naive_arm_without_an_anomaly_has_measured_nothing() -> None:
    found = judged(naive=GREEN)
    assert not found["ok"]
    assert "7 commands were sent again and writers met: it measured nothing" in found["wrong"][0]


def test_a_short_measurement_is_named() -> None:
    found = outcome.judge(rows(crud={"latency_s": [4.0, 4.1]}), {arm: [] for arm in ARMS}, 4.0)
    assert found["too_short"] == {"latency": 4.0}
    assert found["not_sustained"] == []


def test_a_rate_that_an_arm_does_not_sustain_is_said() -> None:
    each = {"crud": {"latency_s": [5.0, 5.1]}, "labkit": {"latency_s": [5.0, 6.5]}}
    found = outcome.judge(rows(**each), {arm: [] for arm in ARMS}, 5.0)
    assert found["not_sustained"] == ["labkit"]


# --- the size of an arm


def test_sizes_are_counted_from_the_source() -> None:
    found = size.sizes()
    assert found["naive"].own_lines < found["crud"].own_lines < found["view"].own_lines
    assert found["view"].own_lines < found["labkit"].own_lines < found["labkit"].lines
    assert "kafka" in found["labkit"].others
    assert "kafka" not in found["crud"].others
    assert "pymongo" in found["crud"].others
    crud = size._closure(size.ENTRIES["crud"])
    assert "labkit.adapters.mongo" in crud
    assert "labkit.experiments.cost.row" in crud
    assert not any(m.startswith(("labkit.write", "labkit.read", "labkit.lab")) for m in crud)
    labkit = size._closure(size.ENTRIES["labkit"])
    assert {"labkit.write.decisions", "labkit.adapters.kafka_python_log"} <= labkit
    assert "labkit.query.bus" not in labkit


def test_the_lists_of_what_to_know_are_of_all_arms() -> None:
    for arm in ARMS:
        known = size.to_know(arm)
        assert all(known[what] for what in ("runs", "concepts", "failure_modes"))


# --- on real servers


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.timeout(900)
def test_the_bench_runs_on_real_servers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "cost.json"
    tiny = ("--runs", "1", "--seconds", "0.5", "--rate", "20", "--writers", "4")
    assert bench(monkeypatch, *tiny, "--json", str(file)) == 0
    found = json.loads(file.read_text())
    assert found["ok"]
    assert next(iter(found)) == "wins"
    assert found["anomalies"], "the naive arm went wrong"
    whole = found["figures"]
    assert set(figures.FIGURES) <= set(whole)
    once = {arm: whole["effects"]["arms"][arm]["median"] for arm in ("crud", "view", "labkit")}
    assert set(once.values()) == {1.0}
    assert whole["effects"]["arms"]["naive"]["median"] > 1
    assert whole["stale_share"]["arms"]["crud"]["median"] == 0
    apart = {arm: whole["apart_share"]["arms"][arm]["median"] for arm in AGREE}
    assert apart["crud"] == 0
    assert apart["outbox"] > 0
    assert apart["labkit"] > 0
    assert whole["past_answered"]["arms"]["labkit"]["median"] == 1
    assert whole["second_past"]["arms"]["labkit"]["median"] == 1
    checkers = found["checkers"]["labkit"][0]
    assert all(one["ok"] and one["checked"] for one in checkers.values())
    out = capsys.readouterr().out
    assert out.index("Where CRUD is better") < out.index("Where labkit is better")
