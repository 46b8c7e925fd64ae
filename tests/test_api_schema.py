"""The API is what its OpenAPI says: Schemathesis tries to show the contrary, on real servers.

All its checks and three of our own, with commands sent ``Prefer: wait=5``: no answer is 500 or
above, each status and each schema is a documented one, what fits its description is taken, what
does not is turned away, and what was made is found by the links.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from labkit import stack
from labkit.api import answers, queries
from labkit.api.backend import Backend
from labkit.lab import Lab
from labkit.services import BUILT_IN, PROCESSES
from tests.serving import Served, serving

pytestmark = pytest.mark.servers

TESTS = Path(__file__).parent
#: What was promised of the long run.
LEAST_CASES = 2_000


class Subject(NamedTuple):
    """A run whose API is tried: its services and processes, by name or reference; how many
    operations it has at least; of each, the examples of the long run; and a part of its paths."""

    services: Sequence[str]
    processes: Sequence[str]
    operations: int
    examples: int
    paths: str


SUBJECTS = {
    "built in": Subject(BUILT_IN, PROCESSES, 50, 20, "^/orders"),
    "of somebody's own": Subject(["tests.desk_for_api:DESK"], [], 18, 80, "^/desk"),
}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


@pytest.fixture(scope="module")
def served(servers: stack.Servers, subject: Subject) -> Iterator[Served]:
    chosen = {"services": subject.services, "processes": subject.processes}
    with Lab(**chosen, start=False, partitions=2) as lab:
        lab.start()
        with serving(lab) as found:
            yield found
        lab.drop()


def schemathesis(url: str, folder: Path, *options: str) -> dict[str, Any]:
    """Its report; ``output`` is what it printed."""
    report = folder / "report.json"
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "--no-color"),
            *("--config-file", str(TESTS / "schemathesis.toml")),
            *("run", f"{url}/openapi.json", "--generation-database", "none"),
            *("--report", "json", "--report-json-path", str(report), *options),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(TESTS / "schemathesis_hooks.py")},
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found | {"output": done.stdout[-20_000:], "exit": done.returncode}


def passed(report: dict[str, Any], subject: Subject, least: int) -> None:
    cases = report["test_cases"]
    assert report["failures"] == [], report["output"]
    assert report["errors"] == [], report["output"]
    assert (cases["with_failures"], cases["errored"]) == (0, 0), report["output"]
    assert report["operations"]["tested"] == report["operations"]["total"] >= subject.operations
    assert cases["generated"] >= least, f"only {cases['generated']} cases"
    assert report["exit"] == 0


def test_a_few_cases_of_every_operation(served: Served, subject: Subject, tmp_path: Path) -> None:
    options = ("--phases", "examples,fuzzing,stateful", "-n", "2", "--seed", "1")
    passed(schemathesis(served.url, tmp_path, *options), subject, 2 * subject.operations)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_two_thousand_cases_and_more(served: Served, subject: Subject, tmp_path: Path) -> None:
    options = ("--phases", "examples,coverage,fuzzing,stateful", "--seed", "2")
    options += ("-n", str(subject.examples))
    report = schemathesis(served.url, tmp_path, *options)
    print(report["test_cases"], f"in {report['running_time']:.0f} s")
    passed(report, subject, LEAST_CASES)
    assert {p["status"] for p in report["phases"].values()} == {"success"}, report["phases"]


# --- planted bugs, each of which must be seen


def a_bug(patch: pytest.MonkeyPatch) -> None:
    def broken(answer: Any, route: Any) -> Any:
        raise KeyError("customer")

    patch.setattr(answers, "shown", broken)


def an_undocumented_status(patch: pytest.MonkeyPatch) -> None:
    honest = Backend.submit

    def submit(*args: Any, **more: Any) -> Any:
        answer = honest(*args, **more)
        answer.status_code = 203
        return answer

    patch.setattr(Backend, "submit", submit)


def a_wrong_etag(patch: pytest.MonkeyPatch) -> None:
    honest = queries._answer

    def answer(*args: Any) -> Any:
        found = honest(*args)
        if found.status_code == 200 and "ETag" in found.headers:
            found.headers["ETag"] = '"0"'
        return found

    patch.setattr(queries, "_answer", answer)


PLANTED = {
    "a bug": (a_bug, "ST101"),
    "an undocumented status": (an_undocumented_status, "ST103"),
    "a wrong ETag": (a_wrong_etag, "ST901"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_seen(
    name: str, served: Served, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, code = PLANTED[name]
    plant(monkeypatch)
    options = ("--phases", "fuzzing,stateful", "-n", "10", "--include-path-regex", subject.paths)
    report = schemathesis(served.url, tmp_path, *options)
    assert code in {failure["code"] for failure in report["failures"]}, report["output"]
