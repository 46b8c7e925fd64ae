"""Process managers and notices: what a service has to do with others.

Both are pure. A process takes a commit and returns its new state and commands to send; notices take
an event and name the business modules that are told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from msgspec import Struct

from labkit.messages import Command, Commit
from labkit.service.evidence import Case

#: A year: no command may be scheduled for later.
MAX_WAIT = 365 * 86_400.0

#: What a module is told: its name, and a text.
Told = tuple[str, str]
#: An event -> what modules are told of it.
Notices = Callable[[Any], Iterable[Told]]


class Send(Struct, frozen=True):
    """A command to send to a service, at once or ``after`` seconds from the commit that led to it.

    ``step`` names it within the instance; the command's id is derived from both.
    """

    service: str
    command: Command
    step: str
    after: float | None = None


class Process(Struct, frozen=True):
    """A process manager over the events of the services in ``sources``.

    Its fields are its settings; they are stored with the run. ``state`` is the type of what it
    keeps of each instance.
    """

    name: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]
    state: ClassVar[type[Struct]]

    def instance(self, service: str, commit: Commit[Any]) -> str | None:
        """The instance that a commit is about; ``None``: none."""
        raise NotImplementedError

    def react(self, state: Any, service: str, commit: Commit[Any]) -> tuple[Any, tuple[Send, ...]]:
        """The instance after a commit, and what to send; the state is ``None`` before the first."""
        raise NotImplementedError

    def ended(self, state: Any) -> bool:
        """Whether the instance has come to its end."""
        raise NotImplementedError

    def begun(self, cases: Mapping[str, Case]) -> set[str]:
        """The instances that must exist, as far as the clients were told; by service."""
        return set()

    def audit(self, cases: Mapping[str, Case]) -> Iterable[str]:
        """What is wrong with the steps of the instances, at quiet."""
        return ()


def command_id(process: str, instance: str, step: str) -> str:
    """The id of the command that an instance sends at a step, however often it does."""
    return f"{process}:{instance}:{step}"


def answers(process: str, instance: str, commit: Commit[Any], *steps: str) -> bool:
    """Whether a commit says how one of these steps ended: done or refused, not put off."""
    return commit.outcome in ("accepted", "refused") and commit.id in {
        command_id(process, instance, step) for step in steps
    }


def begins(process: str, instance: str, commit: Commit[Any], step: str) -> bool:
    """Whether a commit says how a first step ended; it may have been dropped as a dead letter.

    What was not begun can be called off. A dropped *last* step leaves the instance open, so that
    somebody sees it.
    """
    dropped = commit.outcome == "dropped" and commit.id == command_id(process, instance, step)
    return dropped or answers(process, instance, commit, step)


__all__ = [
    "MAX_WAIT",
    "Notices",
    "Process",
    "Send",
    "Told",
    "answers",
    "begins",
    "command_id",
]
