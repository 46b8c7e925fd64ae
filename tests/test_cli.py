"""The command line as a user meets it: exit codes, one clear line, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


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


def refused(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 2, done.stderr
    for part in says:
        assert part in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("limit", ["0", "-1", "abc", "1000000000", "1.5", ""])
def test_a_bad_limit_names_the_value(limit: str) -> None:
    refused(labkit("demo", f"--limit={limit}"), "--limit", limit)


def test_an_unknown_client(home: Path) -> None:
    refused(labkit("demo", "--client", "carrier-pigeon"), "carrier-pigeon", "kafka-python")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_result_that_cannot_be_written_is_said_before_the_run(
    option: str, tmp_path: Path, home: Path
) -> None:
    name = "out.json" if option == "--json" else "out.png"
    (tmp_path / "file").touch()
    below_a_file = tmp_path / "file" / name
    refused(labkit("demo", option, str(below_a_file), timeout=20), option, str(below_a_file))
    folder = tmp_path / name
    folder.mkdir()
    refused(labkit("demo", option, str(folder), timeout=20), option, str(folder))


def test_a_plot_of_an_unknown_kind(tmp_path: Path, home: Path) -> None:
    refused(labkit("demo", "--plot", str(tmp_path / "p.docx")), "p.docx", ".png", ".svg")


@pytest.mark.parametrize("name", ["Lab!", "", "x" * 33])
def test_a_bad_lab_name(name: str, home: Path) -> None:
    refused(labkit("demo", f"--lab={name}"), repr(name))


def test_an_unknown_role_and_context(home: Path) -> None:
    refused(labkit("run", "janitor", "--run", "r0"), "janitor", "projector")
    refused(labkit("run", "handler", "--run", "r0", "--service", "zoo"), "zoo", "orders")


def test_help_lists_every_command() -> None:
    done = labkit("--help")
    assert done.returncode == 0
    for command in ("up", "down", "status", "doctor", "logs", "demo", "run", "api"):
        assert f" {command} " in done.stdout


def test_no_command_shows_the_help() -> None:
    done = labkit()
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr
