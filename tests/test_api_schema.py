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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labkit.services.services import CONTEXTS

from labkit import stack
from labkit.api import queries
from labkit.api.backend import Backend
from labkit.lab import Lab
from labkit.services.fulfilment import PROCESSES
from tests.serving import Served, serving

pytestmark = pytest.mark.servers

TESTS = Path(__file__).parent
#: What was promised of the long run.
LEAST_CASES = 2_000


@pytest.fixture(scope="module")
def served(servers: stack.Servers) -> Iterator[Served]:
    with Lab(services=list(CONTEXTS), processes=list(PROCESSES), start=False, partitions=2) as lab:
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


def passed(report: dict[str, Any], least: int) -> None:
    cases = report["test_cases"]
    assert report["failures"] == [], report["output"]
    assert report["errors"] == [], report["output"]
    assert (cases["with_failures"], cases["errored"]) == (0, 0), report["output"]
    assert report["operations"]["tested"] == report["operations"]["total"] >= 30
    assert cases["generated"] >= least, f"only {cases['generated']} cases"
    assert report["exit"] == 0


def test_a_few_cases_of_every_operation(served: Served, tmp_path: Path) -> None:
    options = ("--phases", "examples,fuzzing,stateful", "-n", "2", "--seed", "1")
    passed(schemathesis(served.url, tmp_path, *options), 100)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_two_thousand_cases_and_more(served: Served, tmp_path: Path) -> None:
    options = ("--phases", "examples,coverage,fuzzing,stateful", "-n", "20", "--seed", "2")
    report = schemathesis(served.url, tmp_path, *options)
    print(report["test_cases"], f"in {report['running_time']:.0f} s")
    passed(report, LEAST_CASES)
    assert {p["status"] for p in report["phases"].values()} == {"success"}, report["phases"]


# --- planted bugs, each of which must be seen


def a_bug(patch: pytest.MonkeyPatch) -> None:
    def broken(order: Any) -> Any:
        raise KeyError("customer")

    patch.setattr(queries, "order", broken)


def an_undocumented_status(patch: pytest.MonkeyPatch) -> None:
    honest = Backend.submit

    def submit(*args: Any, **more: Any) -> Any:
        answer = honest(*args, **more)
        answer.status_code = 203
        return answer

    patch.setattr(Backend, "submit", submit)


def a_wrong_etag(patch: pytest.MonkeyPatch) -> None:
    honest = queries._one

    def one(*args: Any) -> Any:
        answer = honest(*args)
        if answer.status_code == 200:
            answer.headers["ETag"] = '"0"'
        return answer

    patch.setattr(queries, "_one", one)


PLANTED = {
    "a bug": (a_bug, "ST101"),
    "an undocumented status": (an_undocumented_status, "ST103"),
    "a wrong ETag": (a_wrong_etag, "ST901"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_seen(
    name: str, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, code = PLANTED[name]
    plant(monkeypatch)
    options = ("--phases", "fuzzing,stateful", "-n", "10", "--include-path-regex", "^/orders")
    report = schemathesis(served.url, tmp_path, *options)
    assert code in {failure["code"] for failure in report["failures"]}, report["output"]
