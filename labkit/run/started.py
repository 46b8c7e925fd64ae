"""The labs of this process whose workers live, until they are stopped.

A cell ``lab = Lab(...); lab.start()`` that runs again gives the name ``lab`` to another lab. The
workers of the first would go on, out of reach, until the garbage collector finds their lab. So a
lab with workers is kept here. When none of the names in ``__main__`` that it had means it any more,
it is replaced, and its workers are stopped. A lab that has no such name (a local variable, an
element of a list), or a name of its own, is only told of.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol


class Startable(Protocol):
    """A lab."""

    @property
    def run(self) -> str:
        """The run of its workers."""

    def stop(self) -> None:
        """Stop its workers."""


#: Each lab with workers, and the names in ``__main__`` that it has or had.
_started: list[tuple[Startable, set[str]]] = []


def say(line: str) -> None:
    """Tell somebody who has asked for nothing, in a notebook or a terminal."""
    print(f"labkit: {line}", file=sys.stderr)


def keep(lab: Startable) -> None:
    """Note a lab that has workers now."""
    forget(lab)
    _started.append((lab, _names(lab)))


def forget(lab: Startable) -> None:
    """Its workers are stopped, or somebody else stops them for sure."""
    _started[:] = [entry for entry in _started if entry[0] is not lab]


def stop_replaced() -> None:
    """Stop the workers of each lab whose names mean something else now, and say so."""
    for lab, names in _started.copy():
        now = _names(lab)
        names |= now
        if names and not now:
            say(f"{min(names)!r} is another lab now: the workers of run {lab.run} are stopped")
            lab.stop()


def tell() -> None:
    """Name the runs that have workers here."""
    stop_replaced()
    for lab, names in _started:
        how = f"`{min(names)}.stop()` ends them" if names else "they end with this process"
        say(f"run {lab.run} of this process still has workers; {how}")


def _names(lab: Startable) -> set[str]:
    """Its names in a notebook or script; IPython gives results such names as ``_`` and ``_7``."""
    main: dict[str, Any] = vars(sys.modules["__main__"])
    return {name for name, value in main.items() if value is lab and not name.startswith("_")}
