"""The bench of peers, tiny, on real servers: right documents, a rate each, planted bugs."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from importlib import util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from msgspec import structs

from benchmarks import peers
from benchmarks.peers import bare, contestants, job, running
from benchmarks.peers.contestants import CONTESTANTS
from benchmarks.peers.job import Job
from benchmarks.peers.running import Ran
from labkit import stack
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.cli import main
from labkit.errors import UsageError
from labkit.experiments.bench.job import event_of
from labkit.ports.store import Document
from labkit.stack import home as labs_home
from tests.test_cli import labkit_here, refused

TINY = ("--commands", "2000", "--fast-commands", "3000", "--rounds", "1")
#: As the issue names them.
NAMES = {
    *("bare-kafka-python", "bare-confluent-upsert", "bare-confluent-insert"),
    *("faststream-message", "faststream-batch", "quix"),
    *("labkit-kafka-python", "labkit-confluent"),
}


def bench(monkeypatch: pytest.MonkeyPatch, file: Path, *options: str) -> tuple[int, Any]:
    """Exit code and JSON of the command, run in this process."""
    command = ["labkit", "bench", "peers", *TINY, "--json", str(file), *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0), json.loads(file.read_text())


def test_bad_options_are_said_before_the_run(home: Path, tmp_path: Path) -> None:
    refused(labkit_here("bench", "peers", "--only", "owl"), "--only", "owl", "quix")
    refused(labkit_here("bench", "peers", "--commands", "7"), "--commands", "7")
    refused(labkit_here("bench", "peers", "--json", str(tmp_path)), str(tmp_path))


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name: None if name == "quixstreams" else find(name)
    )
    monkeypatch.setattr(sys, "argv", ["labkit", "bench", "peers"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "quixstreams" in said
    assert "pip install 'cqrs-labkit[peers]'" in said
    with pytest.raises(UsageError):
        peers.choose(["labkit-confluent"])


def test_a_wheel_says_where_the_bench_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wheel holds no ``benchmarks``: importing it fails as it does here."""
    monkeypatch.setitem(sys.modules, "benchmarks.peers", None)
    monkeypatch.setattr(sys, "argv", ["labkit", "bench", "peers"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "not in the wheel" in said
    assert "clone the repository" in said


def test_all_that_the_issue_names_take_part() -> None:
    assert set(CONTESTANTS) == NAMES
    assert {name for pair in peers.TARGETS for name in pair[:2]} == NAMES
    assert [one.name for one in peers.choose(["quix", "bare-kafka-python"])] == [
        "bare-kafka-python",
        "quix",
    ]


def test_the_document_is_that_of_the_view_without_its_trace() -> None:
    assert job.document(event_of(running.order(11))) == {
        "_id": "order-0000011",
        "version": 1,
        "customer": "customer-2109",
        "day": "1998-12-12",
        "product": "product-11",
        "quantity": 12,
        "cents": 1908,
        "discount": 211,
        "return_days": 30,
        "status": "placed",
        "payment": "unpaid",
    }
    assert {running.order(n).day >= "1998-07-01" for n in range(24)} == {True, False}
    assert any(event_of(running.order(n)).discount for n in range(24)), "both rules are met"


# --- the figures


def ran(name: str, number: int, rate: float | None, full: bool = False) -> Ran:
    wrong = "" if rate else "it lost one"
    return Ran(
        round=number,
        name=name,
        full_view=full,
        commands=1_000,
        seconds=6.0,
        rate=rate,
        cpu_seconds={"view": 0.01 * number},
        wrong=wrong,
    )


def test_a_ratio_is_the_median_of_the_ratios_inside_the_rounds() -> None:
    ours, theirs = "labkit-confluent", "bare-confluent-insert"
    rates = [(10.0, 100.0), (20.0, 40.0), (90.0, 100.0)]
    rounds = [
        ran(name, number, rate)
        for number, pair in enumerate(rates)
        for name, rate in zip((ours, theirs), pair, strict=True)
    ] + [ran(ours, number, 5.0 + number, full=True) for number in range(3)]
    found = peers.summary(peers.choose([ours, theirs]), rounds)
    assert found["rates"] == {theirs: 100.0, ours: 20.0}
    assert found["ratios"] == {f"{ours} / {theirs}": 0.5}, "not 20 / 100"
    assert found["rates_full_view"] == {ours: 6.0}
    assert [(t["at_least"], t["reached"]) for t in found["targets"]] == [(0.5, True)]
    low, high = found["intervals"][ours]
    assert (low, high, found["level"]) == (10, 90, 0.75)
    assert found["cpu_us_per_command"][ours] == {"view": 10.0}
    assert (found["ok"], found["wrong"], found["too_short"]) == (True, [], [])


def test_who_was_wrong_once_has_no_rate_and_no_ratio() -> None:
    ours, theirs = "labkit-confluent", "bare-confluent-insert"
    rounds = [ran(ours, 0, 10.0), ran(theirs, 0, 20.0), ran(ours, 1, 10.0), ran(theirs, 1, None)]
    rounds.append(ran(ours, 0, 9.0, full=True))
    found = peers.summary(peers.choose([ours, theirs]), rounds)
    assert (found["ok"], found["wrong"]) == (False, [theirs])
    assert set(found["rates"]) == {ours}
    assert found["ratios"] == {}
    assert found["targets"] == []
    assert set(found["guarantees"]) == {ours, theirs}


# --- on real servers


def check_shape(found: Any, names: set[str]) -> None:
    assert found["ok"] is True
    for part in ("rates", "intervals", "guarantees", "how", "cpu_us_per_command"):
        assert set(found[part]) == names
    assert all(rate > 0 for rate in found["rates"].values())
    assert set(found["rates_full_view"]) == {name for name in names if name.startswith("labkit")}
    assert {
        "kafka-python",
        "confluent-kafka",
        "faststream",
        "quixstreams",
        "pymongo",
        "kafka",
    } <= set(found["versions"])
    for row in found["rounds"]:
        assert not row["wrong"]
        assert 0 <= row["ahead"] < 4_000, "what is there came through the events, with few markers"
        assert set(row["cpu_seconds"]) == {"view", "commands", "kafka", "mongo"}
    newest = max((labs_home() / "results" / "bench-peers").iterdir())
    rows = pd.read_parquet(newest / "rounds.parquet")
    assert sorted(rows["rate"]) == sorted(row["rate"] for row in found["rounds"])
    assert json.loads((newest / "report.json").read_text())["seed"] == found["seed"]


def topics(servers: stack.Servers) -> list[str]:
    with closing(KafkaPythonBroker(servers.bootstrap)) as broker:
        return broker.topics()


@pytest.mark.servers
def test_a_tiny_bench(
    servers: stack.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"bare-confluent-insert", "labkit-confluent"}
    before = topics(servers)
    code, found = bench(monkeypatch, tmp_path / "new" / "p.json", "--only", ",".join(sorted(names)))
    assert code == 0
    check_shape(found, names)
    assert list(found["ratios"]) == ["labkit-confluent / bare-confluent-insert"]
    assert set(found["too_short"]) == names
    assert topics(servers) == before, "what it made is gone"


@pytest.mark.servers
@pytest.mark.slow
def test_all_eight(servers: stack.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, found = bench(monkeypatch, tmp_path / "p.json", "--seed", "3")
    assert code == 0
    check_shape(found, NAMES)
    assert len(found["targets"]) == 6


# --- planted bugs: no rate, and the bench ends red


def forgetful(pipe: Connection, job: Job) -> None:
    """Skips every hundredth command of a partition."""
    batch = bare._batch
    bare._batch = lambda *given: [m for m in batch(*given) if m.offset() % 100 != 99]
    bare.confluent_commands(pipe, job)


def greedy(pipe: Connection, job: Job) -> None:
    """Takes a cent too much, once."""
    shown = bare.shown

    def dearer(value: bytes) -> Document:
        document = shown(value)
        document["cents"] += document["_id"] == "order-0000123"
        return document

    bare.shown = dearer  # type: ignore[assignment]
    bare.confluent_upserts(pipe, job)


def dying(pipe: Connection, job: Job) -> None:
    """Ends before it has done anything."""


@pytest.mark.servers
@pytest.mark.slow
def test_a_wrong_result_is_no_result(
    servers: stack.Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bugs = {
        "bare-confluent-insert": {"commands": f"{__name__}:forgetful"},
        "bare-confluent-upsert": {"view": f"{__name__}:greedy"},
    }
    bugs["bare-kafka-python"] = {"view": f"{__name__}:dying"}
    for name, side in bugs.items():
        planted = structs.replace(CONTESTANTS[name], **side)
        monkeypatch.setitem(contestants.CONTESTANTS, name, planted)
    monkeypatch.setattr(running, "QUIET_SECONDS", 2.0)
    code, found = bench(monkeypatch, tmp_path / "p.json", "--only", ",".join(bugs))
    assert code == 1
    assert (found["ok"], found["rates"]) == (False, {})
    wrong = {row["name"]: row["wrong"] for row in found["rounds"]}
    assert "documents with" in wrong["bare-confluent-insert"]
    assert "3,000 documents with" in wrong["bare-confluent-upsert"]
    assert "died" in wrong["bare-kafka-python"]
    said = capsys.readouterr().err
    assert all(name in said.splitlines()[-1] for name in bugs)
