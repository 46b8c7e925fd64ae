"""How large each arm is: files and lines of its code, what it imports, and what one must know.

The modules are those that the arm's own code imports when it is imported, and theirs, as far as
they are labkit's: of labkit the parts that this bench runs, not those that it leaves out (the query
bus, say). ``own`` leaves out what all arms share: messages, services, the store. The lines count
comments and docstrings. The concepts and the failure modes are lists that people wrote.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from labkit.experiments.cost.arm import ARMS

#: Where the code of each arm begins: clients, and what its workers run.
ENTRIES: dict[str, tuple[str, ...]] = {
    "naive": ("labkit.experiments.cost.naive",),
    "crud": ("labkit.experiments.cost.crud", "labkit.adapters.mongo"),
    "view": ("labkit.experiments.cost.fed_view", "labkit.adapters.mongo"),
    "outbox": ("labkit.experiments.cost.relay", "labkit.adapters.mongo"),
    "labkit": (
        "labkit.write.bus",
        "labkit.write.handler",
        "labkit.read.projector",
        "labkit.read.queries",
        "labkit.process.process_manager",
        "labkit.run.worker",
        "labkit.adapters.kafka_python",
        "labkit.adapters.kafka_python_log",
        "labkit.adapters.mongo",
    ),
}
#: The servers and the kinds of processes that an operator runs.
RUNS: dict[str, tuple[str, ...]] = {
    "naive": ("MongoDB", "service"),
    "crud": ("MongoDB", "service"),
    "view": ("MongoDB", "service", "feeder"),
    "outbox": ("MongoDB", "service", "relay"),
    "labkit": ("MongoDB", "Kafka", "service", "handler", "projector"),
}
CRUD_CONCEPTS = (
    "transaction",
    "optimistic version",
    "retry with a random pause",
    "idempotency table",
)
CRUD_FAILURES = (
    "hot row: most transactions are aborted and made again",
    "outcome of a commit unknown: send again with the same id",
    "the idempotency table grows; what is deleted from it can happen again",
    "no past: a wrong rule leaves wrong rows, and nobody can say which",
)
#: What a reader must know before the code can be changed.
CONCEPTS: dict[str, tuple[str, ...]] = {
    "naive": ("read, decide, write",),
    "crud": CRUD_CONCEPTS,
    "view": (*CRUD_CONCEPTS, "change stream and resume token", "read model", "stale read"),
    "outbox": (
        *CRUD_CONCEPTS,
        "outbox and relay",
        "process manager, compensation",
        "ids derived from what is told",
    ),
    "labkit": (
        "command, event, commit",
        "stream and version",
        "partition, offset, consumer group",
        "transaction of Kafka, read committed",
        "fencing, epoch",
        "checkpoint",
        "projection, generation, rebuild",
        "token and freshness of reads",
        "process manager, compensation",
        "upcast and fold",
        "dead letter, parked stream",
    ),
}
#: What goes wrong in operation, and must be recognised.
FAILURE_MODES: dict[str, tuple[str, ...]] = {
    "naive": (
        "a write overwrites another",
        "a command that is sent again takes effect again",
        "a crash between two writes leaves half of them",
    ),
    "crud": CRUD_FAILURES,
    "view": (
        *CRUD_FAILURES,
        "the view is behind",
        "the feeder stands still: reads are old, and nothing fails",
        "the oplog no longer reaches back: all rows are copied again",
    ),
    "outbox": (
        *CRUD_FAILURES,
        "the relay stands still: the others are not told, and nothing fails",
        "process stuck in the middle: an instance that has not ended",
        "told twice: only an id that is remembered makes it once",
    ),
    "labkit": (
        "the view is behind",
        "the answer is late though the command is safe",
        "rebalance: a partition has no owner for seconds",
        "open transaction of a dead worker holds readers back",
        "zombie: fenced by group and by version",
        "poison message parks its stream",
        "hot stream: one partition has all the work",
        "process stuck in the middle: an instance that has not ended",
        "event of an old schema without an upcast",
        "the log grows",
    ),
}


class Size(Struct, frozen=True):
    """``others`` are the packages that the modules import from elsewhere."""

    files: int
    lines: int
    own_files: int
    own_lines: int
    others: list[str]


def sizes() -> dict[str, Size]:
    """By arm."""
    every = {arm: _closure(ENTRIES[arm]) for arm in ARMS}
    shared = set.intersection(*(set(modules) for modules in every.values()))
    return {
        arm: Size(
            files=len(modules),
            lines=sum(map(_lines, modules)),
            own_files=len(modules - shared),
            own_lines=sum(map(_lines, modules - shared)),
            others=sorted({name for module in modules for name in _imported(module)[1]}),
        )
        for arm, modules in every.items()
    }


def to_know(arm: str) -> dict[str, Any]:
    """The lists of an arm, for the result."""
    return {
        "runs": list(RUNS[arm]),
        "concepts": list(CONCEPTS[arm]),
        "failure_modes": list(FAILURE_MODES[arm]),
    }


def _closure(entries: tuple[str, ...]) -> set[str]:
    found, waiting = set[str](), list(entries)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imported(module)[0]
    return found


@cache
def _file(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None, module
    return Path(str(spec.origin))


def _lines(module: str) -> int:
    return len(_file(module).read_text(encoding="utf-8").splitlines())


@cache
def _imported(module: str) -> tuple[list[str], list[str]]:
    """The modules of labkit that a module imports as it is imported, and the packages of others."""
    ours, others = list[str](), list[str]()
    for node in ast.parse(_file(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            names += [
                f"{node.module}.{a.name}" for a in node.names if _is_module(node.module, a.name)
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if top == "labkit":
                ours.append(name)
            elif top not in sys.stdlib_module_names:
                others.append(top)
    return ours, others


def _is_module(package: str, name: str) -> bool:
    if not package.startswith("labkit"):
        return False
    folder = _file(package).parent
    return _file(package).name == "__init__.py" and (
        (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()
    )
