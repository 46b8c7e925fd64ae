import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from pymongo import MongoClient
from typer.testing import CliRunner

from labkit import stack
from labkit.cli.servers import WORKERS, app
from labkit.errors import StackError, UsageError
from labkit.experiments import demo
from labkit.run.registry import Alive, listed
from labkit.stack import mongod, native, ports
from labkit.stack.processes import born, is_alive
from labkit.stack.state import LabState, ServerProcess, load, save

pytest_plugins = ("tests.stack_home",)
pytestmark = pytest.mark.servers

UP = "import sys; from labkit import stack; print(stack.up(report=lambda l: print(l, flush=True)))"


@contextlib.contextmanager
def shell_up() -> Iterator[subprocess.Popen[str]]:
    """A program of its own that calls `up`, so that it can be killed."""
    with subprocess.Popen(
        [sys.executable, "-c", UP], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as shell:
        try:
            yield shell
        finally:
            shell.kill()


def read_until(shell: subprocess.Popen[str], words: str) -> None:
    assert shell.stdout is not None
    for line in shell.stdout:
        if line.startswith(words):
            return
    pytest.fail(f"up ended without saying {words!r}")


def pids(lab: str = "lab") -> dict[str, int | None]:
    return {server["name"]: server["pid"] for server in stack.status(lab)["servers"]}


def processes(lab: str = "lab") -> list[psutil.Process]:
    found = [psutil.Process(pid) for pid in pids(lab).values() if pid]
    assert len(found) == 2
    return found


def kill(server: psutil.Process) -> None:
    """SIGKILL, and wait until it has taken effect (which it has not when the call returns)."""
    server.kill()
    deadline = time.monotonic() + 10
    while is_alive(server) and time.monotonic() < deadline:
        time.sleep(0.01)


def write(servers: stack.Servers, value: str) -> None:
    """One record and one document, each in a transaction."""
    producer = KafkaProducer(
        bootstrap_servers=servers.bootstrap, transactional_id="test", retry_backoff_ms=10
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.send("kept", value.encode(), partition=0).get(10)
    producer.commit_transaction()
    producer.close()
    with (
        MongoClient[dict[str, Any]](servers.mongo_uri) as client,
        client.start_session() as session,
    ):
        session.with_transaction(
            lambda s: client["kept"]["kept"].insert_one({"_id": value}, session=s)
        )


def read(servers: stack.Servers, count: int) -> tuple[list[str], list[str]]:
    """All records and documents; waits up to 30 s until there are ``count`` records.

    A broker that was killed may, for a moment after it is back, name a high watermark or a last
    stable offset that is lower than before: it has read its log, but not yet acted on it.
    """
    partition = TopicPartition("kept", 0)
    consumer = KafkaConsumer(
        bootstrap_servers=servers.bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed",
    )
    consumer.assign([partition])
    records: list[str] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for batch in consumer.poll(timeout_ms=200).values():
            records += [record.value.decode() for record in batch]
        end = consumer.end_offsets([partition])[partition]
        if len(records) >= count and consumer.position(partition) >= end:
            break
    consumer.close()
    with MongoClient[dict[str, Any]](servers.mongo_uri) as client:
        documents = [document["_id"] for document in client["kept"]["kept"].find().sort("_id")]
    return records, documents


def make_topic(servers: stack.Servers) -> None:
    admin = KafkaAdminClient(bootstrap_servers=servers.bootstrap)
    admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
    admin.close()


@pytest.fixture
def as_standing(
    standing: tuple[Path, stack.Servers], monkeypatch: pytest.MonkeyPatch
) -> stack.Servers:
    monkeypatch.setenv("LABKIT_HOME", str(standing[0]))
    return standing[1]


def test_both_servers_take_transactions(as_standing: stack.Servers) -> None:
    make_topic(as_standing)
    write(as_standing, "one")
    assert read(as_standing, 1) == (["one"], ["one"])


def test_a_second_up_returns_at_once_and_starts_nothing(as_standing: stack.Servers) -> None:
    before = pids("standing")
    lines: list[str] = []
    begun = time.monotonic()
    assert stack.up("standing", report=lines.append) == as_standing
    assert time.monotonic() - begun < 2
    assert lines == ["lab 'standing' is up already"]
    assert pids("standing") == before


def test_running_is_quick_and_knows_only_its_own_lab(as_standing: stack.Servers) -> None:
    begun = time.monotonic()
    assert stack.running("standing") == as_standing
    assert time.monotonic() - begun < 0.5
    assert stack.running("other") is None


def test_status_as_json_and_as_a_table(
    as_standing: stack.Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = {"role": "handler", "slot": 0, "pid": 1, "lag": 7}
    monkeypatch.setattr("labkit.cli.servers.WORKERS", [*WORKERS, lambda lab: [worker]])
    done = CliRunner().invoke(app, ["status", "--lab", "standing", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["lab"], found["kind"], found["up"]) == ("standing", "native", True)
    assert worker in found["workers"]
    assert [server["name"] for server in found["servers"]] == ["kafka", "mongo"]
    for server in found["servers"]:
        assert server["answers"] is True
        assert psutil.pid_exists(server["pid"])
        assert server["rss_bytes"] > 1_000_000
        assert server["uptime_s"] > 0
        assert ports.accepts("127.0.0.1", server["port"])
    table = CliRunner().invoke(app, ["status", "--lab", "standing"])
    assert as_standing.bootstrap in table.stdout


def test_status_of_a_lab_that_is_not_up_exits_0(lab_home: Path) -> None:
    done = CliRunner().invoke(app, ["status", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["up"] is False
    assert not (lab_home / "labs").exists(), "to look must not write"


def test_logs_show_the_last_lines(as_standing: stack.Servers) -> None:
    done = CliRunner().invoke(app, ["logs", "kafka", "-n", "5", "--lab", "standing"])
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 5
    both = CliRunner().invoke(app, ["logs", "-n", "100000", "--lab", "standing"])
    assert "Kafka Server started" in both.stdout
    assert "Waiting for connections" in both.stdout


def test_servers_listen_on_loopback_alone_in_a_session_of_their_own(
    as_standing: stack.Servers,
) -> None:
    for process in processes("standing"):
        listening = {c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"}
        assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
        assert os.getsid(process.pid) != os.getsid(0)
        assert process.ppid() != os.getpid(), "a notebook's kernel ends its children"


def test_nothing_is_left_after_down_not_even_of_servers_that_were_killed(lab_home: Path) -> None:
    temporary = Path(tempfile.gettempdir())

    def traces(pid: int, port: int) -> list[Path]:
        perf = temporary.glob(f"hsperfdata_*/{pid}")
        return [*perf, *temporary.glob(f"mongodb-{port}.sock"), *temporary.glob("*zstd-jni*")]

    stack.up()
    state = load("lab")
    servers = processes()
    found = [(server["pid"], server["port"]) for server in stack.status()["servers"]]
    # A clean end would wipe these, a SIGKILL does not: so kill them, and `down` at once.
    for server in servers:
        server.kill()
    stack.down()
    for pid, port in found:
        assert traces(pid, port) == []
    for port in (state.kafka_port, state.controller_port, state.mongo_port):
        assert ports.is_free(port)
    assert not any(is_alive(server) for server in servers)
    assert stack.running() is None
    assert list((lab_home / "labs" / "lab" / "tmp").iterdir()) == []
    again = CliRunner().invoke(app, ["down"])
    assert (again.exit_code, again.stdout) == (0, "nothing was running in lab 'lab'\n")
    assert stack.down(purge=True) is False
    assert not (lab_home / "labs" / "lab").exists()


def test_data_survives_down_up_and_a_change_of_every_port(lab_home: Path) -> None:
    servers = stack.up()
    make_topic(servers)
    write(servers, "a")
    before = load("lab")
    assert stack.down()
    old = (before.kafka_port, before.controller_port, before.mongo_port)
    squatters = [socket.create_server(("127.0.0.1", port)) for port in old]
    try:
        begun = time.monotonic()
        moved = stack.up()
        # The squatters take connections and never answer; mongod would ask its old port for 30 s.
        assert time.monotonic() - begun < 29
        after = load("lab")
        assert not {after.kafka_port, after.controller_port, after.mongo_port} & set(old)
        assert read(moved, 1) == (["a"], ["a"])
        write(moved, "b")
    finally:
        for squatter in squatters:
            squatter.close()
    assert read(moved, 2) == (["a", "b"], ["a", "b"])


def test_a_dead_server_is_started_again_and_the_other_left_alone(lab_home: Path) -> None:
    first = stack.up()
    make_topic(first)
    write(first, "a")
    for victim in ("kafka", "mongo"):
        before = pids()
        kill(psutil.Process(before[victim]))
        assert stack.running() is None
        assert stack.up() == first, "the ports are kept"
        after = pids()
        assert {name for name in before if before[name] != after[name]} == {victim}
    assert read(first, 1) == (["a"], ["a"])


def test_two_labs_side_by_side_with_a_corrupt_state_file_in_one(
    as_standing: stack.Servers, standing: tuple[Path, stack.Servers]
) -> None:
    one = stack.up("one")
    assert one.bootstrap != as_standing.bootstrap
    make_topic(one)
    write(one, "1")
    folder = standing[0] / "labs" / "one"
    (folder / "state.json").write_text('{"kind": 7')
    other = pids("standing")
    lines: list[str] = []
    mended = stack.up("one", report=lines.append)
    assert "moved to state.json.broken-" in lines[0]
    assert any("left behind" in line for line in lines), "its old servers hold its data"
    assert list(folder.glob("state.json.broken-*"))
    assert read(mended, 1) == (["1"], ["1"])
    done = CliRunner().invoke(app, ["down", "--lab", "one", "--purge"])
    assert (done.exit_code, done.stdout) == (0, "lab 'one' is down; its data is deleted\n")
    assert not folder.exists()
    assert pids("standing") == other
    assert stack.running("standing") == as_standing


def test_two_ups_at_once_start_one_pair(lab_home: Path) -> None:
    with shell_up() as one, shell_up() as two:
        said = [shell.communicate(timeout=60)[0] for shell in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0)
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1]
    assert sum(text.count("mongod starts") for text in said) == 1
    assert sum(text.count("busy with lab 'lab'; waiting") for text in said) == 1
    assert len(native.leftovers("lab")) == 2


def test_the_cache_of_mongod_grows_with_the_machine() -> None:
    assert mongod.cache_gb(2 << 30) == 0.5
    assert mongod.cache_gb(24 << 30) == 3.0


# The words after which the shell is killed: right after the start of mongod (Kafka's data folder
# is being formatted), and while both servers start.
@pytest.mark.parametrize(("words", "mend"), [("mongod starts", "up"), ("Kafka starts", "down")])
def test_an_up_that_is_killed_is_mended(lab_home: Path, words: str, mend: str) -> None:
    with shell_up() as shell:
        read_until(shell, words)
        os.killpg(shell.pid, signal.SIGKILL)
    assert native.leftovers("lab"), "the shell was killed too early to leave anything"
    if mend == "down":
        assert stack.down() is True
        assert native.leftovers("lab") == []
        return
    servers = stack.up()
    make_topic(servers)
    write(servers, "x")
    assert len(native.leftovers("lab")) == 2


def test_ctrl_c_in_up_leaves_nothing(lab_home: Path) -> None:
    with shell_up() as shell:
        read_until(shell, "mongod starts")
        os.killpg(shell.pid, signal.SIGINT)
        shell.communicate(timeout=30)
    assert shell.returncode != 0
    assert native.leftovers("lab") == []
    assert stack.running() is None


def test_a_reused_pid_is_neither_taken_for_a_server_nor_killed(lab_home: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        found = psutil.Process(bystander.pid)
        record = ServerProcess(found.pid, born(found.pid), 20_001)
        (lab_home / "labs" / "lab").mkdir(parents=True)
        save(
            "lab",
            LabState(up=True, kafka=record, mongo=record, kafka_port=20_001, mongo_port=20_001),
        )
        assert stack.running() is None
        assert pids() == {"kafka": None, "mongo": None}
        assert stack.down() is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("named", ["", "~nobody-of-this-name/labs"])
def test_without_a_home_folder_one_line_says_what_to_set(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(of: object) -> None:
        raise KeyError(of)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("LABKIT_HOME", named)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(UsageError, match=r"no home folder is known .*set LABKIT_HOME"):
        stack.home()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", no_locks)
    one_at_a_time = demo._alone("lab")
    for ask in (lambda: stack.up("lab"), one_at_a_time.__enter__):
        with pytest.raises(
            StackError, match=r"cannot be locked \(No locks available\).*LABKIT_HOME"
        ):
            ask()


def test_a_server_may_open_as_many_files_as_the_system_allows(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from labkit.stack.processes import launch
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
process = launch(["sleep", "60"], cwd=Path(sys.argv[1]), log=Path(sys.argv[1]) / "log")
print(*process.rlimit(resource.RLIMIT_NOFILE))
process.kill()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    soft, hard = map(int, done.stdout.split())
    assert soft == hard > 256


def test_down_tells_of_those_who_work(lab_home: Path) -> None:
    worker = Alive("handler", "orders", 0, os.getpid())
    with listed("lab", "r0a1b2c3", worker):
        done = CliRunner().invoke(app, ["down"])
    assert done.exit_code == 0
    assert "run r0a1b2c3 has live workers (handler-orders)" in done.output
    assert "live workers" not in CliRunner().invoke(app, ["down"]).output
