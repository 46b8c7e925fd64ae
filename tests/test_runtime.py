"""Workers as processes on real servers: they come back, they share, and none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from kafka import KafkaAdminClient
from pymongo import MongoClient

from labkit import stack
from labkit.adapters.mongo import MongoStore
from labkit.cli.runs import worker_status
from labkit.errors import LabkitError, StackError
from labkit.experiments.verify.checkers import History, check_all
from labkit.lab import Lab
from labkit.run import started
from labkit.run.registry import (
    Alive,
    Registry,
    live_runs,
    read_registry,
    runs_folder,
    write_whole,
)
from labkit.run.worker import Worker
from labkit.services.orders import PlaceOrder
from labkit.stack.processes import born, is_alive
from tests.conftest import new_home
from tests.test_checkers import assert_green, mixed, send
from tests.test_failpoints import wait_until_quiet

#: The promise: a supervisor restarts a dead worker within this time.
RESTART_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
#: As long as a dead worker's open transaction in Kafka may take.
TAKE_OVER_SECONDS = 20.0


def until(what: str, found: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def lab(servers: stack.Servers) -> Iterator[Lab]:
    made = Lab(services=("orders",), partitions=4)
    try:
        yield made
    finally:
        made.drop()


def supervisor(lab: Lab) -> int:
    found = read_registry(runs_folder(lab.name) / f"{lab.run}.json")
    assert found is not None
    return found.supervisor


def command_lines(run: str) -> list[list[str]]:
    """The processes of a run, whoever started them."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if run in line and is_alive(process):
            found.append(line)
    return found


@pytest.mark.servers
def test_a_killed_worker_is_back_within_five_seconds(lab: Lab) -> None:
    lab.start()
    history = History(lab.bus)
    calls = mixed(11, 150)
    send(history, calls[:50])
    history.settle()
    for role in ("handler", "projector"):
        (before,) = [w for w in lab.workers() if w.role == role]
        os.kill(before.pid, signal.SIGKILL)

        def reborn(role: str = role, before: Alive = before) -> bool:
            (now,) = [w for w in lab.workers() if w.role == role]
            return now.pid != before.pid and runs(now.pid)

        until(f"a new {role}", reborn, RESTART_SECONDS)
        (now,) = [w for w in lab.workers() if w.role == role]
        assert (now.restarts, now.slot) == (before.restarts + 1, before.slot)
        assert not runs(before.pid)
    send(history, calls[50:])
    history.settle(PATIENCE_SECONDS)
    wait_until_quiet(lab)
    assert_green(check_all(lab, history))
    assert lab.ignored_commits() == 0


@pytest.mark.servers
def test_a_worker_that_dies_again_and_again_comes_back_each_time(lab: Lab) -> None:
    lab.start(projectors=0)
    for restarts in range(1, 4):
        os.kill(lab.workers()[0].pid, signal.SIGKILL)
        until(
            f"restart {restarts}",
            lambda n=restarts: lab.workers()[0].restarts == n,  # type: ignore[misc]
            RESTART_SECONDS,
        )
    token = lab.bus.send(mixed(1, 1)[0][1]).token()
    lab.bus.listen("orders")
    until("it works again", lambda: lab.lag("handler", "orders") == 0)
    assert token.service == "orders"


def shares(lab: Lab, role: str) -> list[int]:
    """How many partitions each member of a group owns, as the broker sees it."""
    assert lab.servers is not None
    admin = KafkaAdminClient(bootstrap_servers=lab.servers.bootstrap)
    try:
        group = lab.of.group(role, "orders")
        found = admin.describe_groups([group])[group]
    finally:
        admin.close()
    if found["group_state"] != "Stable":
        return []
    assigned = [member["member_assignment"]["assigned_partitions"] for member in found["members"]]
    return [sum(len(topic["partitions"]) for topic in topics) for topics in assigned]


@pytest.mark.servers
def test_two_workers_a_role_share_the_partitions_and_handle_all_once(lab: Lab) -> None:
    lab.start(handlers=2, projectors=2)
    assert sorted((w.role, w.slot) for w in lab.workers()) == [
        ("handler", 0),
        ("handler", 1),
        ("projector", 0),
        ("projector", 1),
    ]
    history = History(lab.bus)
    calls = mixed(12, 300)
    send(history, calls[:100])
    for role in ("handler", "projector"):
        # One member may own all for a moment; then the other gets its half.
        until(f"two {role}s share", lambda role=role: shares(lab, role) == [2, 2])  # type: ignore[misc]
    send(history, calls[100:])
    history.settle(PATIENCE_SECONDS)
    wait_until_quiet(lab)
    assert_green(check_all(lab, history))
    assert lab.ignored_commits() == 0
    assert len(history) == len(calls)


@pytest.mark.servers
def test_the_registry_and_the_status_show_what_runs(lab: Lab) -> None:
    assert lab.workers() == []
    lab.start()
    registry = read_registry(runs_folder(lab.name) / f"{lab.run}.json")
    assert registry is not None
    assert registry.run == lab.run
    assert registry.workers == lab.workers()
    assert list(live_runs("lab")) == [lab.run]
    lab.stop()
    assert lab.workers() == []
    assert live_runs("lab") == {}
    token = lab.bus.send(mixed(1, 1)[0][1]).token()
    lab.start(projectors=0)
    until("it is handled", lambda: lab.lag("handler", "orders") == 0)
    (row,) = worker_status("lab")
    assert row.pop("pid") == lab.workers()[0].pid
    assert row == {
        "run": lab.run,
        "role": "handler",
        "service": "orders",
        "slot": 0,
        "restarts": 0,
        "lag": 0,
        "parked": 0,
    }
    assert token.offset == 0


@pytest.mark.servers
def test_stop_leaves_no_process_and_no_registry(lab: Lab) -> None:
    lab.start()
    pids = [supervisor(lab), *(w.pid for w in lab.workers())]
    assert all(runs(pid) for pid in pids)
    lab.stop()
    assert not any(runs(pid) for pid in pids)
    assert command_lines(lab.run) == []
    assert not (runs_folder(lab.name) / f"{lab.run}.json").exists()
    lab.stop()


def complaint(lab: Lab) -> str:
    try:
        lab.check()
    except StackError as error:
        return str(error)
    return ""


@pytest.mark.servers
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_supervisor_leaves_no_worker_behind(lab: Lab, how: signal.Signals) -> None:
    lab.start()
    pids = [w.pid for w in lab.workers()]
    os.kill(supervisor(lab), how)
    until("the workers end", lambda: not any(runs(pid) for pid in pids))
    until("the supervisor ends", lambda: complaint(lab))
    assert "the supervisor of the workers ended with code" in complaint(lab)
    assert live_runs("lab") == {}, "a registry without its supervisor counts for nothing"
    lab.stop()
    lab.start(projectors=0)
    assert [w.role for w in lab.workers()] == ["handler"]


PARENT = """
import sys, time
from labkit.lab import Lab
lab = Lab(services=("orders",), partitions=2)
lab.start()
print(lab.run, *[w.pid for w in lab.workers()], flush=True)
time.sleep(600)
"""


@pytest.mark.servers
def test_a_killed_parent_leaves_no_process_behind(servers: stack.Servers) -> None:
    """A notebook whose kernel is killed."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        run, *pids = parent.stdout.readline().split()
        with parent.stdout:
            assert len(pids) == 2
            assert len(command_lines(run)) == 2
    finally:
        parent.kill()
        parent.wait()
    until("supervisor and workers end", lambda: not live_runs("lab"))
    until("the workers end", lambda: not any(runs(int(pid)) for pid in pids))
    assert command_lines(run) == []
    with Lab(run=run) as left:
        left.drop()


def start_worker(lab: Lab, log: Path, run: str, **environment: str) -> subprocess.Popen[bytes]:
    command = lab.of.worker_command(Worker("handler", "orders", 0))
    command[command.index(lab.run)] = run
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=lab.of.environment() | environment,
        )


@pytest.mark.servers
def test_a_worker_without_kafka_ends_with_one_line(lab: Lab, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    worker = start_worker(
        lab,
        log,
        lab.run,
        LABKIT_HOME=str(new_home(tmp_path / "home")),  # where no servers are noted
        LABKIT_BOOTSTRAP="127.0.0.1:1",
    )
    assert worker.stdin is not None
    with worker.stdin:
        assert worker.wait(PATIENCE_SECONDS) == 2
    (line,) = log.read_text().splitlines()
    assert line.startswith("labkit: no Kafka answers at 127.0.0.1:1")


@pytest.mark.servers
def test_a_worker_that_gets_nowhere_says_why_and_takes_its_time(lab: Lab, tmp_path: Path) -> None:
    """Here its topics are gone. No traceback, and no busy loop."""
    log = tmp_path / "worker.log"
    lab.broker.drop([topic for topic in lab.broker.topics() if lab.of.owns(topic)])
    worker = start_worker(lab, log, lab.run)
    assert worker.stdin is not None
    with worker.stdin:
        until("it says so", lambda: log.read_text().count("rejoin") >= 2)
        time.sleep(3)
        assert worker.poll() is None, "it goes on trying"
    assert worker.wait(PATIENCE_SECONDS) == 0
    said = log.read_text()
    assert f"topic 'lab.{lab.run}.orders.commands' does not exist" in said
    assert "Traceback" not in said
    assert 2 <= said.count("rejoin") <= 6, said


OPEN_TRANSACTION = """
import sys, time
from labkit.adapters.mongo import MongoStore
store = MongoStore(sys.argv[1], sys.argv[2])
with store._client.start_session() as session, session.start_transaction():
    store._db.checkpoints.update_one({"_id": "p:0"}, {"$set": {"position": 1}}, session=session)
    print("open", flush=True)
    time.sleep(600)
"""


@pytest.mark.servers
def test_what_a_dead_worker_left_open_in_mongodb_holds_nobody_for_long(
    servers: stack.Servers,
) -> None:
    database = f"t_{uuid.uuid4().hex[:8]}"
    store = MongoStore(servers.mongo_uri, database)
    try:
        store.claim("checkpoints", "p:0")
        worker = subprocess.Popen(
            [sys.executable, "-c", OPEN_TRANSACTION, servers.mongo_uri, database],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdout is not None
        with worker.stdout:
            assert worker.stdout.readline() == "open\n"
        worker.kill()
        worker.wait()
        claimed: list[int] = []

        def claim() -> None:
            with contextlib.suppress(LabkitError):  # once it is too late anyway
                claimed.append(store.claim("checkpoints", "p:0").epoch)

        successor = threading.Thread(target=claim, daemon=True)
        successor.start()
        successor.join(TAKE_OVER_SECONDS)
        assert claimed == [2]
    finally:
        with MongoClient[Any](servers.mongo_uri) as client:
            client.admin.command("killAllSessions", [])
        successor.join()
        store.drop()
        store.close()


@pytest.mark.servers
def test_a_second_start_and_stepping_by_hand_are_refused_while_workers_run(lab: Lab) -> None:
    lab.start(projectors=0)
    with pytest.raises(LabkitError, match="running already"):
        lab.start()
    with pytest.raises(LabkitError, match=r"call lab\.stop\(\)"):
        assert lab.handler
    lab.stop()
    lab.bus.send(mixed(1, 1)[0][1]).token()
    until("it is handled by hand", lambda: lab.handler.step())


def test_a_worker_by_hand_is_shown_and_ends_at_ctrl_c(servers: stack.Servers) -> None:
    with Lab(services=["orders"], start=False, partitions=1) as lab:
        command = [sys.executable, "-m", "labkit", "run", "handler", "--run", lab.run]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        ) as worker:
            try:
                until("it is shown", lambda: lab.run in live_runs("lab"))
                assert [w.pid for w in live_runs("lab")[lab.run]] == [worker.pid]
                assert lab.bus.execute(PlaceOrder("o1", "ann", "1997-01-31", 1, 5)).accepted
                (row,) = [w for w in worker_status("lab") if w["run"] == lab.run]
                shown = row["role"], row["service"], row["pid"]
                assert shown == ("handler", "orders", worker.pid)
                worker.send_signal(signal.SIGINT)
                _, said = worker.communicate(timeout=20)
            finally:
                worker.kill()
        assert worker.returncode == 130
        assert said.splitlines()[-1] == b"labkit: interrupted; what was started is stopped"
        assert b"Traceback" not in said
        assert lab.run not in live_runs("lab")
        lab.drop()


CELLS = """
import sys
from labkit.lab import Lab
from labkit.run import started
from labkit.run.registry import live_runs
cell = "lab = Lab(services=['orders'], partitions=1); lab.start(projectors=0)"
for again in [cell, cell, cell.replace("lab", "other")]:
    exec(again)
    print(len(live_runs("lab")), lab.run, flush=True)
lab.drop()
other.drop()
"""


@pytest.mark.servers
def test_a_cell_that_runs_again_leaves_no_workers_behind(servers: stack.Servers) -> None:
    done = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    before, again, beside = done.stdout.split("\n")[:3]
    assert [line[0] for line in (before, again, beside)] == ["1", "1", "2"], done.stderr
    first, second = before[2:], again[2:]
    assert done.stderr.splitlines() == [
        f"labkit: run {first} of this process still has workers; `lab.stop()` ends them",
        f"labkit: 'lab' is another lab now: the workers of run {first} are stopped",
        f"labkit: run {second} of this process still has workers; `lab.stop()` ends them",
    ]
    with Lab(run=first) as left:
        left.drop()


# --- without servers


class Startable:
    """A lab, as far as others need to know it."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        started.forget(self)


def test_a_lab_is_replaced_when_its_name_means_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether anything else still holds it or not: an element of a list is nobody's to stop."""
    monkeypatch.setattr(started, "_started", [])
    main = vars(sys.modules["__main__"])
    labs = [Startable(f"r{n}") for n in range(4)]
    for name, lab in zip(("lab", "web", None, "late"), labs, strict=True):
        if name not in (None, "late"):
            monkeypatch.setitem(main, name, lab)
        started.keep(lab)
    monkeypatch.setitem(main, "_7", labs[0])
    monkeypatch.setitem(main, "late", labs[3])  # made by a function that has started it, too
    started.tell()
    assert not any(lab.stopped for lab in labs)
    said = capsys.readouterr().err.splitlines()
    assert [line.split("; ")[1] for line in said] == [
        "`lab.stop()` ends them",
        "`web.stop()` ends them",
        "they end with this process",
        "`late.stop()` ends them",
    ]
    monkeypatch.setitem(main, "lab", Startable("r4"))
    monkeypatch.setitem(main, "late", None)
    started.stop_replaced()
    assert [lab.stopped for lab in labs] == [True, False, False, True]
    assert "'lab' is another lab now: the workers of run r0 are stopped" in capsys.readouterr().err


def test_a_registry_is_only_as_good_as_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r1.json"
    assert read_registry(path) is None
    path.write_bytes(b"{ not whole")
    assert read_registry(path) is None
    then = born(os.getpid())
    workers = [Alive("handler", "orders", 0, 1)]
    state = Registry("r1", os.getpid(), then, workers)
    write_whole(path, msgspec.json.encode(state))
    assert read_registry(path) == state
    real = psutil._psplatform.boot_time()  # the clock is corrected by a minute: all births move
    with monkeypatch.context() as patch:
        patch.setattr(psutil._psplatform, "boot_time", lambda: real + 60)
        assert read_registry(path) == state
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_whole(path, msgspec.json.encode(msgspec.structs.replace(state, supervisor=dead.pid)))
    assert read_registry(path) is None
    recycled = msgspec.structs.replace(state, born=then - 5)
    write_whole(path, msgspec.json.encode(recycled))
    assert read_registry(path) is None, "another process has that pid now"
    assert [p.name for p in tmp_path.iterdir()] == ["r1.json"], "no half-written file is left"


def test_a_worker_has_a_name_that_tells_it_from_all_others() -> None:
    assert Worker("handler", "orders", 1).name == "handler-orders-1"
