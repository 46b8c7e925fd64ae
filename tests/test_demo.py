"""The main job on real servers: right to the cent, also when things die in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from labkit import stack
from labkit.adapters.mongo import MongoStore
from labkit.cli import main
from labkit.cli.runs import worker_status
from labkit.experiments import cdnow, demo
from labkit.lab import Lab
from labkit.ports.store import Writes
from tests.conftest import new_home
from tests.test_cli import labkit

pytestmark = pytest.mark.servers

DEMO = [sys.executable, "-m", "labkit", "demo"]


@pytest.fixture
def start(servers: stack.Servers) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts demos that are watched while they run."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*DEMO, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
            start_new_session=True,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(what: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return found


def worker_processes() -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(process.info["cmdline"] or [])
        home = (process.info["environ"] or {}).get("LABKIT_HOME")
        if home == os.environ["LABKIT_HOME"] and ("labkit run " in line or "supervise" in line):
            found.append(line)
    return found


# --- the data set: facts that were established apart from this code


def test_the_data_set_is_what_it_is_known_to_be() -> None:
    commands = cdnow.commands()
    assert len(commands) == cdnow.ORDERS == 69_659
    assert len({c.order_id for c in commands}) == 69_659
    assert len({c.customer_id for c in commands}) == 23_570
    assert sum(c.cents for c in commands) == 250_031_563
    assert sum(c.cents == 0 for c in commands) == 80
    contents = [(c.customer_id, c.day, c.quantity, c.cents) for c in commands]
    assert len(contents) - len(set(contents)) == 255
    assert (commands[0].customer_id, commands[0].day, commands[0].cents) == (
        "00001",
        "1997-01-01",
        1177,
    )


def test_pandas_finds_the_same_facts() -> None:
    expected = cdnow.expected()
    assert (expected.orders, expected.customers) == (69_659, 23_570)
    assert expected.revenue_cents == 250_031_563
    assert expected.best[0] == ("07592", 1_399_093)
    assert len(expected.best) == 10
    assert len(expected.months) == 18
    assert sum(cents for _, _, cents in expected.months) == 250_031_563


# --- small runs


@pytest.mark.parametrize(
    "client", ["kafka-python", pytest.param("confluent", marks=pytest.mark.slow)]
)
def test_a_small_demo_matches(client: str, servers: stack.Servers, tmp_path: Path) -> None:
    result, plot = tmp_path / "new" / "d.json", tmp_path / "d.png"
    done = labkit(
        "demo", "--limit=700", "--client", client, "--json", str(result), "--plot", str(plot)
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())
    expected = cdnow.expected(700)
    assert report["matches"] is True
    assert report["orders"] == report["expected"]["orders"] == 700
    assert report["customers"] == report["expected"]["customers"] == expected.customers
    assert report["revenue_cents"] == report["expected"]["revenue_cents"] == expected.revenue_cents
    assert report["client"] == client
    assert report["ignored_commits"] == 0
    assert report["stack"] == "native"
    assert report["commands_per_second"] == pytest.approx(700 / report["seconds"], rel=0.01)
    assert report["too_short"].startswith("too short to compare")
    assert "Too short to compare: measured for" in done.stdout
    kept = max((stack.home() / "results" / "demo").iterdir())
    assert f"The run is kept in {kept}" in " ".join(done.stdout.split())
    assert json.loads((kept / "report.json").read_text())["orders"] == 700
    assert report["folder"] == str(kept)
    assert len(pd.read_parquet(kept / "lags.parquet")) == report["probes"]
    assert pd.read_parquet(kept / "months.parquet")["orders"].sum() == 700
    for name in ("reply_ms", "lag_ms"):
        assert set(report[name]) == {"p50", "p95", "p99"}
    library = {"confluent": "confluent-kafka"}.get(client, client)
    assert {"python", "kafka", "mongodb", library} <= set(report["versions"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "DIFFERENT" not in done.stdout
    assert "700" in done.stdout
    assert stack.running("lab"), "servers that were up stay up"
    assert not worker_processes()
    assert worker_status("lab") == []
    own = f"lab.{report['run']}."
    with Lab(services=[]) as lab:
        assert not [topic for topic in lab.broker.topics() if topic.startswith(own)]
        lab.drop()
    with closing(MongoStore(servers.mongo_uri, f"lab_{report['run']}")) as store:
        assert store.collections() == []


def test_one_purchase_is_enough(servers: stack.Servers, tmp_path: Path) -> None:
    done = labkit("demo", "--limit=1", "--json", str(tmp_path / "d.json"))
    assert done.returncode == 0, done.stderr


def test_one_wrong_cent_is_found_and_the_result_is_written_all_the_same(
    servers: stack.Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The planted bug: after the replay, one cent of one customer's total goes missing."""
    replay = demo._replay

    def with_a_lost_cent(lab: Lab, *rest: Any) -> float:
        speed = replay(lab, *rest)
        document = lab.store.find("orders.view.customers", {})[0]
        document["cents"] -= 1
        at = lab.store.claim("orders.checkpoints", "tamper")
        lab.store.advance(
            "orders.checkpoints", [(at, at)], Writes({}, {"orders.view.customers": [document]})
        )
        return speed

    monkeypatch.setattr(demo, "_replay", with_a_lost_cent)
    result = tmp_path / "d.json"
    monkeypatch.setattr(sys, "argv", ["labkit", "demo", "--limit=100", "--json", str(result)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    report = json.loads(result.read_text())
    assert report["matches"] is False
    assert report["revenue_cents"] == report["expected"]["revenue_cents"] - 1
    output = capsys.readouterr()
    assert "DIFFERENT" in output.out
    assert "differ from pandas" in output.err


# --- what goes wrong in the middle


def test_a_second_demo_is_refused_and_ctrl_c_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    first = start()
    until(lambda: len(worker_status("lab")) == 2, first)
    second = labkit("demo", "--limit=10")
    assert second.returncode == 2
    assert str(first.pid) in second.stderr
    assert "--lab" in second.stderr
    os.killpg(first.pid, signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 15
    while worker_processes():
        assert time.monotonic() < deadline, worker_processes()
        time.sleep(0.1)
    assert stack.running("lab")


@pytest.mark.slow
def test_a_broker_that_dies_in_the_middle_in_a_home_with_an_odd_name(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own servers, in a folder with a space and Chinese characters, under LC_ALL=C."""
    home = new_home(tmp_path / "my 实验室")
    monkeypatch.setenv("LABKIT_HOME", str(home))
    done = labkit("demo", "--limit=200", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert stack.running("lab") is None, "it stops what it started"
    try:
        process = start(LC_ALL="C")
        until(lambda: len(worker_status("lab")) == 2, process)
        (kafka,) = [s for s in stack.status("lab")["servers"] if s["name"] == "kafka"]
        os.kill(kafka["pid"], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert "Traceback" not in errors
        (line,) = [line for line in errors.splitlines() if line.startswith("labkit: ")]
        assert kafka["address"] in line
        assert "labkit status" in line
        assert stack.running("lab") is None
        assert not worker_processes()
    finally:
        stack.down("lab", purge=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_handler_and_projector_killed_in_the_middle(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """All purchases; each kind of worker dies by SIGKILL between 20 % and 80 % of the replay."""
    result = tmp_path / "d.json"
    process = start("--json", str(result))
    before = until(lambda: worker_status("lab"), process)
    pids = {worker["role"]: worker["pid"] for worker in before}
    with Lab(run=before[0]["run"]) as lab:

        def visible() -> float:
            return sum(at + 1 for at in lab.queries.reached("orders").values()) / cdnow.ORDERS

        killed = {}
        for role, share in (("handler", 0.25), ("projector", 0.4)):
            until(lambda share=share: visible() >= share, process, 300)
            killed[role] = visible()
            os.kill(pids[role], signal.SIGKILL)
        assert all(0.2 <= share <= 0.8 for share in killed.values()), killed
        new = until(
            lambda: (
                {
                    w["role"]: w["pid"]
                    for w in worker_status("lab")
                    if w["pid"] not in pids.values()
                }.keys()
                == {"handler", "projector"}
                and worker_status("lab")
            ),
            process,
            30,
        )
    assert {w["role"]: w["restarts"] for w in new} == {"handler": 1, "projector": 1}
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    report = json.loads(result.read_text())
    assert report["matches"] is True
    assert report["ignored_commits"] == 0
    assert (report["orders"], report["customers"], report["revenue_cents"]) == (
        69_659,
        23_570,
        250_031_563,
    )
