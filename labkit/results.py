"""Result files of commands: tried before a long run, written whole after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from labkit.errors import UsageError
from labkit.runtime import write_whole


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
