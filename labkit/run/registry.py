"""The registry of a run: which workers live, in a file that `labkit status` reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from labkit import stack
from labkit.stack.processes import born, same_birth


def runs_folder(name: str) -> Path:
    """Where the registries of a lab's runs are."""
    return stack.home() / "labs" / name / "runs"


class Alive(Struct):
    """A worker as the registry shows it; ``restarts`` counts its lives after the first."""

    role: str
    service: str
    slot: int
    pid: int
    restarts: int = 0


class Registry(Struct):
    """The workers of one run, in a file that ``labkit status`` reads."""

    run: str
    supervisor: int
    born: float
    workers: list[Alive]


def live_runs(name: str) -> dict[str, list[Alive]]:
    """The runs of a lab that have live workers, with these."""
    folder = runs_folder(name)
    found: dict[str, list[Alive]] = {}
    for path in sorted(folder.glob("r*.json")) if folder.is_dir() else ():
        if (registry := read_registry(path)) is not None:
            found.setdefault(registry.run, []).extend(registry.workers)
    return found


@contextmanager
def listed(name: str, run: str, worker: Alive) -> Iterator[None]:
    """Show a worker that was started by hand: it is its own supervisor."""
    path = runs_folder(name) / f"{run}.{worker.role}-{worker.service}-{worker.slot}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    registry = Registry(run, worker.pid, born(worker.pid), [worker])
    write_whole(path, msgspec.json.encode(registry))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it; a device or a pipe is written as it is."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def read_registry(path: Path) -> Registry | None:
    """A run's registry, or ``None`` where its supervisor is gone."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Registry)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return found if same_birth(born(found.supervisor), found.born) else None
