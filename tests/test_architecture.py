"""The two rules of import, and the size of a file: what keeps the parts apart."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import labkit
from tests.built_in import PROCESSES, SERVICES

PACKAGE = Path(labkit.__file__).parent
ROOT = PACKAGE.parent
#: A file that passes about 300 lines is two concepts; past this it is an error.
LONGEST = 400
#: What is longer today, and may not grow: the wiring is in one place on purpose.
LONGER = {"lab.py": 540, "read/projector.py": 420}

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
    assert "4 kept, 0 broken" in done.stdout


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


#: What is about certain services: the demo of the CDNOW purchases, the job of the peers' bench, the
#: notebooks' helpers, and stream analysis (whose topics are its own).
ABOUT_SERVICES = (
    "services/",
    "streams/",
    "teaching/",
    "plots/",
    "experiments/demo.py",
    "experiments/cdnow.py",
    "experiments/sales.py",
    "experiments/bench/job.py",
)


def named_in(module: str) -> set[str]:
    """Names and string constants of a module, but for its docstrings."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found.add(node.value)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


def test_no_room_names_a_service_or_its_messages() -> None:
    names = {*SERVICES, *PROCESSES}
    for service in SERVICES.values():
        types = (*service.commands, *service.events, *service.queries.values())
        names |= {kind.__name__ for kind in types} | {type(v).__name__ for v in service.views}
    for module in MODULES:
        if not module.startswith(ABOUT_SERVICES):
            assert not named_in(module) & names, module
    assert named_in("experiments/demo.py") & names, "it sees them"


#: What a message says to do: a command of labkit or a call of a lab, a log to read, another try.
TO_DO = re.compile(r"`labkit |lab\.[\w.]+\(|; see \{|again|ask ")


def test_a_time_out_says_what_to_do() -> None:
    said = [
        text(node.args[0])
        for module in MODULES
        for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "TimedOut"
        if not isinstance(node.args[0], ast.Call)  # another message, with other figures
    ]
    assert len(said) > 10
    assert [line for line in said if not TO_DO.search(line)] == []


def text(message: ast.expr) -> str:
    """Of a (formatted) string, each expression as ``{...}``."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    return "".join(str(p.value) if isinstance(p, ast.Constant) else "{...}" for p in parts)
