"""The two rules of import, and the size of a file: what keeps the parts apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import labkit

PACKAGE = Path(labkit.__file__).parent
ROOT = PACKAGE.parent
#: A file that passes about 300 lines is two concepts; past this it is an error.
LONGEST = 450
#: What is longer today, and may not grow: the wiring is in one place on purpose.
LONGER = {"lab.py": 600}

#: Who may import a client: the adapters; the servers' own checks; Quix' recipes; and the bare
#: loop of a transaction, which is measured without any code of ours.
CLIENTS = {"kafka", "confluent_kafka", "pymongo", "bson", "quixstreams", "faststream"}
AT_A_CLIENT = ("adapters/", "stack/", "streams/", "experiments/bench/bare_transaction.py")

MODULES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("lint-imports")),
            *("--config", str(ROOT / "pyproject.toml"), "--no-cache"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_rules_of_import_are_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


def test_clients_are_imported_at_the_edge_alone() -> None:
    found = {
        (module, name.partition(".")[0])
        for module in MODULES
        for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    at_a_client = {module for module, name in found if name in CLIENTS}
    assert {m for m in at_a_client if not m.startswith(AT_A_CLIENT)} == set()
    assert any(m.startswith("adapters/") for m in at_a_client), "it sees imports"


@pytest.mark.parametrize("module", MODULES)
def test_one_concept_to_a_file(module: str) -> None:
    lines = len((PACKAGE / module).read_text(encoding="utf-8").splitlines())
    assert lines <= LONGER.get(module, LONGEST), f"{module} has {lines} lines"


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    names = {Path(module).stem for module in MODULES}
    assert not names & {"utils", "util", "helpers", "common", "misc", "manager", "base"}


def test_the_core_runs_without_any_client() -> None:
    """Not only unimported: the twin and the core work where no client can be imported."""
    program = (
        "import sys\n"
        "for name in ('pymongo', 'confluent_kafka', 'pandas', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import labkit.testing, labkit.log.event_log, labkit.query.handler\n"
        "from labkit.write import bus, handler\n"
        "from labkit.read import projector, queries\n"
        "assert 'labkit.lab' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
