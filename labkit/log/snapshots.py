"""Snapshots: the state of a long stream now and then, so that a fold need not begin at its start.

They are a short cut and never a source: delete them all, and every answer stays the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.messages import Commit
from labkit.ports.store import Checkpoint, Document

#: What to do where saved states and today's code do not fit together.
CURE = "run handlers whose code knows it, or raise `fold` of its service, to fold anew from the log"
#: The index of the collection: a stream's newest snapshot at or below a version.
INDEX = [("stream", 1), ("fold", 1), ("version", 1)]


class Folded(Protocol):
    """A stream after a commit: its state, and the latest instant of its commits so far."""

    state: Any
    at: int


class Snapshot(Struct, frozen=True):
    """A stream's state at ``version``, between two commits.

    Whoever reads its ``partition`` of the events topic from ``position`` on, and takes the commits
    that fit, misses nothing. ``at`` is the latest instant of any commit of the stream so far (Unix
    milliseconds): a clock may have gone back, so the instant of the last one would not do.
    """

    stream: str
    version: int
    partition: int
    position: int
    at: int
    state: Any

    def document(self, fold: int) -> Document:
        """As it is saved. A stream's id may hold anything, so it comes last in ``_id``."""
        return {
            "_id": f"v{fold}:{self.version}:{self.stream}",
            "stream": self.stream,
            "version": self.version,
            "partition": self.partition,
            "position": self.position,
            "at": self.at,
            "state": msgspec.to_builtins(self.state),
            "fold": fold,
        }

    @classmethod
    def load(cls, document: Document, state: type[Struct]) -> Snapshot:
        """What :meth:`document` saved; ``state`` is the type of the fold."""
        return cls(
            document["stream"],
            document["version"],
            document["partition"],
            document["position"],
            document["at"],
            restored(document["state"], state),
        )


def restored(kept: object, state: type[Struct]) -> Struct | None:
    """A saved state; raises ``UsageError`` where its type has changed since it was saved."""
    try:
        return None if kept is None else msgspec.convert(kept, state)
    except msgspec.ValidationError as changed:
        raise UsageError(
            f"{state.__qualname__} has changed since the state {kept!r} was saved ({changed}): "
            f"{CURE}"
        ) from None


class Snapshots:
    """The snapshots that a handler has taken and not saved yet: one each ``every`` versions.

    They are saved in the transaction that saves the states and moves the checkpoint. So of the
    commits before a checkpoint they are saved, and of those after it they are not: replay takes
    them again, and an insert is always new.
    """

    def __init__(self, every: int) -> None:
        if every < 0:
            raise UsageError(f"snapshot_every must be at least 0 (never), got {every}")
        self.every = every or sys.maxsize
        self._drafts: dict[int, tuple[Commit[Any], Snapshot]] = {}
        self._taken: list[Snapshot] = []

    def due(self, commit: Commit[Any]) -> bool:
        """Whether a commit reaches or jumps over a multiple of ``every``."""
        return commit.last // self.every > (commit.first - 1) // self.every

    def draft(self, commit: Commit[Any], stream: Folded) -> None:
        """Keep the state after ``commit``, which is not in the log yet."""
        self._drafts[id(commit)] = commit, _of(commit, stream, -1)

    def settle(self, commits: Iterable[Commit[Any]], before: Mapping[int, Checkpoint]) -> None:
        """The batch of the drafts is in the log; ``before`` says where its partitions stood then.

        Each commit has moved its partition by one record at least.
        """
        if not self._drafts:
            return
        positions = {partition: checkpoint.position for partition, checkpoint in before.items()}
        for commit in commits:
            positions[commit.partition] += 1
            if id(commit) in self._drafts:
                _, draft = self._drafts[id(commit)]
                self._taken.append(structs.replace(draft, position=positions[commit.partition]))
        self._drafts.clear()

    def take(self, commit: Commit[Any], stream: Folded, position: int) -> None:
        """Keep the state after ``commit``; the log goes on at ``position``."""
        self._taken.append(_of(commit, stream, position))

    def documents(self, fold: int) -> list[Document]:
        """Those to be saved."""
        return [snapshot.document(fold) for snapshot in self._taken]

    def saved(self) -> None:
        """They are."""
        self._taken.clear()

    def forget(self, partitions: frozenset[int]) -> None:
        """Drop what belongs to partitions that are given up: their next owner takes it again."""
        self._taken = [s for s in self._taken if s.partition not in partitions]


def _of(commit: Commit[Any], stream: Folded, position: int) -> Snapshot:
    return Snapshot(commit.stream, commit.last, commit.partition, position, stream.at, stream.state)
