"""What lives in a world, what happens there by itself, and what is told of both."""

from __future__ import annotations

from collections.abc import Callable

from greenlet import greenlet
from msgspec import Struct


class Event(Struct, frozen=True):
    """What happened at a step, as far as a story tells it.

    ``about`` holds the command ids and streams that it is about; ``at`` is virtual nanoseconds,
    ``other`` the topic or store at the other end.
    """

    step: int
    at: int
    life: str
    kind: str
    text: str
    about: tuple[str, ...] = ()
    other: str = ""


class Happening(Struct):
    """Something that is not a life's doing: a session ends, a dead worker comes back.

    It happens at its time at the latest; where the tape is not calm, at any step before.
    """

    name: str
    due: int
    action: Callable[[], None]
    #: What it is about, apart from its name; ``None``: there is nothing left to do.
    about: Callable[[], object] = lambda: True


class Life(Struct, eq=False):
    """A part that runs in the world, and what it waits for."""

    name: str
    let: greenlet
    role: str = ""
    #: runnable, blocked, paused, dead or over.
    state: str = "runnable"
    keys: frozenset[str] = frozenset()
    until: int = 0
    woken: bool = False
    #: The place whose effect happens, and is not answered.
    unanswered: str = ""
    #: It ends after this step, as if it had been told to.
    leaving: bool = False
    #: What its end leaves behind: group memberships, open transactions.
    legacies: list[Callable[[], None]] = []
