"""The command line as a user meets it: exit codes, one clear line, never a traceback."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from kafka.errors import KafkaTimeoutError
from typer.testing import CliRunner

from labkit import __main__, stack
from labkit.adapters.kafka_python_sender import translated
from labkit.cli import dead_letters, main, options, servers, sweep, verify
from labkit.cli.measure import measure, table
from labkit.errors import CheckFailed, Unreachable, UsageError, said
from labkit.experiments.processes import process
from labkit.experiments.verify import queries as verify_queries
from labkit.experiments.verify import write as verify_write

ROOT = Path(__file__).parent.parent


def labkit(
    *arguments: str, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "labkit", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        env={**os.environ, "COLUMNS": "200", **environment},
        check=False,
    )


def labkit_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which takes no second, for what must end before servers start."""
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["labkit", *arguments])
        patch.setenv("COLUMNS", "200")
        patch.setattr(stack, "borrowed", lambda *_: 1 / 0)
        try:
            main.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())


def refused(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 2, done.stderr
    for part in says:
        assert part in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("limit", ["0", "-1", "abc", "1000000000", "1.5", ""])
def test_a_bad_limit_names_the_value(limit: str) -> None:
    refused(labkit_here("demo", f"--limit={limit}"), "--limit", limit)


def test_an_unknown_client(home: Path) -> None:
    refused(labkit_here("demo", "--client", "carrier-pigeon"), "carrier-pigeon", "kafka-python")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_result_that_cannot_be_written_is_said_before_the_run(
    option: str, tmp_path: Path, home: Path
) -> None:
    name = "out.json" if option == "--json" else "out.png"
    (tmp_path / "file").touch()
    below_a_file = tmp_path / "file" / name
    refused(labkit_here("demo", option, str(below_a_file)), option, str(below_a_file))
    folder = tmp_path / name
    folder.mkdir()
    refused(labkit_here("demo", option, str(folder)), option, str(folder))


def test_a_plot_of_an_unknown_kind(tmp_path: Path, home: Path) -> None:
    refused(labkit_here("demo", "--plot", str(tmp_path / "p.docx")), "p.docx", ".png", ".svg")


@pytest.mark.parametrize("name", ["Lab!", "", "x" * 33])
def test_a_bad_lab_name(name: str, home: Path) -> None:
    refused(labkit_here("demo", f"--lab={name}"), repr(name))


def test_an_unknown_role_and_context(tmp_path: Path) -> None:
    refused(labkit("run", "janitor", "--run", "r0"), "janitor", "projector")
    home = {"LABKIT_HOME": str(tmp_path)}  # where nobody started servers
    done = labkit("run", "handler", "--run", "r0", "--service", "zoo", **home)
    refused(done, "the servers of lab 'lab' are not up")  # a run knows its services, not the host


def test_help_lists_every_command() -> None:
    done = labkit("--help")
    assert done.returncode == 0
    for command in ("up", "down", "status", "doctor", "logs", "demo", "run", "api"):
        assert f" {command} " in done.stdout


def test_the_version_is_shown() -> None:
    done = labkit("--version")
    assert (done.returncode, done.stdout.split()) == (
        0,
        ["cqrs-labkit", metadata.version("cqrs-labkit")],
    )


def test_a_lab_that_never_was_is_not_down(tmp_path: Path) -> None:
    home = {"LABKIT_HOME": str(tmp_path)}
    refused(
        labkit("status", "--lab", "nosuch", **home), "no lab 'nosuch'", "labkit up --lab nosuch"
    )
    done = labkit("down", "--purge", **home)
    assert done.stdout == "nothing was running in lab 'lab'\n"
    done = labkit("status", **home)
    assert done.returncode == 0
    assert "is down" in done.stdout
    assert ":0" not in done.stdout


def test_no_command_shows_the_help() -> None:
    done = labkit()
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr


#: A module that the command line loads early, in the middle, and late; and what ends the program.
LOADED = ("labkit.cli", "msgspec", "labkit.lab", "labkit.cli.main")


@pytest.mark.parametrize("module", LOADED)
def test_an_interrupt_while_the_command_line_is_loaded_is_quiet(
    module: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "labkit", "status"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LABKIT_HOME": str(tmp_path)},
    )
    assert process.stderr is not None
    # It says each module that is loaded.
    assert any(line.split("|")[-1].strip() == module for line in process.stderr)
    process.send_signal(signal.SIGINT)
    said = [line for line in process.communicate()[1].splitlines() if " | " not in line]
    # Python ends itself by the signal where it came into code that was made from a text.
    assert process.returncode in (130, -signal.SIGINT)
    assert [line for line in said if not line.startswith("labkit: interrupted")] == []


def test_both_ways_to_start_are_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"labkit": f"{__main__.__name__}:main"}


def traps(folder: Path) -> Path:
    """A folder of a learner, with files that are named like modules of others."""
    folder.mkdir(exist_ok=True)
    for name in ("kafka", "pymongo", "msgspec", "json", "logging", "random", "colorsys"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('the {name}.py of a learner')")
    return folder


def test_a_folder_with_files_named_like_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(traps(tmp_path))
    for command in (["status"], ["new", "shelf"]):
        done = labkit(*command, LABKIT_HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
    with process(_pid) as pipe:
        assert int(pipe.recv_bytes()) != os.getpid()
    assert "PYTHONSAFEPATH" not in os.environ


def test_a_process_of_a_bench_hears_no_interrupt() -> None:
    """It is loaded for half a second before any of its code could ignore one."""
    with process(_pid) as pipe:
        os.kill(int(pipe.recv_bytes()), signal.SIGINT)
        assert pipe.recv_bytes() == b"goes on"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _pid(pipe: Connection) -> None:
    pipe.send_bytes(str(os.getpid()).encode())
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pipe.send_bytes(b"goes on" if blocked else b"would have died while it was loaded")


# --- what others raise


def test_a_client_s_error_is_named_once() -> None:
    once = pytest.raises(Unreachable, match=r"Kafka at x failed: KafkaTimeoutError: late; see")
    with once, translated("flush", "x"):
        raise KafkaTimeoutError("late")
    assert [said(error) for error in (KafkaTimeoutError(), KeyError("moon"), ValueError())] == [
        "KafkaTimeoutError",
        "KeyError: 'moon'",
        "ValueError",
    ]


# --- where the output goes

#: A command that only prints: the buffer is full, or given out, when Python ends.
PRINTS = "from labkit.cli import main; main.app = lambda: print('x'); main.main()"


@pytest.mark.parametrize("command", [["-m", "labkit", "status"], ["-c", PRINTS]])
def test_an_output_that_takes_nothing(command: list[str], tmp_path: Path) -> None:
    def run(stdout: Any) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "LABKIT_HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, *command], stdout=stdout, stderr=subprocess.PIPE, env=environment
        )

    with open("/dev/full", "wb") as full:
        done = run(full)
    said = b"labkit: the output or a file cannot be used: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)
    readable, writable = os.pipe()
    os.close(readable)  # as by `| head`, which has read enough
    done = run(writable)
    os.close(writable)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("printing", ["print('x', '\\u5bb6')", "rich.print('x', '\\u5bb6')"])
def test_an_output_without_the_characters(printing: str) -> None:
    program = (
        f"import rich; from labkit.cli import main; main.app = lambda: {printing}; main.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "x \\u5bb6\n", "")


# --- tables


def shown(columns: int | None, make: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is printed in a terminal of so many columns, or to a file."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    with redirect_stdout(io.StringIO()) as out:
        make()
    assert all(len(line) <= columns for line in out.getvalue().splitlines() if columns)
    return out.getvalue()


LETTER = ("orders", "5db0b7b49d8c4669ad2ec202692d56f0", "handler", "2026-11-27 05:43:00")
REASON = "ZeroDivisionError: division by zero in a rule that tells a long story before it ends"
WORKER = {"run": "r4878f16", "role": "projector", "service": "inventory", "slot": 0}
WORKER |= {"pid": 1234567, "restarts": 0, "lag": 123456, "parked": 12}
SWEPT = ("1", "12,345", "11,345 - 13,345", "1.00 (0.95 - 1.05)", "1,234", "0.123", "0 of 5")
TABLES = {
    "status": (lambda: servers._show("workers", [WORKER]), list(map(str, WORKER.values()))),
    "dead-letters": (
        lambda: dead_letters._print(["a", "b", "c", "since", "reason"], [(*LETTER, REASON)]),
        LETTER,
    ),
    "sweep": (lambda: table("", sweep.COLUMNS, [SWEPT]), SWEPT),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_keeps_ids_and_figures_in_one_piece(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, whole = TABLES[name]
    for columns in (100, 80, 60):
        text = shown(columns, make, monkeypatch)
        assert [cell for cell in whole if cell not in text] == []
    to_a_file = shown(None, make, monkeypatch).splitlines()[-1]
    assert [cell for cell in whole if cell not in to_a_file] == []


def test_a_reason_is_folded_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = TABLES["dead-letters"]
    assert REASON in shown(None, make, monkeypatch)
    for columns in (100, 80, 60):
        text = shown(columns, make, monkeypatch)
        assert [word for word in REASON.split() if word not in text] == []


# --- options and results, in this process

app = typer.Typer()


@app.command()
def parse(
    word: Annotated[str, options.chosen(("a", "b"))] = "a",
    count: Annotated[int, options.option("", options.whole(1, 9), "-c", "--count")] = 5,
    share: Annotated[float, options.option("", options.number(0, 1))] = 1,
    none: Annotated[int | None, options.option("", options.whole(1, 9))] = None,
    lab: options.LabName = "lab",
    json_file: options.JsonFile = None,
) -> None:
    print([word, count, share, none, lab, json_file and json_file.name])


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ([], ["a", 5, 1.0, None, "lab", None]),
        (["b", "-c", "9", "--share", "1e-1"], ["b", 9, 0.1, None, "lab", None]),
        (["--count", "1", "--none", "2", "--lab", "x-1"], ["a", 1, 1.0, 2, "x-1", None]),
        (["--json", "new/r.json"], ["a", 5, 1.0, None, "lab", "r.json"]),
    ],
)
def test_a_command_gets_values(
    arguments: list[str], values: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (done.exit_code, done.stdout.strip()) == (0, str(values))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["c"], "word must be one of a, b, got 'c'"),
        (["-c", "0"], "--count must be a whole number from 1 to 9, got '0'"),
        (["--count", "1.0"], "--count must be a whole number from 1 to 9, got '1.0'"),
        (["--share", "nan"], "--share must be a number from 0 to 1, got 'nan'"),
        (["--none="], "--none must be a whole number from 1 to 9, got ''"),
        (["--lab", "X"], "--lab: a lab's name is 1 to 32 characters of a-z, 0-9 and '-', got 'X'"),
        (["--json", "/"], "--json '/' cannot be written: it is a folder"),
    ],
)
def test_a_bad_option_is_named_with_its_value(arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_result_that_cannot_be_kept_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--json '/dev/full': No space left on device"):
        measure(lambda progress, say: {"n": 1}, Path("/dev/full"), lambda found: print(found))
    assert capsys.readouterr().out == "{'n': 1}\n"


def test_the_json_is_whole_though_the_check_failed(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    with pytest.raises(CheckFailed, match="too few"):
        measure(lambda progress, say: {"n": 1}, file, lambda found: "too few")
    assert json.loads(file.read_text()) == {"n": 1}


def test_the_help_names_all_planted_bugs() -> None:
    assert verify.WRITE_PLANTS == verify_write.PLANTS
    assert verify.QUERY_PLANTS == verify_queries.PLANTS
