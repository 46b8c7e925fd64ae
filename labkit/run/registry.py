"""The registry of a run: which workers live, in a file that `labkit status` reads."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from labkit import stack
from labkit.stack.processes import born, same_birth


def runs_folder(name: str) -> Path:
    """Where the registries of a lab's runs are."""
    return stack.home() / "labs" / name / "runs"


def running_runs(name: str) -> list[str]:
    """The runs of a lab that have live workers."""
    folder = runs_folder(name)
    if not folder.is_dir():
        return []
    return [path.stem for path in sorted(folder.glob("r*.json")) if read_registry(path)]


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
