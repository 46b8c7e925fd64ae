"""``labkit verify queries``, small, on real servers; the bugs that must turn it red."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from labkit import stack
from labkit.errors import CheckFailed, UsageError
from labkit.experiments.verify import queries as verification
from labkit.experiments.verify.queries import Expected, Tally, compare
from labkit.lab import Lab
from labkit.messages import encode
from labkit.query.wire import Result
from labkit.services.bank import AccountById
from tests.desk import BLIND, DESK, DUMB, Tickets
from tests.test_cli import labkit, labkit_here, refused


def tally_of(result: Result) -> Tally:
    tally = Tally()
    expected = Expected(AccountById("a"), encode({"_id": "a", "balance": 1}))
    compare(expected, result, tally)
    return tally


def test_the_right_answer_counts_as_one() -> None:
    tally = tally_of(Result("x", True, {"_id": "a", "balance": 1}))
    assert (tally.answered, tally.mismatched, tally.refused) == (1, 0, 0)


@pytest.mark.parametrize("value", [{"_id": "b", "balance": 1}, {"_id": "a", "balance": 2}, None])
def test_anything_else_is_a_mismatch(value: object) -> None:
    tally = tally_of(Result("x", True, value))
    assert (tally.answered, tally.mismatched) == (1, 1)
    assert "'a'" in tally.examples[0]


def test_an_error_is_no_answer() -> None:
    tally = tally_of(Result("x", False, error="TimedOut", text="too late"))
    assert (tally.answered, tally.refused) == (0, 1)
    assert "too late" in tally.examples[0]


def test_queries_are_taken_from_the_services_and_their_documents() -> None:
    with Lab(backend="memory", services=["orders", DESK]) as lab:
        lab.start()
        verification._fill(lab, 120, 1)
        known = verification._expected(lab, Random(1), lambda *_: None)
    assert {"TicketsOf", "OrderById", "OrdersOf", "Revenue", "ById", "All"} <= {
        one.name for one in known
    }
    assert len(known) == len({one.query for one in known if one.name != "OrdersById"}) + sum(
        one.name == "OrdersById" for one in known
    )
    assert len({one.answer for one in known}) > len(known) / 3, "most of the answers differ"


def test_views_that_are_wrong_are_not_queried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tickets, "apply", lambda *_: {"customer": "nobody", "notes": 7})
    monkeypatch.setattr(verification, "PATIENCE_SECONDS", 0.5)
    with Lab(backend="memory", services=[DESK]) as lab:
        lab.start()
        with pytest.raises(CheckFailed, match="C9 are red"):
            verification._fill(lab, 20, 1)


@pytest.mark.parametrize(
    ("services", "said"),
    [
        ([DUMB], "service 'dumb' has no workload; verify and load need one"),
        ([BLIND], "service 'blind' has no views to query"),
        (["moon"], "unknown service or process 'moon'"),
    ],
)
def test_services_that_cannot_be_asked_are_named(services: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        verification.verify_queries(
            "lab", "kafka-python", 100, None, 1, lambda *_: None, lambda _: None, services
        )


def test_bad_options_are_said_before_the_run(home: Path, tmp_path: Path) -> None:
    refused(labkit_here("verify", "queries", "--queries", "99"), "--queries", "99")
    refused(labkit_here("verify", "queries", "--client", "owl"), "owl", "kafka-python")
    refused(labkit_here("verify", "queries", "--plant", "owl"), "owl", "swapped-answers")
    refused(labkit_here("verify", "queries", "--json", str(tmp_path)), str(tmp_path))


@pytest.mark.servers
def test_each_its_own_though_handlers_are_killed(servers: stack.Servers, tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    done = labkit("verify", "queries", "--queries", "300", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["ok"] is True
    assert found["asked"] == found["answered"] == sum(found["queries"].values()) == 300
    assert found["timed_out"] == found["mismatched"] == found["refused"] == 0
    assert {row["worker"] for row in found["killed"]} == {"query-bank-0", "query-orders-0"}
    assert found["started_again"] is True
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert {"kafka", "mongodb", "labkit", "kafka-python"} <= set(found["versions"])


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "field"), [("swapped-answers", "mismatched"), ("lost-answers", "timed_out")]
)
def test_a_planted_bug_turns_it_red(
    servers: stack.Servers, tmp_path: Path, plant: str, field: str
) -> None:
    file = tmp_path / "q.json"
    options = ("--queries", "600", "--plant", plant, "--json", str(file))
    done = labkit("verify", "queries", *options, timeout=240)
    assert done.returncode == 1, done.stderr
    assert "some queries did not get their answer" in done.stderr
    found = json.loads(file.read_text())
    assert found["ok"] is False
    assert found[field] > 6  # of 600
