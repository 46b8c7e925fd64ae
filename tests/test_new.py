"""``labkit new``: a service that runs everywhere, and the README shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import stack
from tests.test_cli import labkit, refused
from tests.test_readme import blocks

ROOT = Path(__file__).parent.parent
#: A short load that the machine disturbed does not count, and says so.
TRIES = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a service of one's own, in which commands run."""
    monkeypatch.chdir(tmp_path)
    done = labkit("new", "desk")
    assert done.returncode == 0, done.stderr
    return tmp_path


def run(*command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def test_its_tests_pass_and_it_is_short(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["desk.py", "desk_test.py"]
    done = run(sys.executable, "-m", "pytest", "-q", "desk_test.py")
    assert done.returncode == 0, done.stdout
    assert "5 passed in" in done.stdout  # without warnings
    lines = [line for line in (folder / "desk.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 80


def test_a_broken_rule_turns_its_tests_red(folder: Path) -> None:
    service = folder / "desk.py"
    service.write_text(service.read_text().replace('check_status(ticket, command, "answered")', ""))
    assert run(sys.executable, "-m", "pytest", "-q", "desk_test.py").returncode == 1


def test_the_readme_shows_the_file(folder: Path) -> None:
    (shown,) = [block for block in blocks("python") if "DESK = Service(" in block]
    assert shown == (folder / "desk.py").read_text()


def test_what_cannot_be_a_service_is_one_line(folder: Path) -> None:
    refused(labkit("new", "desk"), "desk.py, desk_test.py", "exists here already")
    refused(labkit("new", "Desk!"), "'Desk!'", "lower-case")
    for taken in ("random", "kafka", "labkit"):
        refused(labkit("new", taken), repr(taken), "Python imports already")
    refused(labkit("new", "class"), "'class'")
    refused(labkit("new", "commands"), "'commands'")


def test_an_unknown_service_is_one_line(folder: Path) -> None:
    refused(labkit("verify", "write", "--service", "desk:OWL"), "'OWL'", "DESK")
    refused(labkit("verify", "write", "--service", "owl:OWL"), "cannot import 'owl'")
    refused(labkit("load", "--service", "owl"), "'owl'", "orders")
    (folder / "broken.py").write_text("def")
    refused(labkit("load", "--service", "broken:X"), "cannot import 'broken'", "SyntaxError")


@pytest.mark.slow
@pytest.mark.servers
def test_the_commands_of_the_readme_run(folder: Path, servers: stack.Servers) -> None:
    """As they stand, but shorter; the API has tests of its own."""
    (own,) = [block for block in blocks("sh") if "labkit new" in block]
    shorter = {"--commands 20000": "--commands 3000", "--rate 0.5": "--rate 200"}
    shorter["--seconds 20"] = "--seconds 5"
    for command in own.splitlines()[1:-1]:
        for long, short in shorter.items():
            command = command.replace(long, short)
        for _ in range(TRIES if command.startswith("labkit load") else 1):
            done = run(*command.split())
            if done.returncode == 0:
                break
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert json.loads((folder / "verify.json").read_text())["ok"] is True
    assert json.loads((folder / "load.json").read_text())["ok"] is True
