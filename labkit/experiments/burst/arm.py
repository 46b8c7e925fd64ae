"""What a service under a peak is to the bench: clients that ask it, and what is visible when.

labkit over HTTP is one arm (``over_http.py``). Another service, CRUD for example, is another: its
``Client`` calls it, and what it told is visible at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from msgspec import Struct

from labkit.api.protection import Protection
from labkit.experiments.verify.verdict import Verdict
from labkit.messages import Answer, Command, Token
from labkit.service import Operation, Service

#: ``taken``: the service has the command (or the read has an answer). ``turned away``: it said that
#: it did nothing. ``unknown``: no answer, or one that leaves it open.
Outcome = Literal["taken", "turned away", "unknown"]


class Call(Struct, frozen=True):
    """One request of the timetable.

    ``intended``: nanoseconds from the start. ``command``: its number in the workload; of a read,
    the newest command of this client that was taken is what it asks for.
    """

    intended: int
    command: int
    read: bool = False
    client: int = 0
    urgency: int = 3


class Told(Struct):
    """What a client was told. ``sent`` and ``told`` are monotonic nanoseconds.

    ``token`` if the command stands in a log, else ``answer``. ``where``: what to read. ``age``: how
    many seconds old what a read shows is, and ``retry_after`` seconds, if these were said.
    """

    outcome: Outcome
    code: int = 0
    token: Token | None = None
    answer: Answer | None = None
    where: str = ""
    age: float | None = None
    retry_after: float | None = None
    why: str = ""
    sent: int = 0
    told: int = 0


class Client(Protocol):
    """A client of an arm, in one thread of the process of clients."""

    def send(self, command: Command, id: str, urgency: int) -> Told:
        """Send a command once, and wait as this arm's clients wait."""

    def read(self, command: Command, told: Told) -> Told:
        """Read what a command led to that was taken before."""

    def close(self) -> None: ...


class Running(Protocol):
    """An arm at work."""

    @property
    def service(self) -> Service:
        """What the commands are for."""

    def protected(self, protection: Protection) -> AbstractContextManager[Callable[[int], Client]]:
        """The arm with a protection, until the end of the context; an arm that has none ignores it.

        The function makes the client of a number; it can be sent to another process.
        """

    def id_of(self, key: str) -> str:
        """The command id that a client's key becomes."""

    def look(self) -> None:
        """Take note of what is answered and visible by now; called all the time."""

    def seen(self, told: Sequence[Told]) -> list[tuple[float, float]]:
        """When each command that was taken was answered, and when it was visible: monotonic
        nanoseconds, NaN for never."""

    def judge(self, operations: Sequence[Operation]) -> Mapping[str, Verdict]:
        """What the checkers say, once nothing is under way; sets the answers of the operations."""


class Arm(Protocol):
    """A service that can be put under a peak."""

    @property
    def name(self) -> str: ...

    def running(self, lab: str) -> AbstractContextManager[Running]:
        """It, with its workers, on the servers of this name."""
