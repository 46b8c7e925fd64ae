"""A stream's bookkeeping: its state, its version, and the command ids it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from labkit.messages import Answer, Commit, Event
from labkit.ports import Document

#: How many command ids a stream remembers with their answers. A repeat that comes after so many
#: other commands to the same stream is no longer known as one.
SEEN_WINDOW = 1_000


class Stream(Struct):
    """A stream's state and bookkeeping, as the handler keeps it."""

    partition: int
    stored: bool = False
    version: int = 0
    state: Any = None
    seen: dict[str, Answer] = msgspec.field(default_factory=dict)
    parked: str = ""

    def copy(self) -> Stream:
        """A copy that may be changed without touching this one."""
        return Stream(
            self.partition, self.stored, self.version, self.state, dict(self.seen), self.parked
        )

    def take(self, commit: Commit[Any], evolve: Callable[[Any, Event], Any]) -> None:
        """Fold one commit: the only way a stream changes, live and on replay."""
        if commit.outcome == "repeated":
            return
        if commit.outcome == "parked":
            self.parked = self.parked or commit.reason
            return
        for event in commit.events:
            self.state = evolve(self.state, event)
        self.version = commit.last
        self.seen[commit.id] = commit.answer
        if len(self.seen) > SEEN_WINDOW:
            del self.seen[next(iter(self.seen))]

    def document(self, key: str) -> Document:
        """The stream as the handler saves it, under its id."""
        return {
            "_id": key,
            "partition": self.partition,
            "version": self.version,
            "state": msgspec.to_builtins(self.state),
            "seen": [[id, a.outcome, a.version, a.reason] for id, a in self.seen.items()],
            "parked": self.parked,
        }

    @classmethod
    def load(cls, document: Document, state: type[Struct]) -> Stream:
        """What :meth:`document` saved; ``state`` is the type of the fold."""
        kept = document["state"]
        return cls(
            partition=document["partition"],
            stored=True,
            version=document["version"],
            state=None if kept is None else msgspec.convert(kept, state),
            seen={id: Answer(o, v, r) for id, o, v, r in document["seen"]},
            parked=document["parked"],
        )
