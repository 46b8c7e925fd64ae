"""Everything that may be wrong with a machine: one clear line each, and nothing left behind."""

import hashlib
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from labkit import stack
from labkit.cli.servers import app
from labkit.errors import StackError, Unreachable, UsageError
from labkit.stack import compose, external, jars, java, limits, mongod, native, ports
from labkit.stack.processes import launch
from labkit.stack.state import load

pytest_plugins = ("tests.stack_home",)

REAL_MONGOD = mongod.find()


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@pytest.fixture
def path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first in the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request to the network fails: its proxy is a port that nobody listens on."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


# Names and arguments


@pytest.mark.parametrize("name", ["", "Lab", "a" * 33, "../up", "a b", "実験", "a.b", 5])
def test_a_bad_lab_name(lab_home: Path, name: Any) -> None:
    for call in (stack.up, stack.down, stack.running, stack.status):
        with pytest.raises(UsageError, match="a lab's name is") as error:
            call(name)
        assert repr(name) in one_line(error)
    assert not (lab_home / "labs").exists()


def test_a_bad_kind(lab_home: Path) -> None:
    with pytest.raises(UsageError, match="native, external, compose, got 'docker'"):
        stack.up(kind="docker")


@pytest.mark.parametrize(
    ("bootstrap", "mongo_uri", "says"),
    [
        ("127.0.0.1:9092", None, "LABKIT_BOOTSTRAP is set, but LABKIT_MONGO_URI is not"),
        (None, "mongodb://h", "LABKIT_MONGO_URI is set, but LABKIT_BOOTSTRAP is not"),
        ("localhost", "mongodb://h", "host:port.*got 'localhost'"),
        ("localhost:99999", "mongodb://h", "host:port.*got 'localhost:99999'"),
        ("h:1,", "mongodb://h", "host:port"),
        ("h:1", "postgres://u:secret@h", r"begin with mongodb://, got 'postgres://u:\*\*\*@h'"),
        (None, None, "--kind external needs LABKIT_BOOTSTRAP and LABKIT_MONGO_URI"),
    ],
)
def test_bad_addresses(
    lab_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    bootstrap: str | None,
    mongo_uri: str | None,
    says: str,
) -> None:
    if bootstrap:
        monkeypatch.setenv("LABKIT_BOOTSTRAP", bootstrap)
    if mongo_uri:
        monkeypatch.setenv("LABKIT_MONGO_URI", mongo_uri)
    with pytest.raises(UsageError, match=says):
        stack.up(kind="external" if not bootstrap and not mongo_uri else None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--kafka-port", "0"],
        ["up", "--mongo-port", "65536"],
        ["up", "--kafka-port", "20001", "--mongo-port", "20001"],
        ["logs", "zookeeper"],
        ["logs", "-n", "0"],
    ],
)
def test_bad_arguments_of_commands(lab_home: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UsageError)
    assert native.leftovers("lab") == []


def test_logs_of_a_lab_that_never_ran(lab_home: Path) -> None:
    done = CliRunner().invoke(app, ["logs"])
    assert isinstance(done.exception, StackError)
    assert "labkit up" in str(done.exception)


@pytest.mark.parametrize("option", ["kafka_port", "mongo_port"])
def test_a_busy_port_is_named(lab_home: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} .*is busy") as error:
            stack.up("lab", **{option: port})  # type: ignore[arg-type]
        one_line(error)
    assert native.leftovers("lab") == []


# Java, jars, mongod


@pytest.mark.parametrize(
    ("java", "says"),
    [
        (None, "has no bin/java"),
        ("echo 'openjdk version \"11.0.2\" 2019-01-15' >&2", "is Java 11, and Kafka needs 17"),
        ("echo 'openjdk version \"1.8.0_292\"' >&2", "is Java 8, and Kafka needs 17"),
        ("echo 'cannot load libjli.so' >&2; exit 127", "exit code 127: cannot load libjli.so"),
    ],
)
def test_a_java_home_of_no_use(
    lab_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, java: str | None, says: str
) -> None:
    if java:
        script(tmp_path / "java" / "bin" / "java", java)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    with pytest.raises(StackError, match=says) as error:
        stack.up()
    assert str(tmp_path / "java") in one_line(error)
    assert native.leftovers("lab") == []
    done = CliRunner().invoke(app, ["doctor"])
    assert isinstance(done.exception, StackError)
    assert "without: Java" in str(done.exception)


def test_a_mongod_without_its_libraries(lab_home: Path, path_first: Path) -> None:
    script(path_first / "ldd", "echo '\tlibcurl.so.4 => not found'; echo '\tlibc.so.6 => /l (0x1)'")
    with pytest.raises(StackError, match=r"lacks the library libcurl\.so\.4: .*libcurl4") as error:
        stack.up()
    one_line(error)
    done = CliRunner().invoke(app, ["doctor"])
    assert isinstance(done.exception, StackError)
    assert "libcurl.so.4" in done.stdout


def test_a_mongod_on_the_path_comes_first_if_it_runs(path_first: Path) -> None:
    broken = script(path_first / "mongod", "echo 'GLIBC_2.99 not found' >&2; exit 1")
    if REAL_MONGOD.origin != "PATH":
        assert mongod.find() == REAL_MONGOD
    broken.unlink()
    broken.symlink_to(REAL_MONGOD.path)
    assert mongod.find().origin == "PATH"


def test_no_mongod_at_all(
    lab_home: Path, path_first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(path_first))
    monkeypatch.setattr(mongod, "_WHEEL", "no-such-wheel")
    with pytest.raises(StackError, match="no mongod: put one into the PATH"):
        mongod.find()


def test_no_network_on_the_first_start(lab_home: Path, offline: None) -> None:
    (lab_home / "jars").unlink()
    lines: list[str] = []
    with pytest.raises(StackError, match="connect to the network for the first") as error:
        stack.up(report=lines.append)
    assert "Maven Central" in one_line(error)
    assert "about 45 MB" in lines[0]
    assert not jars.present()
    assert native.leftovers("lab") == []


def test_a_damaged_or_missing_jar(
    lab_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab_home / "jars").unlink()
    changed = tmp_path / "kafka-clients-4.3.1.jar"
    changed.write_bytes(b"something else")
    monkeypatch.setattr(jars, "_resolve", lambda scratch, report: [changed])
    monkeypatch.setattr(jars, "pins", lambda: {changed.name: "0" * 64})
    with pytest.raises(StackError, match=r"kafka-clients-4\.3\.1\.jar does not match its pinned"):
        jars.ensure()
    assert not jars.present()
    monkeypatch.setattr(jars, "pins", lambda: {changed.name: jars.sha256(changed)})
    jars.ensure()
    assert jars.present()
    (jars.folder() / changed.name).write_bytes(b"short")
    assert not jars.present(), "a jar of another size is not the one"
    jars.ensure()
    (jars.folder() / changed.name).unlink()
    assert not jars.present()


def test_a_download_that_was_killed_is_done_again(
    lab_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab_home / "jars").unlink()
    scratch = lab_home / "jars" / "download"
    scratch.mkdir(parents=True)
    (scratch / "half").write_bytes(b"")
    jar = tmp_path / "kafka-clients-4.3.1.jar"

    def resolve(scratch: Path, report: object) -> list[Path]:
        jar.write_bytes(b"wh" if (scratch / "half").exists() else b"whole")
        return [jar]

    monkeypatch.setattr(jars, "_resolve", resolve)
    monkeypatch.setattr(jars, "pins", lambda: {jar.name: hashlib.sha256(b"whole").hexdigest()})
    jars.ensure()
    assert jars.present()
    assert not scratch.exists()


def test_the_pinned_jars_are_those_that_are_used(lab_home: Path) -> None:
    where = jars.ensure()
    assert {jar.name: jars.sha256(jar) for jar in where.glob("*.jar")} == jars.pins()


# Servers that die


@pytest.mark.servers
def test_a_kafka_that_dies_at_its_start(
    lab_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = (
        'case "$*" in *-version*) echo \'openjdk version "21.0.1"\' >&2;;\n'
        "*StorageTool*) touch kafka/meta.properties;;\n"
        "*) echo 'ERROR the controller has a headache'; echo '\tat Brain.main'; exit 3;; esac"
    )
    script(tmp_path / "java" / "bin" / "java", java)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    with pytest.raises(
        StackError, match=r"(died while it started|did not start): ERROR the"
    ) as error:
        stack.up()
    assert str(lab_home / "labs" / "lab" / "logs" / "kafka.log") in one_line(error)
    assert native.leftovers("lab") == [], "mongod is stopped again"
    assert stack.running() is None


@pytest.mark.servers
def test_data_that_the_servers_cannot_read(lab_home: Path) -> None:
    stack.up()
    stack.down()
    lab = lab_home / "labs" / "lab"
    meta = lab / "kafka" / "meta.properties"
    good = meta.read_text()
    meta.write_text(good.replace("node.id=1", "node.id=7"))
    with pytest.raises(StackError, match=r"Kafka died while it started: .*node") as error:
        stack.up()
    one_line(error)
    assert native.leftovers("lab") == []
    meta.write_text(good)
    (lab / "mongo" / "WiredTiger.turtle").write_bytes(b"\0" * 1000)
    (lab / "mongo" / "WiredTiger").write_bytes(b"\0" * 10)
    with pytest.raises(StackError, match="mongod died while it started: ") as error:
        stack.up()
    assert "mongo.log" in one_line(error)
    assert native.leftovers("lab") == []


# Home folders


@pytest.mark.servers
def test_an_odd_home_folder_under_lc_all_c_without_a_network(
    standing: object,
    lab_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline: None,
) -> None:
    assert jars.present(), "the standing lab has seen to it"
    odd = tmp_path / "数据 目录: a,b; c=d\\e#f"
    odd.mkdir()
    (odd / "jars").symlink_to((lab_home / "jars").resolve())
    code = (
        "from labkit import stack\n"
        "s = stack.up()\n"
        "assert stack.running() == s\n"
        "print(s.bootstrap)\n"
        "from labkit.cli.servers import app\n"
        "app(['status', '--json'])\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    env = clean | {"LC_ALL": "C", "LABKIT_HOME": str(odd)}
    monkeypatch.setenv("LABKIT_HOME", str(odd))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()
        # And a shell with another locale finds the same servers.
        servers = stack.running()
        assert servers is not None
        assert servers.bootstrap in done.stdout.decode()
        assert (odd / "labs" / "lab" / "kafka" / "meta.properties").exists()
    finally:
        assert stack.down(purge=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A small disk, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    command = [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(lab_home: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(mounted))
    (mounted / "jars").symlink_to(lab_home / "jars")
    with pytest.raises(StackError, match=r"is full: \d MB are free, at least 600 MB") as error:
        stack.up()
    assert str(mounted) in one_line(error)
    done = CliRunner().invoke(app, ["doctor"])
    assert "without: disk" in str(done.exception)
    # Not one byte left: even the state cannot be written.
    with pytest.raises(OSError, match="No space"):
        (mounted / "filler").write_bytes(b"x" * 8_000_000)
    with pytest.raises(StackError, match="is full"):
        stack.up("another")


def test_a_full_disk_in_the_middle_of_the_download(
    lab_home: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(mounted))
    jar = mounted / "kafka.jar"
    jar.write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(jars, "_resolve", lambda scratch, report: [jar])
    monkeypatch.setattr(jars, "pins", lambda: {jar.name: jars.sha256(jar)})
    with pytest.raises(StackError, match="is full") as error:
        jars.ensure()
    assert str(mounted) in one_line(error)
    assert not jars.present()


def test_a_home_that_cannot_be_written_to(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        # The permissions of a folder mean nothing to root; a read-only disk does.
        folder = request.getfixturevalue("mounted")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    else:
        folder = tmp_path / "disk"
        folder.mkdir()
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for home in (folder, folder / "deeper" / "still"):
        monkeypatch.setenv("LABKIT_HOME", str(home))
        with pytest.raises(StackError, match=r"cannot write to .*set LABKIT_HOME") as error:
            stack.up()
        assert str(home) in one_line(error)
        assert stack.down() is False
        assert stack.running() is None
        assert stack.status()["up"] is False
        done = CliRunner().invoke(app, ["doctor"])
        assert "without: disk" in str(done.exception)


def test_a_home_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "file"
    home.write_text("")
    monkeypatch.setenv("LABKIT_HOME", str(home))
    with pytest.raises(StackError, match="cannot write to") as error:
        stack.up()
    assert str(home) in one_line(error)
    assert stack.running() is None
    assert stack.down() is False


# Servers of somebody else


@pytest.mark.servers
def test_external_servers(
    standing: tuple[Path, stack.Servers], lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = standing[1]
    monkeypatch.setenv("LABKIT_BOOTSTRAP", servers.bootstrap)
    monkeypatch.setenv("LABKIT_MONGO_URI", servers.mongo_uri)
    up = stack.up()
    assert up == stack.Servers("lab", "external", servers.bootstrap, servers.mongo_uri)
    assert stack.running() == up
    assert stack.status()["up"] is True
    assert stack.down() is False, "they are not ours to stop"
    assert stack.running() is None
    monkeypatch.setenv("LABKIT_HOME", str(standing[0]))
    assert stack.running("standing") == servers
    with pytest.raises(StackError, match="runs native servers, not external"):
        stack.up("standing")


@pytest.mark.servers
def test_external_servers_that_refuse_or_do_not_answer(
    standing: tuple[Path, stack.Servers], lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external.check_kafka, "__defaults__", (1.0,))
    monkeypatch.setattr(external.check_mongo, "__defaults__", (1.0,))
    servers = standing[1]
    silent = ports.choose(0, set())
    address = servers.mongo_uri.removeprefix("mongodb://").partition("/")[0]
    cases: list[tuple[str, str, type[StackError], str]] = [
        (f"127.0.0.1:{silent}", servers.mongo_uri, Unreachable, f"no Kafka answers at .*{silent}"),
        (address, servers.mongo_uri, Unreachable, f"no Kafka answers at {address}"),
        (servers.bootstrap, f"mongodb://127.0.0.1:{silent}", Unreachable, "no MongoDB answers at"),
        (
            servers.bootstrap,
            f"mongodb://ada:secret@{address}/?replicaSet=rs0",
            StackError,
            r"mongodb://ada:\*\*\*@.* \(the user or the password is wrong\)",
        ),
    ]
    for bootstrap, mongo_uri, kind, says in cases:
        monkeypatch.setenv("LABKIT_BOOTSTRAP", bootstrap)
        monkeypatch.setenv("LABKIT_MONGO_URI", mongo_uri)
        with pytest.raises(kind, match=says) as error:
            stack.up()
        assert "secret" not in one_line(error)
        assert stack.running() is None


@pytest.mark.servers
def test_an_external_mongod_without_transactions(lab_home: Path, tmp_path: Path) -> None:
    port = ports.choose(0, set())
    command = [str(REAL_MONGOD.path), "--dbpath", str(tmp_path), "--port", str(port)]
    process = launch(
        [*command, "--bind_ip", "127.0.0.1", "--nounixsocket"], cwd=tmp_path, log=tmp_path / "log"
    )
    try:
        with pytest.raises(StackError, match="neither a replica set nor sharded"):
            external.check_mongo(f"mongodb://127.0.0.1:{port}", timeout=20)
    finally:
        process.kill()


@pytest.mark.parametrize("uri", ["mongodb://", "mongodb://h:port", "mongodb://a:b@c@h"])
def test_a_malformed_mongo_uri(uri: str) -> None:
    with pytest.raises(UsageError, match="LABKIT_MONGO_URI is malformed"):
        external.check_mongo(uri)


# Docker


def test_the_compose_file_is_valid_and_listens_on_loopback_alone() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(compose.FILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    services = yaml.safe_load(compose.FILE.read_text())["services"]
    core = {name: service for name, service in services.items() if "core" in service["profiles"]}
    assert set(core) == {"kafka", "mongo"}
    for service in core.values():
        assert "healthcheck" in service
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_container_has_the_same_settings_as_the_native_broker() -> None:
    from labkit.stack.broker import _PROPERTIES

    native_only = {
        "log.segment.bytes",
        "log.index.size.max.bytes",
        "log.cleaner.dedupe.buffer.size",
    }
    native_only |= {"num.network.threads", "num.io.threads"}
    lines = [line for line in _PROPERTIES.splitlines() if "=" in line and line[0] != "#"]
    settings = dict(line.split("=", 1) for line in lines)
    container = yaml.safe_load(compose.FILE.read_text())["services"]["kafka"]["environment"]
    tuned = {
        key: value
        for key, value in settings.items()
        if "{" not in value and key not in native_only and "listener" not in key
    }
    assert tuned.pop("log.dirs") == "kafka"
    for key, value in tuned.items():
        assert container.get("KAFKA_" + key.upper().replace(".", "_")) == value, key


@pytest.mark.parametrize(
    ("docker", "says"),
    [
        (None, "no `docker` in the PATH"),
        (
            "echo 'Cannot connect to the Docker daemon' >&2; exit 1",
            "reaches no engine .*Cannot connect",
        ),
        (
            'test "$1" = version && echo 28.0 || { echo "unknown command: compose" >&2; exit 1; }',
            "docker compose up failed: unknown command",
        ),
    ],
)
def test_docker_that_cannot(
    lab_home: Path,
    path_first: Path,
    monkeypatch: pytest.MonkeyPatch,
    docker: str | None,
    says: str,
) -> None:
    if docker:
        script(path_first / "docker", docker)
    else:
        monkeypatch.setenv("PATH", str(path_first))
    with pytest.raises(StackError, match=says) as error:
        stack.up(kind="compose")
    one_line(error)
    assert load("lab").up is False


def test_what_compose_is_asked_to_do(lab_home: Path, path_first: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script(path_first / "docker", f'echo "$LABKIT_KAFKA_PORT $*" >>{asked}; echo 28.0')
    servers = stack.up("c", kind="compose", kafka_port=19092)
    assert (servers.kind, servers.bootstrap) == ("compose", "127.0.0.1:19092")
    assert stack.down("c") is True
    assert stack.down("c") is False
    lines = [line for line in asked.read_text().splitlines() if " compose " in line]
    start = f"compose -p labkit-c -f {compose.FILE} --profile core"
    assert lines == [f"19092 {start} up -d --wait", f"19092 {start} down"]


# The doctor


def test_doctor_finds_all_that_is_needed(lab_home: Path) -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    for what in ("Python", "Java", "jars", "mongod", "Docker engine", "memory", "disk", "ports"):
        assert what in done.stdout
    assert "missing" not in done.stdout
    assert not (lab_home / "labs").exists(), "to look must not write"


def test_doctor_calls_ok_what_it_has_seen_alone(
    lab_home: Path, path_first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(path_first / "docker", "echo 'Cannot connect' >&2; exit 1")
    monkeypatch.setattr(jars, "present", lambda: False)
    assert verdicts() == {"Docker engine": "not needed", "jars": "later"}
    monkeypatch.setattr(limits, "free_memory", lambda: 10**6)
    assert verdicts()["memory"] == "missing"
    monkeypatch.setattr(external, "addresses", lambda: ("127.0.0.1:1", "mongodb://127.0.0.1:1"))
    monkeypatch.setattr(java, "find", lambda: (_ for _ in ()).throw(StackError("none: get one")))
    for check in ("check_kafka", "check_mongo"):
        monkeypatch.setattr(external, check, lambda address: None)
    needless = ("Java", "Docker engine", "jars", "memory")
    assert verdicts() == dict.fromkeys(needless, "not needed")


def verdicts() -> dict[str, str]:
    """All that is not ok, as the table shows it."""
    shown = CliRunner(env={"COLUMNS": "500"}).invoke(app, ["doctor"]).stdout
    rows = [re.split(r"  +", line) for line in shown.splitlines()[3:]]
    return {what: verdict for what, verdict, *_ in rows if verdict != "ok"}
