"""``labkit bench latency``, tiny, on real servers: what is asked and where it was; no times."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from labkit import stack
from labkit.cli import main
from labkit.experiments.bench import latency
from labkit.messages import Token
from labkit.read.queries import Queries
from labkit.stack import home as labs_home

TINY = ("--rounds", "2", "--commands", "6")


def bench(monkeypatch: pytest.MonkeyPatch, file: Path, *options: str) -> tuple[int, Any]:
    """Exit code and JSON of the command, run in this process."""
    command = ["labkit", "bench", "latency", *TINY, "--json", str(file), *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0), json.loads(file.read_text())


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--rounds", "0"), "--rounds must be a whole number .* got '0'"),
        (("--commands", "many"), "--commands must be a whole number .* got 'many'"),
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
    monkeypatch.setattr(sys, "argv", ["labkit", "bench", "latency", *option])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert re.search(named, capsys.readouterr().err)


# --- the figures


def samples(ms: dict[str, list[list[float]]], found: bool = True) -> pd.DataFrame:
    """By kind, the times of each round."""
    return pd.DataFrame(
        [
            {"kind": kind, "round": number, "began": 0, "ended": each * 1e6, "ms": each}
            | {f"{stage}_ms": each / 2 for stage in latency.STAGES}
            | {"found": found}
            for kind, rounds in ms.items()
            for number, some in enumerate(rounds)
            for each in some
        ]
    )


def test_ratios_are_of_medians_and_their_interval_is_over_the_rounds() -> None:
    """The machine was twice as slow in the second round: that is no difference of the kinds."""
    slow = {"reply": [[12, 15, 99], [30] * 3], "visible": [[20] * 3, [40] * 3]}
    found = latency.summary(samples(slow | {"bare": [[10] * 3, [20] * 3]}))
    ratios = {"each": [1.5, 1.5], "median": 1.5, "interval": [1.5, 1.5], "level": 0.5}
    assert found["ratios"]["reply"] == ratios
    assert found["ratios"]["visible"]["each"] == [2.0, 2.0]
    assert (found["reply_ratio"], found["visible_ratio"]) == (2.0, 2.0), "30 and 30 to 15"
    assert found["targets"]["reply_ratio"] == {"at_most": 1.5, "reached": False}
    assert found["targets"]["visible_ratio"] == {"at_most": 2.5, "reached": True}
    assert found["times"]["reply"]["max_ms"] == pytest.approx(99, rel=0.01)
    assert found["times"]["bare"]["commands"] == 6
    assert found["stages_ms"]["reply"]["acked"] == 15
    assert found["ok"]


def test_what_was_not_there_is_told() -> None:
    some = {kind: [[1.0, 2.0]] for kind in latency.KINDS}
    found = latency.summary(samples(some, found=False))
    assert (found["ok"], found["missed"]) == (False, 6)
    assert found["ratios"]["reply"]["interval"] is None, "of a single round there is none"


# --- on real servers


def check_shape(found: Any) -> None:
    """And each command was where its row says, in this order."""
    assert (found["ok"], found["missed"], found["ignored_commits"]) == (True, 0, 0)
    for kind in latency.KINDS:
        row = found["times"][kind]
        assert row["commands"] == 12
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
    for kind in latency.TARGETS:
        assert found[f"{kind}_ratio"] > 0
        assert len(found["ratios"][kind]["each"]) == 2
    newest = max((labs_home() / "results" / "bench-latency").iterdir())
    rows = pd.read_parquet(newest / "samples.parquet")
    assert rows["id"].is_unique
    assert sorted(rows.groupby(["round", "kind"]).size().tolist()) == [6] * 6
    ours = rows[rows["kind"] != "bare"]
    for before, after in zip(latency.STAGES[1:], latency.STAGES[2:], strict=False):
        assert (ours[f"{before}_ms"] <= ours[f"{after}_ms"]).all()
    assert (ours["decided_ms"] < ours["ms"]).all()
    visible = rows[rows["kind"] == "visible"]
    assert (visible["applied_ms"] < visible["ms"]).all()


@pytest.mark.servers
@pytest.mark.usefixtures("topics_dropped")
@pytest.mark.parametrize(
    "client", ["kafka-python", pytest.param("confluent", marks=pytest.mark.slow)]
)
def test_a_tiny_bench(
    servers: stack.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    file = tmp_path / "new" / "l.json"
    code, found = bench(monkeypatch, file, "--seed", "7", "--client", client)
    assert code == 0
    assert (found["client"], found["seed"]) == (client, 7)
    check_shape(found)


@pytest.mark.servers
@pytest.mark.slow
def test_a_wait_that_does_not_wait_turns_it_red(
    servers: stack.Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Planted in this process, which asks."""
    behind = Queries._behind
    monkeypatch.setattr(
        Queries,
        "_behind",
        lambda self, views, goals: (
            [] if goals and isinstance(goals[0], Token) else behind(self, views, goals)
        ),
    )
    code, found = bench(monkeypatch, tmp_path / "l.json")
    assert code == 1
    assert found["missed"] > 0
    assert "was not there when it should have been" in capsys.readouterr().err
