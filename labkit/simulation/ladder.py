"""Bugs that people really make, each to be found by the simulator.

A bug takes one guarantee of the design away while its context is open. Some change a part, and are
the same on real servers; others change what a twin of a server promises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct, structs

from labkit.adapters.memory_log import MemoryLog
from labkit.adapters.memory_source import MemorySource
from labkit.adapters.memory_store import MemoryStore
from labkit.adapters.memory_topics import Group
from labkit.errors import OutcomeUnknown, UsageError
from labkit.experiments.verify.planted_bugs import (
    checkpoint_apart,
    early_offsets,
    no_dedupe,
    no_fence,
)
from labkit.experiments.verify.planting import planted_here, replace
from labkit.messages import Document, Envelope
from labkit.ports.broker import Batch, Record
from labkit.ports.store import Checkpoint, Writes
from labkit.process.outbox import Outbox
from labkit.read.queries import Queries
from labkit.simulation.scenario import Scenario
from labkit.write import decisions
from labkit.write.handler import Handler
from labkit.write.stream_state import StreamState

Moves = Sequence[tuple[Checkpoint, Checkpoint]]
#: What the twin of MongoDB does without a bug.
ADVANCE = MemoryStore.advance


class Bug(Struct, frozen=True):
    """``about`` in a few words; ``red`` are the checkers that may show it; ``plant`` calls
    ``planting.replace``. ``settings`` are those of the scenario. A bug that changes a ``twin`` has
    a worker of real servers only if ``real`` plants its like there."""

    about: str
    red: tuple[str, ...]
    plant: Callable[[], None]
    settings: dict[str, Any] = {}
    processes: bool = False
    twin: bool = False
    real: Callable[[], None] | None = None

    @property
    def in_worker(self) -> Callable[[], None] | None:
        """What plants it in a worker of real servers, if it can be there."""
        return self.real or (None if self.twin else self.plant)


def planted(name: str | None) -> AbstractContextManager[None]:
    """The bug of this name is there until the block ends; raises ``UsageError``."""
    return planted_here(*([bug(name).plant] if name else []))


def bug(name: str) -> Bug:
    """The bug of this name; raises ``UsageError``."""
    if name not in BUGS:
        raise UsageError(f"the bug must be one of {', '.join(BUGS)}, got {name!r}")
    return BUGS[name]


def in_worker(name: str) -> Callable[[], None]:
    """What plants it in a worker of real servers; raises ``UsageError`` for one of twins only."""
    plant = bug(name).in_worker
    if plant is None:
        can = ", ".join(known for known, each in BUGS.items() if each.in_worker)
        raise UsageError(
            f"--plant {name} changes a twin, and real servers are none; with --on-real it must be "
            f"one of {can}"
        )
    return plant


def fitting(scenario: Scenario, name: str | None) -> Scenario:
    """The scenario with what the bug changes of its settings."""
    return structs.replace(scenario, **bug(name).settings) if name else scenario


# --- the write side


def _without_ids(document: Document, state: Any, load: Any = StreamState.load) -> StreamState:
    stream: StreamState = load(document, state)
    stream.seen.clear()
    return stream


def _unfenced(self: MemoryLog, generation: int) -> Group:
    """Offsets are committed under the bare name of the group."""
    return self._broker.group(self._topic, self._commands_group)


def _unexpecting(
    arrival: decisions.Arrival, command: Envelope[Any], clock: Any, ruled: Any = decisions._ruled
) -> Any:
    return ruled(arrival, structs.replace(command, expected_version=None), clock)


def _once_more(
    self: MemoryLog, batch: Batch, commits: Sequence[Record], commit: Any = MemoryLog.commit
) -> Any:
    try:
        return commit(self, batch, commits)
    except OutcomeUnknown:
        return commit(self, batch, commits)


def _passed_over(self: Handler, timeout: float, gather: Any = Handler._gather) -> Batch:
    batch: Batch = gather(self, timeout)
    batch.records = [record for record in batch.records if record.offset % 10 != 1]
    return batch


# --- the read side


def _apart(
    self: MemoryStore, checkpoints: str, moves: Moves, writes: Writes, advance: Any = ADVANCE
) -> None:
    """The checkpoint first, the documents in a transaction of their own."""
    if any(".view" in name for name in [*writes.inserts, *writes.replaces]):
        advance(self, checkpoints, moves, Writes())
        self._world.place("advance")  # type: ignore[attr-defined]
        advance(self, checkpoints, [], writes)
    else:
        advance(self, checkpoints, moves, writes)


def _by_epoch(
    self: MemoryStore, checkpoints: str, moves: Moves, writes: Writes, advance: Any = ADVANCE
) -> None:
    """Whatever position the stored checkpoint has."""
    known = self._checkpoints.get(checkpoints, {})
    found = []
    for old, new in moves:
        at = known.get(old.id, old)
        found.append((at if at.epoch == old.epoch else old, new))
    advance(self, checkpoints, found, writes)


def _uncommitted(
    self: MemorySource,
    partition: int,
    position: int,
    limit: int,
    batch: Batch,
    read: Any = MemorySource._read,
) -> int:
    before = self._uncommitted
    self._uncommitted = before or (self._group or "").endswith(".projector")
    try:
        return read(self, partition, position, limit, batch)  # type: ignore[no-any-return]
    finally:
        self._uncommitted = before


# --- processes


def _renamed(self: Outbox, partition: int, leftovers: Any = Outbox.leftovers) -> list[Document]:
    found = []
    for letter in leftovers(self, partition):
        envelope = msgspec.json.decode(letter["value"])
        envelope["id"] += ":again"
        found.append({**letter, "value": msgspec.json.encode(envelope).decode()})
    return found


def _deleted_first(self: Outbox, letters: list[Document], send: Any = Outbox.send) -> None:
    gone = [letter["_id"] for letter in letters]
    self._store.advance(self._checkpoints, [], Writes(deletes={self.collection: gone}))
    send(self, letters)


def _dual(
    self: MemoryStore, checkpoints: str, moves: Moves, writes: Writes, advance: Any = ADVANCE
) -> None:
    kept = {name: new for name, new in writes.inserts.items() if not name.endswith(".outbox")}
    advance(self, checkpoints, moves, structs.replace(writes, inserts=kept))


def _no_leftovers(self: Outbox, partition: int) -> list[Document]:
    return []


BUGS: dict[str, Bug] = {
    "no-dedupe": Bug(
        "a stream forgets the command ids that it has seen",
        ("C2", "C9"),
        no_dedupe,
    ),
    "ids-forgotten": Bug(
        "the ids are not there any more after a restart",
        ("C2", "C9"),
        partial(replace, StreamState, "load", staticmethod(_without_ids)),
    ),
    "early-offsets": Bug(
        "the command's offset is committed before its commit is written",
        ("C1",),
        early_offsets,
        settings={"delivery": "at_most_once"},
    ),
    "no-fence": Bug(
        "a zombie may commit offsets for a group that has put it out",
        ("C1", "C2", "C6"),
        partial(replace, MemoryLog, "_group_of", _unfenced),
        twin=True,
        real=no_fence,
    ),
    "commit-again": Bug(
        "a commit whose outcome is unknown is simply made again",
        ("C1", "C2", "C6"),
        partial(replace, MemoryLog, "commit", _once_more),
        twin=True,
    ),
    "version-ignored": Bug(
        "the expected version of a command is not looked at",
        ("C6",),
        partial(replace, decisions, "_ruled", _unexpecting),
    ),
    "passed-over": Bug(
        "a handler skips some commands, and commits their offsets",
        ("C1",),
        partial(replace, Handler, "_gather", _passed_over),
    ),
    "checkpoint-apart": Bug(
        "a view's checkpoint is written in a transaction of its own, before the view",
        ("C1", "C9", "C10"),
        partial(replace, MemoryStore, "advance", _apart),
        twin=True,
        real=checkpoint_apart,
    ),
    "undone-unseen": Bug(
        "a view is written whatever its checkpoint says, so a batch that an election has undone is "
        "never made again",
        ("C1", "C9", "C10"),
        partial(replace, MemoryStore, "advance", _by_epoch),
        twin=True,
        settings={"write_concern": "1"},
    ),
    "read-uncommitted": Bug(
        "a projector reads what transactions have not committed",
        ("C1", "C3", "C9", "C10"),
        partial(replace, MemorySource, "_read", _uncommitted),
        twin=True,
    ),
    "stale-reads": Bug(
        "a query does not wait for the freshness that it was asked for",
        ("C10",),
        partial(replace, Queries, "_behind", lambda self, views, goals: []),
    ),
    "random-ids": Bug(
        "a process sends what its dead predecessor has left under new ids",
        ("C8", "C11"),
        partial(replace, Outbox, "leftovers", _renamed),
        processes=True,
    ),
    "outbox-deleted-first": Bug(
        "a process takes a command out of the outbox before it is acknowledged",
        ("C11",),
        partial(replace, Outbox, "send", _deleted_first),
        processes=True,
    ),
    "dual-write": Bug(
        "a process stores its state and sends its commands, with no outbox between the two",
        ("C11",),
        partial(replace, MemoryStore, "advance", _dual),
        processes=True,
    ),
    "outbox-forgotten": Bug(
        "a new owner does not send what its predecessor has left in the outbox",
        ("C11",),
        partial(replace, Outbox, "leftovers", _no_leftovers),
        processes=True,
    ),
}
