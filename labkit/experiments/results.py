"""Result files: tried before a long run, written whole after it; and what all of them say."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from labkit.errors import UsageError
from labkit.run.registry import write_whole
from labkit.stack import limits
from labkit.stack.state import home

if TYPE_CHECKING:
    import pandas as pd


def check_writable(option: str, file: Path | None) -> None:
    """Before a long run, not after it; raises ``UsageError``."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.exists():
            file.open("ab").close()
    except OSError as error:
        raise UsageError(
            f"{option} {str(file)!r} cannot be written: {error.strerror}; choose another place"
        ) from None


def save(option: str, file: Path | None, data: bytes) -> None:
    """Write the whole of it, if a file was asked for; raises ``UsageError``."""
    if file is None:
        return
    try:
        write_whole(file, data)
    except OSError as error:
        raise UsageError(f"{option} {str(file)!r}: {error.strerror}") from None


def to_json(found: Any) -> bytes:
    """A result as JSON, for people too."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def archive(
    kind: str, report: Mapping[str, Any], frames: Mapping[str, pd.DataFrame] | None = None
) -> Path:
    """Keep a run: a new folder with ``report.json`` and one Parquet file a frame.

    It is ``LABKIT_HOME/results/KIND/TIME``. Of what ``measuring.md`` asks for, ``machine`` and
    ``load_average`` are added here; ``settings``, ``seed`` and ``versions`` must be in the report.
    Raises ``UsageError`` where the folder cannot be written, ``KeyError`` where one is missing.
    """
    for name in ("settings", "seed", "versions"):
        report[name]
    whole = {**report, "machine": machine(), "load_average": load_average()}
    folder = home() / "results" / kind / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    try:
        folder.mkdir(parents=True)
        for name, frame in (frames or {}).items():
            frame.to_parquet(folder / f"{name}.parquet")
        write_whole(folder / "report.json", to_json(whole))
    except OSError as error:
        raise UsageError(
            f"LABKIT_HOME {str(home())!r}: {error.strerror}; set it to another place"
        ) from None
    return folder


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {"cores": limits.cores(), "memory_bytes": limits.memory()}


def load_average() -> list[float]:
    """How busy it was, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


#: The distributions that figures depend on, by the names that results give them.
MEASURED = {"labkit": "cqrs-labkit"} | {n: n for n in ("pymongo", "msgspec", "hdrhistogram")}


def versions(servers: Mapping[str, str], *clients: str) -> dict[str, str]:
    """Of all that figures depend on: the servers', the packages', the Kafka clients'."""
    names = dict(MEASURED)
    for client in clients:
        name = "confluent-kafka" if client == "confluent" else client
        names[name] = name
    found = {name: metadata.version(distribution) for name, distribution in names.items()}
    return {"python": platform.python_version(), **found, **servers}
