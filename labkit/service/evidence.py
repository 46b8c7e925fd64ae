"""What a service declares for the checkers: its workload, its reference model and its audits.

Checkers go by the replies to the clients, not by the service's own fold: a comparison of a view
with a fold over the same log would hide that a command took effect twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

from labkit.messages import Answer, Command, Commit, Document, Token

Status = Literal["invoked", "ok", "failed", "unknown"]


class Operation(Struct, eq=False):
    """One call of one client. A retry is another operation with the same ``id``.

    ``token`` is set when the broker has acknowledged the command: from then on the command must not
    be lost. ``invoked`` and ``unknown`` may have happened; ``failed`` has not.
    """

    id: str
    command: Command
    expected_version: int | None = None
    status: Status = "invoked"
    token: Token | None = None
    answer: Answer | None = None
    why: str = ""

    def __str__(self) -> str:
        return f"{type(self.command).__name__} {self.id!r} to {self.command.stream!r}"

    def ok(self, answer: Answer) -> None:
        """The client got this answer."""
        self.status, self.answer = "ok", answer

    def failed(self, why: str) -> None:
        """The command was never sent."""
        self.status, self.why = "failed", why

    def unknown(self, why: str) -> None:
        """There is no answer: it may have happened, or may still happen."""
        self.status, self.why = "unknown", why


class Case(Struct):
    """The argument of an audit, at quiet: the clients' operations, the log and the store.

    ``chain`` holds the commits that readers take; ``states`` the handler's documents by stream;
    ``views`` the documents of each collection.
    """

    operations: Sequence[Operation]
    chain: Sequence[Commit[Any]]
    states: Mapping[str, Document]
    views: Mapping[str, list[Document]]

    def accepted(self, kind: type) -> Iterator[Operation]:
        """One operation for each command id that was answered 'accepted'."""
        seen: set[str] = set()
        for operation in self.operations:
            mine = isinstance(operation.command, kind) and operation.id not in seen
            if mine and operation.answer is not None and operation.answer.accepted:
                seen.add(operation.id)
                yield operation

    def in_doubt(self) -> set[str]:
        """Streams in which a command without a final answer may have taken effect."""
        return {
            o.command.stream
            for o in self.operations
            if o.status != "failed" and (o.answer is None or not o.answer.final)
        }


#: A checker that a service declares: it yields the violations.
Audit = Callable[[Case], Iterable[str]]


class ReferenceModel(Protocol):
    """A second, independent implementation of a service's rules: plain values, no events."""

    def apply(self, state: Document | None, command: Command) -> Document | None:
        """The stream after an accepted command; ``None`` if the rules refuse it.

        If it changes nothing, return an equal state.
        """

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """The differences between the views and these streams."""


class Workload(Struct, frozen=True):
    """The commands of a client: ``commands(random, **options)`` yields them without end.

    ``opening(random, **options)`` is sent first and not measured. The same ``random`` gives the
    same commands.
    """

    commands: Callable[..., Iterator[Command]]
    opening: Callable[..., Iterable[Command]] = lambda random: ()
