"""The files around the code: environment.yml, the lock file, the Makefile, CI."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def test_environment_yml_agrees_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = {
        Requirement(d).name: Requirement(d)
        for d in environment["dependencies"]
        if isinstance(d, str)
    }
    assert str(plain["python"].specifier) == PROJECT["requires-python"]
    assert {"openjdk", "mongodb", "pip"} <= set(plain)
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    (own,) = pip
    assert own.startswith("-e .")
    extras = set(re.findall(r"[a-z]+", own.partition("[")[2]))
    assert extras <= set(PROJECT["optional-dependencies"])
    assert environment["name"] == PROJECT["name"]


def test_the_lock_file_has_every_requirement_with_hashes_and_no_address() -> None:
    wanted = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    locked = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ]+)", LOCK, re.MULTILINE)
    }
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in locked, f"{name} is not locked; run `make lock`"
        assert requirement.specifier.contains(locked[name]), f"{name} is locked at {locked[name]}"
    assert "://" not in LOCK
    assert LOCK.count("--hash=sha256:") >= len(locked)


def test_make_alone_lists_the_targets() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("install", "demo", "test", "lab"):
        assert re.search(rf"^{target} +\w", listed, re.MULTILINE), listed


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "\nmake test\n" in script
    assert "\nmake test\n" in (ROOT / "README.md").read_text()
    slow = subprocess.run(["grep", "-rlE", r"mark\.slow", "tests"], cwd=ROOT, capture_output=True)
    used = [name for name in slow.stdout.decode().split() if not name.endswith("test_project.py")]
    assert ("make test-slow" in script) == bool(used)


def test_the_top_level_is_as_promised() -> None:
    for name in (
        "notebooks",
        "labkit",
        "docker",
        "tests",
        "environment.yml",
        "README.md",
        "LICENSE",
    ):
        assert (ROOT / name).exists(), name


def test_the_table_of_kinds_names_tests_that_exist() -> None:
    named, file = 0, ""
    for found in re.findall(
        r"`([\w/]*\.py)?(?:::(test_\w+))?`", (ROOT / "docs/kinds.md").read_text()
    ):
        if not any(found) or (found[0] and not Path(found[0]).name.startswith("test_")):
            continue
        file = found[0] or file
        code = (ROOT / "tests" / file).read_text()
        assert not found[1] or f"def {found[1]}(" in code, found
        named += 1
    assert named > 70
