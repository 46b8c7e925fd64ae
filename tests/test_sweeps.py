"""Sweeps, tiny, on real servers: what is counted, what is thrown out; no times."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest

from labkit import stack
from labkit.cli import sweep as sweep_cli
from labkit.errors import UsageError
from labkit.experiments.bench import sweeps
from labkit.experiments.bench.drain import Arm, Drained, drain
from labkit.experiments.bench.observer import Observation
from labkit.experiments.bench.preload import repeated
from labkit.experiments.bench.subject import subject
from labkit.experiments.bench.sweeps import FACTORS, arms_of, summary, sweep
from labkit.experiments.bench.window import rate, window
from labkit.experiments.verify.history import History
from labkit.messages import Answer, Command, Commit, Token
from labkit.run.settings import CLIENTS
from labkit.services.orders import CancelOrder, PlaceOrder
from tests.test_cli import labkit, labkit_here, refused

SECOND = 10**9

# --- the window that counts


def looks(*visible: int, step: float = 0.1) -> list[Observation]:
    return [
        Observation(round(n * step * SECOND), count, count, {}) for n, count in enumerate(visible)
    ]


def test_the_warm_up_is_cut() -> None:
    found = window(looks(0, 5, 30, 60, 100), 100, 0, "visible")
    assert found is not None
    assert (found.first.visible, found.last.visible) == (30, 100)
    assert rate(found, "visible") == pytest.approx(70 / 0.2)


def test_what_happened_before_all_owned_is_cut() -> None:
    found = window(looks(0, 20, 40, 60, 100), 100, round(0.15 * SECOND), "visible")
    assert found is not None
    assert found.first.visible == 40
    assert found.steady


def test_a_count_begins_where_it_has_just_risen() -> None:
    """Or the pause before the next batch would not count, and a batch would be for free."""
    found = window(looks(0, 40, 40, 40, 80, 100), 100, round(0.15 * SECOND), "committed")
    assert found is not None
    assert found.first.committed == 40
    assert found.first.at == round(0.1 * SECOND)
    assert not found.steady, "it begins before the workers owned their partitions"


def test_what_follows_the_end_does_not_count() -> None:
    found = window(looks(0, 20, 60, 100, 100, 100), 100, 0, "visible")
    assert found is not None
    assert found.seconds == pytest.approx(0.2)


def test_a_window_of_less_than_half_is_not_steady() -> None:
    found = window(looks(0, 20, 60, 80, 100), 100, round(0.25 * SECOND), "visible")
    assert found is not None
    assert (found.first.visible, found.steady) == (20, False)


def test_all_in_one_look_still_has_a_window() -> None:
    found = window(looks(0, 0, 100), 100, 0, "visible")
    assert found is not None
    assert (found.seconds, found.steady) == (pytest.approx(0.1), False)


def test_what_never_came_has_no_rate() -> None:
    assert math.isnan(rate(window(looks(0, 50, 99), 100, 0, "visible"), "visible"))


# --- what is sent


def orders(count: int, payload: int, seed: int) -> list[tuple[str, Command]]:
    commands = subject("sweep").all(seed, payload=payload)
    return list(repeated(commands, count, seed))


def test_the_load_is_the_same_for_the_same_seed() -> None:
    assert orders(500, 0, 1) == orders(500, 0, 1) != orders(500, 0, 2)


def test_one_command_in_a_hundred_comes_twice() -> None:
    ids = [id for id, _ in orders(5_000, 0, 1)]
    assert len(ids) == 5_000
    assert 20 < len(ids) - len(set(ids)) < 80


def test_a_payload_rides_in_every_second_command() -> None:
    commands = [command for _, command in orders(1_000, 300, 1)]
    cancelled = [command for command in commands if isinstance(command, CancelOrder)]
    assert all(command.reason == "x" * 300 for command in cancelled)
    assert len(cancelled) == pytest.approx(500, abs=20)
    placed = {command.order_id for command in commands if isinstance(command, PlaceOrder)}
    assert {command.order_id for command in cancelled} <= placed


def test_there_are_more_than_the_purchases() -> None:
    streams = {command.stream for _, command in orders(80_000, 0, 1)}
    assert len(streams) > 75_000, "again, and as other orders"


# --- the arms


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("client", CLIENTS)
def test_arms_differ_in_one_thing(factor: str, client: str) -> None:
    arms = arms_of(factor, client)
    assert len(arms) >= 2
    assert len({arm.name for arm in arms}) == len({arm.value for arm in arms}) == len(arms)
    places: dict[str, set[Any]] = {"workers": set(), "payload": set()}
    for arm in arms:
        for name, value in {**arm.settings, "workers": arm.workers, "payload": arm.payload}.items():
            places.setdefault(name, set()).add(value)
    assert sum(len(values) > 1 for values in places.values()) == 1


def test_small_batches_drain_fewer_commands() -> None:
    counts = [arm.commands for arm in arms_of("batch", commands=50_000)]
    assert counts == [600, 6_000, 50_000, 50_000, 50_000]


def test_the_help_names_all_factors() -> None:
    assert tuple(FACTORS) == sweep_cli.FACTORS


def test_bad_options_are_said_before_the_run(home: Path, tmp_path: Path) -> None:
    refused(labkit_here("bench", "sweep", "luck"), "luck", "batch, partitions")
    refused(labkit_here("bench", "sweep", "batch", "--rounds", "1"), "--rounds", "'1'")
    refused(labkit_here("bench", "sweep", "batch", "--commands", "many"), "--commands", "many")
    refused(labkit_here("bench", "sweep", "batch", "--client", "owl"), "owl", "kafka-python")
    refused(labkit_here("bench", "sweep", "batch", "--json", str(tmp_path)), str(tmp_path))


def test_a_service_that_cannot_be_swept_is_refused() -> None:
    with pytest.raises(UsageError, match=r"workload 'zipf' of service 'bank' has no .*'payload'"):
        arms_of("payload", service="bank")
    with pytest.raises(UsageError, match="unknown service or process 'owl'"):
        arms_of("batch", service="owl")
    assert {arm.subject.name for arm in arms_of("batch", service="bank")} == {"bank"}


def test_what_compares_nothing_is_refused() -> None:
    one = Arm(name="one", value=1, commands=100)
    with pytest.raises(UsageError, match="a sweep compares arms"):
        sweep("lab", "batch", [one])
    with pytest.raises(UsageError, match="a sweep compares arms"):
        sweep("lab", "batch", [one, one])
    with pytest.raises(UsageError, match="at least 2 rounds, got 1"):
        sweep("lab", "batch", arms_of("batch"), rounds=1)


# --- what is said of the runs


def runs(rates: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "arm": arm,
                "value": number,
                "round": round,
                "green": not math.isnan(rate),
                "commands": 1_000,
                "commands_per_second": rate,
                "visible_per_second": 100.0,
                "seconds": 10.0,
                "transactions": 10,
                "cpu_handler_s": 2.0,
                "cpu_kafka_s": 3.0,
            }
            for number, (arm, some) in enumerate(rates.items())
            for round, rate in enumerate(some)
        ]
    ).sample(frac=1, random_state=1)


def test_a_figure_is_the_median_of_the_green_runs_with_its_interval() -> None:
    found = summary(runs({"a": [100, 110, 90], "b": [200, math.nan, 220]}), ["a", "b"])
    a, b = found.to_dict("records")
    assert (a["commands_per_second"], a["thrown_out"]) == (100, 0)
    assert (a["low"], a["high"], a["level"]) == (90, 110, 0.75), "three runs say no more"
    assert b["level"] == 0.5, "of the two green ones"
    assert (b["commands_per_second"], b["thrown_out"]) == (210, 1)
    assert a["per_transaction"] == 100
    assert a["core_seconds_per_1000"] == pytest.approx(5.0)


def test_ratios_are_made_within_a_round() -> None:
    """The machine was twice as fast in the second round: that is no difference of the arms."""
    found = summary(runs({"a": [100, 200, 150], "b": [150, 300, 225]}), ["a", "b"])
    b = found.to_dict("records")[1]
    assert (b["ratio"], b["ratio_low"], b["ratio_high"]) == (1.5, 1.5, 1.5)


def test_without_a_green_run_there_is_no_figure() -> None:
    found = summary(runs({"a": [100, 110], "b": [math.nan, math.nan]}), ["a", "b"])
    b = found.to_dict("records")[1]
    assert all(math.isnan(b[name]) for name in ("commands_per_second", "low", "ratio"))
    assert b["thrown_out"] == 2


def test_a_history_reads_its_answers_out_of_the_log() -> None:
    def commit(offset: int, **more: Any) -> Commit[Any]:
        return Commit("s", "c", 0, offset, more.pop("outcome", "accepted"), 1, 1, **more)

    history = History()
    operations = [history.invoke(command) for _, command in orders(3, 0, 1)]
    for offset, operation in enumerate(operations):
        operation.token = Token("orders", 0, offset)
    again = commit(0, outcome="repeated", repeats=Answer("refused", 9))
    history.read("orders", [commit(0), again, commit(2, outcome="parked"), commit(2)])
    assert [operation.status for operation in operations] == ["ok", "unknown", "ok"]
    assert operations[0].answer == Answer("accepted", 1), "the first final one"
    assert operations[2].answer == Answer("accepted", 1), "and no other"


# --- on real servers

SMALL = [
    Arm(name="50 a batch", value=50, commands=600, settings={"batch_size": 50}),
    Arm(name="300 a batch", value=300, commands=600, settings={"batch_size": 300}),
]


@pytest.mark.servers
@pytest.mark.slow
def test_a_tiny_sweep(servers: stack.Servers, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(sweeps, "drain", lambda name, arm, *rest: told(drawn, name, arm, *rest))
    found = sweep("lab", "batch", SMALL, rounds=2, seed=5)
    rng = Random(5)
    expected = [arm.name for _ in range(2) for arm in rng.sample(SMALL, 2)]
    assert drawn == expected == found.runs["arm"].tolist()
    assert found.ok
    assert found.runs["green"].all()
    small, large = (found.runs[found.runs["arm"] == arm.name] for arm in SMALL)
    assert small["transactions"].between(12, 24).all()
    assert large["transactions"].between(2, 8).all()
    assert (small["markers"] >= small["transactions"]).all()
    assert (found.runs["commands_per_second"] > 0).all()
    assert found.arms["commands_per_second"].notna().all()
    report = json.loads((found.folder / "report.json").read_text())
    assert {"settings", "seed", "versions", "machine", "load_average"} <= report.keys()
    assert report["arms"]["50 a batch"]["thrown_out"] == 0
    assert found.folder.is_relative_to(home)
    kept = pd.read_parquet(found.folder / "runs.parquet")
    assert kept["commands_per_second"].tolist() == found.runs["commands_per_second"].tolist()
    assert len(pd.read_parquet(found.folder / "looks.parquet")) >= 4


def told(drawn: list[str], name: str, arm: Arm, *rest: Any) -> Drained:
    drawn.append(arm.name)
    return drain(name, arm, *rest)


@pytest.mark.servers
@pytest.mark.slow
def test_an_arm_with_a_planted_bug_has_no_rate(servers: stack.Servers) -> None:
    arm = Arm(name="forgetful", value=1, commands=600, plant="no-dedupe")
    found = drain("lab", arm, 1)
    assert "C2" in found.row["red"]
    assert not found.row["green"]
    assert math.isnan(found.row["commands_per_second"])
    assert found.row["visible_per_second"] > 0, "it was fast, and does not count"


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(("delivery", "red"), [("exactly_once", ""), ("at_most_once", "C1")])
def test_what_a_death_costs_is_up_to_the_delivery_level(
    servers: stack.Servers, delivery: str, red: str
) -> None:
    settings = {"delivery": delivery, "batch_size": 100}
    arm = Arm(name=delivery, value=delivery, commands=800, settings=settings, plant="death")
    assert drain("lab", arm, 1).row["red"] == red


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(
    "arm",
    [
        Arm(name="confluent", value=1, commands=600, settings={"client": "confluent"}),
        Arm(name="workers", value=2, commands=600, workers=2),
        Arm(name="payload", value=500, commands=600, payload=500),
        Arm(name="mongodb", value="mongodb", commands=400, settings={"log": "mongodb"}),
    ],
)
def test_every_kind_of_arm_is_green(servers: stack.Servers, arm: Arm) -> None:
    row = drain("lab", arm, 1).row
    assert (row["red"], row["green"]) == ("", True)
    assert row["visible_per_second"] > 0
    roles = {"cpu_handler_s", "cpu_projector_s", "cpu_kafka_s", "cpu_mongo_s"}
    assert roles <= row.keys()
    assert (row["bytes_per_command"] > 400) == (arm.payload > 0)


@pytest.mark.servers
@pytest.mark.slow
def test_the_command_says_what_it_threw_out(
    servers: stack.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in all workers: every run is red, the JSON is written, the exit code is 1."""
    monkeypatch.setenv("LABKIT_PLANT", "no-dedupe")
    file = tmp_path / "s.json"
    options = ("--rounds", "2", "--commands", "400", "--json", str(file))
    done = labkit("bench", "sweep", "client", *options, timeout=200)
    assert done.returncode == 1, done.stderr
    assert "turned red; no rate" in done.stdout
    found = json.loads(file.read_text())
    assert found["ok"] is False
    assert [arm["thrown_out"] for arm in found["arms"].values()] == [2, 2]
    assert {arm["commands_per_second"] for arm in found["arms"].values()} == {None}
