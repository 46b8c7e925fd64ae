"""The runs of a lab: listed with their owners, dropped where they have none, joined by default."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest
from pymongo import MongoClient
from typer.testing import CliRunner, Result

from labkit import stack
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.cli.main import app
from labkit.cli.runs import the_run
from labkit.errors import UsageError
from labkit.lab import Lab
from labkit.run import kept
from labkit.services.orders import PlaceOrder
from labkit.stack import limits, native
from labkit.stack.state import LabState, Lease, save

pytest_plugins = ("tests.stack_home",)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def refused(*arguments: str) -> str:
    error = run(*arguments).exception
    assert isinstance(error, UsageError), error
    return str(error)


@pytest.mark.servers
def test_a_run_is_listed_until_it_is_dropped_and_a_live_one_is_kept(
    servers: stack.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with Lab(services=["orders"], partitions=2) as dead:
        dead.bus.send(PlaceOrder("o1", "ann", "1997-01-31", 1, 5)).token()
        while not dead.handler.step():
            pass
        topics = {topic for topic in dead.broker.topics() if dead.of.owns(topic)}
    with Lab(services=["orders"], partitions=2) as live:
        json_file = tmp_path / "runs.json"
        said = run("runs", "--json", str(json_file)).stdout
        rows = {row["run"]: row for row in json.loads(json_file.read_text())}
        assert [rows[lab.run]["owners"] != [] for lab in (dead, live)] == [False, True]
        (line,) = [line for line in said.splitlines() if dead.run in line]
        assert "nobody" in line
        found = rows[dead.run]
        assert set(found["topics"]) == topics
        assert found["partitions"] == 2 * len(topics)
        assert found["groups"] == [dead.of.group("handler", "orders")]
        assert found["bytes"] > 0
        assert 0 <= found["age_s"] < 600
        assert "in use by pid" in refused("runs", "drop", live.run)
        assert "has no run 'r0000000'" in refused("runs", "drop", dead.run, "r0000000")
        assert "nothing is dropped" in run("runs", "drop", "--older-than", "1").stdout
        assert dead.run in run("runs", "drop", "--unowned").stdout
        with MongoClient(servers.mongo_uri) as client:  # type: ignore[var-annotated]
            assert not [name for name in client.list_database_names() if dead.run in name]
        broker = live.broker
        assert isinstance(broker, KafkaPythonBroker)
        assert not [name for name in [*broker.topics(), *broker.groups()] if dead.run in name]
        assert live.run in run("runs").stdout
        live.drop()
    assert live.run not in run("runs").stdout


@pytest.mark.parametrize("arguments", [[], ["r0a1b2c3", "--unowned"]])
def test_what_to_drop_is_said_in_one_way(arguments: list[str]) -> None:
    assert "name the runs to drop, or give --unowned" in refused("runs", "drop", *arguments)


# --- without servers


def test_the_only_live_run_need_not_be_named(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, list[str]] = {}
    monkeypatch.setattr("labkit.cli.runs.live", lambda lab: used)
    assert the_run("lab", "r0000001") == "r0000001"
    assert "no run of lab 'lab' is live" in refused("dead-letters", "list")
    used["r0000001"] = ["pid 1"]
    assert the_run("lab", None) == "r0000001"
    used["r0000002"] = ["pid 2"]
    for command in (["rebuild", "orders.view"], ["run", "handler"], ["dead-letters", "show", "o1"]):
        assert "of lab 'lab' by --run: r0000001, r0000002" in refused(*command)


def test_a_run_is_live_while_a_process_uses_it(lab_home: Path) -> None:
    me, dead = psutil.Process(), 5_000_000
    since = me.create_time() - psutil.boot_time()
    leases = [Lease(me.pid, since, "r1"), Lease(me.pid, since, ""), Lease(dead, since, "r2")]
    save("lab", LabState(leases=leases))
    assert kept.live("lab") == {"r1": [f"pid {me.pid}"]}


def test_the_lab_may_be_named_by_the_environment(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_LAB", "nosuch")
    for command in ("status", "runs"):
        assert "'nosuch'" in str(run(command).exception)
    assert "'other'" in str(run("status", "--lab", "other").exception)


def test_a_start_warns_before_a_server_runs_out_of_open_files(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, most = limits.open_files(psutil.Process())
    assert 0 < used <= (most or used) or sys.platform != "linux"
    monkeypatch.setattr(native, "alive", lambda *_: (psutil.Process(), psutil.Process()))
    save("lab", LabState(up=True))
    says_so = "Kafka of lab 'lab' has 701 of at most 1,000 files open"
    for files, most, says in ((700, 1_000, ""), (701, 1_000, says_so), (701, 0, "")):
        monkeypatch.setattr(limits, "open_files", lambda _, found=(files, most): found)
        assert stack.tight().startswith(says)
        assert ("labkit runs drop" in stack.tight()) == bool(says)
