"""How a bug gets into a worker or into this process, and out of it again.

Workers get it through their environment: ``LABKIT_PLANT`` names the bugs, separated by commas;
``LABKIT_PLANT_MARKS`` is a folder where they leave and look for files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.errors import UsageError

#: The brittle rule raises until this file is in the folder of the marks.
REPAIRED = "repaired"
#: A held handler waits for this file, and looks for it at this interval.
GO, HELD_SECONDS = "go", 0.05
#: Whose attribute was replaced, its name, and its value before.
_replaced: list[tuple[Any, str, Any]] = []


def replace(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute of a class or a module; ``planted_here`` takes it back."""
    # Before the change: an interrupt may come between two lines.
    _replaced.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


@contextmanager
def planted_here(*bugs: Callable[[], None]) -> Iterator[None]:
    """This process has these bugs until the end of the block, however the block ends."""
    before = len(_replaced)
    try:
        for bug in bugs:
            bug()
        yield
    finally:
        while len(_replaced) > before:
            setattr(*_replaced[-1])
            _replaced.pop()


@contextmanager
def planted(*names: str | None) -> Iterator[Path]:
    """Workers that start in this context plant these bugs; yields the folder of the marks."""
    with tempfile.TemporaryDirectory(prefix="labkit-verify-") as folder:
        wanted = {"LABKIT_PLANT": ",".join(filter(None, names)), "LABKIT_PLANT_MARKS": folder}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def marks() -> Path:
    try:
        return Path(os.environ["LABKIT_PLANT_MARKS"])
    except KeyError:
        raise UsageError("LABKIT_PLANT needs LABKIT_PLANT_MARKS, a folder for its marks") from None
