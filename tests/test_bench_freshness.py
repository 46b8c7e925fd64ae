"""The bench of freshness, tiny, on real servers: shape, promises, planted bugs; no times."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram

from labkit import stack
from labkit.cli import main
from labkit.errors import StackError, UsageError
from labkit.experiments import processes
from labkit.experiments.bench import freshness
from labkit.experiments.bench.freshness import judge
from labkit.experiments.bench.freshness_client import (
    CLIENTS,
    LOAD_SLOTS,
    LOAD_STREAMS,
    STREAMS,
    ReadCounts,
    Report,
    Writer,
    load,
)
from labkit.experiments.bench.sessions import Read, Write
from labkit.experiments.bench.subject import subject
from labkit.experiments.percentiles import RANGE
from labkit.lab import Lab
from labkit.read.freshness import STRATEGIES
from tests.test_cli import labkit, labkit_here, refused

PROMISING = ("token", "version", "linearizable")
KEYS = {"tries", "stale", "timeouts", "p50_ms", "p99_ms"}


def tally(tries: int = 1_000, times: tuple[int, ...] = (1_000,), **more: int) -> ReadCounts:
    histogram = HdrHistogram(*RANGE)
    for time in times:
        histogram.record_value(time)
    return ReadCounts(tries, times=base64.b64encode(histogram.encode()).decode(), **more)


def reports(**odd: ReadCounts) -> list[Report]:
    """Two clients; the second is odd."""
    plain: dict[Any, ReadCounts] = {strategy: tally() for strategy in STRATEGIES}
    return [Report(4_000, plain), Report(4_000, {**plain, **odd})]


def test_all_promises_kept() -> None:
    assert judge(reports(), 2_000)["ok"] is True
    assert judge(reports(eventual=tally(stale=900)), 2_000)["ok"] is True, "it promised nothing"


@pytest.mark.parametrize("strategy", PROMISING)
def test_one_stale_read_breaks_a_promise(strategy: str) -> None:
    assert judge(reports(**{strategy: tally(stale=1)}), 2_000)["ok"] is False


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_time_out_in_a_thousand_is_the_limit(strategy: str) -> None:
    assert judge(reports(**{strategy: tally(timeouts=2)}), 2_000)["ok"] is True
    assert judge(reports(**{strategy: tally(timeouts=3)}), 2_000)["ok"] is False


def test_a_try_that_is_missing_is_told() -> None:
    assert judge(reports(version=tally(999)), 2_000)["ok"] is False


def test_a_promise_that_only_the_checker_sees_is_broken() -> None:
    found = reports()
    found[0].writes = [Write("ann", "a", 2, 10)]
    found[1].reads = [Read("bob", "a", "linearizable", 1, 20, 21)]
    judged = judge(found, 2_000)
    assert judged["ok"] is False
    assert judged["checkers"]["C10"]["found"] == 1


def test_histograms_are_merged_not_their_percentiles() -> None:
    found = reports(token=tally(times=(9_000,) * 3))
    row = judge(found, 2_000)["strategies"]["token"]
    assert row["p50_ms"] == pytest.approx(9, rel=0.01), "of 1, 9, 9 and 9"
    assert row["max_ms"] == pytest.approx(9, rel=0.01)


def test_each_writer_has_its_own_streams() -> None:
    slots = [range(n * STREAMS, (n + 1) * STREAMS) for n in range(CLIENTS)]
    writers = [Writer(subject("freshness"), 1, some) for some in (*slots, LOAD_SLOTS)]
    owned = [{taken.stream for taken in writer.opening} for writer in writers]
    assert [len(streams) for streams in owned] == [STREAMS] * CLIENTS + [LOAD_STREAMS]
    assert len(set.union(*owned)) == sum(map(len, owned)), "and shares none of them"
    for writer, streams in zip(writers, owned, strict=True):
        assert {next(writer.commands).stream for _ in range(200)} <= streams


def test_bad_options_are_said_before_the_run(home: Path, tmp_path: Path) -> None:
    refused(labkit_here("bench", "freshness", "--tries", "0"), "--tries", "0")
    refused(labkit_here("bench", "freshness", "--tries", "many"), "--tries", "many")
    refused(labkit_here("bench", "freshness", "--client", "owl"), "owl", "kafka-python")
    refused(labkit_here("bench", "freshness", "--json", str(tmp_path)), str(tmp_path))


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_a_tiny_bench(servers: stack.Servers, tmp_path: Path, client: str) -> None:
    file = tmp_path / "new" / "f.json"
    options = ("--tries", "60", "--seed", "7", "--client", client, "--json", str(file))
    done = labkit("bench", "freshness", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["ok"] is True
    assert (found["client"], found["seed"]) == (client, 7)
    assert set(found["strategies"]) == set(STRATEGIES)
    for strategy, row in found["strategies"].items():
        assert set(row) >= KEYS
        assert row["tries"] == 60
        assert row["timeouts"] == 0
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["by_others"] == (28 if strategy == "linearizable" else 0)
        if strategy != "eventual":
            assert row["stale"] == 0
    assert found["checkers"]["C10"]["checked"] >= 4 * 60
    assert found["load"]["sent"] > 0
    assert found["ignored_commits"] == 0
    assert {"python", "labkit", "kafka", "mongodb", client.split("-")[0]} <= {
        name.split("-")[0] for name in found["versions"]
    }
    assert {"cores", "memory_bytes"} == set(found["machine"])
    assert found["settings"]["clients"] == 4
    with Lab() as lab:
        assert not [t for t in lab.broker.topics() if ".bank." in t], "its topics are gone"
        lab.drop()


# --- planted bugs: the bench ends red, and its JSON is written all the same


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "stale"),
    [("no-wait", {"token", "version", "linearizable"}), ("old-watermark", {"linearizable"})],
)
def test_a_planted_bug_turns_the_bench_red(
    servers: stack.Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plant: str,
    stale: set[str],
) -> None:
    """The clients are processes, which plant what they are told to.

    confluent-kafka hears of a commit so soon that most of the eventual reads are stale; with
    kafka-python it may be few, and of so few tries none.
    """
    monkeypatch.setenv("LABKIT_PLANT", plant)
    file = tmp_path / "f.json"
    options = ["--tries", "60", "--client", "confluent", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["labkit", "bench", "freshness", *options])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    found = json.loads(file.read_text())
    assert found["ok"] is False
    assert {s for s in STRATEGIES if found["strategies"][s]["stale"]} == {"eventual"} | stale
    assert found["checkers"]["C10"]["found"] > 0
    err = capsys.readouterr()
    assert "did not keep what it promises" in err.err
    assert "C10: " in err.out


def test_a_sample_in_memory_is_refused() -> None:
    with (
        Lab(backend="memory", services=["bank"]) as lab,
        pytest.raises(UsageError, match="between processes, got backend 'memory'"),
    ):
        freshness.sample(lab, 1, 1)


def test_a_process_that_dies_ends_the_bench(home: Path) -> None:
    """It says why on its own; who waits for it does not wait on."""
    with (
        Lab(backend="memory") as lab,
        processes.process(load, {"name": "owl"}, subject("freshness").chosen, 1) as pipe,
        pytest.raises(StackError, match="died; its reason is above"),
    ):
        processes.hear(lab, pipe)
