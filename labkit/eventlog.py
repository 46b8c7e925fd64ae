"""Reading the log: a partition, a stream, the state of a stream at a version."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from labkit.errors import DecodeError, TimedOut, UsageError
from labkit.messages import Commit
from labkit.ports import Record, Source

if TYPE_CHECKING:
    from labkit.handlers import Context

#: Longer than a dead worker's open transaction can hold readers back (design: about 20 s).
READ_TIMEOUT = 60.0
#: Reading on through so many records is cheaper than a seek.
STRETCH = 1_000


def read(
    source: Source, partition: int, start: int = 0, timeout: float = READ_TIMEOUT
) -> Iterator[list[Record]]:
    """The committed records from ``start`` to the high watermark at the time of the call.

    ``source`` is a reader in no group. Reading to the *high watermark*, not to the last stable
    offset, waits for transactions that are being ended. Raises ``TimedOut`` where that never comes.
    """
    end = source.ends()[partition]
    deadline = time.monotonic() + timeout
    position = start
    source.start(partition, start)
    try:
        while position < end:
            batch = source.poll(5_000, 0.2)
            position = batch.positions.get(partition, position)
            if records := [r for r in batch.records if r.partition == partition and r.offset < end]:
                yield records
            if batch.positions:
                deadline = time.monotonic() + timeout
            elif time.monotonic() > deadline:
                raise TimedOut(
                    f"partition {partition} was read to offset {position} of {end}, then nothing "
                    f"came for {timeout:.0f} s: a transaction is open, or the broker is gone"
                )
    finally:
        source.stop(partition)


def fetch(source: Source, partition: int, offsets: Iterable[int]) -> dict[int, Record]:
    """The records at these offsets of a partition, as far as they are there.

    What lies near to each other is read in one stretch. Raises ``TimedOut``.
    """
    wanted = sorted(offsets)
    found: dict[int, Record] = {}
    for number, offset in enumerate(wanted):
        if number and offset - wanted[number - 1] <= STRETCH:
            continue
        stretch = [offset]
        while len(stretch) + number < len(wanted):
            following = wanted[number + len(stretch)]
            if following - stretch[-1] > STRETCH:
                break
            stretch.append(following)
        some = set(stretch)
        for records in read(source, partition, offset):
            found.update((r.offset, r) for r in records if r.offset in some)
            if records[-1].offset >= stretch[-1]:
                break
    return found


def peek(source: Source, patience: float) -> tuple[list[Record], int]:
    """What a reader of committed records sees of a topic now, and how many offsets it may not see.

    Unlike :func:`read` this does not wait for transactions that are open: it stops where nothing
    has come for ``patience`` seconds. Records are in the order of partition and offset.
    """
    ends = source.ends()
    at = dict.fromkeys(ends, 0)
    for partition in ends:
        source.start(partition, 0)
    found: list[Record] = []
    moved = time.monotonic()
    while any(at[p] < ends[p] for p in ends):
        batch = source.poll(5_000, 0.1)
        at.update(batch.positions)
        found += batch.records
        if batch.positions:
            moved = time.monotonic()
        elif time.monotonic() - moved >= patience:
            break
    found.sort(key=lambda record: (record.partition, record.offset))
    return found, sum(max(0, ends[p] - at[p]) for p in ends)


def join(source: Source, partitions: int, timeout: float = READ_TIMEOUT) -> frozenset[int]:
    """Poll until a group member owns that many partitions; nothing is read yet.

    For those who step by hand: a worker just polls. Raises ``TimedOut``.
    """
    owned: frozenset[int] = frozenset()
    deadline = time.monotonic() + timeout
    while len(owned) < partitions:
        if time.monotonic() > deadline:
            raise TimedOut(
                f"got {len(owned)} of {partitions} partitions within {timeout:g} s; "
                "does another member of the group hold the others?"
            )
        batch = source.poll(1, 0.1)
        owned = (owned - batch.revoked) | batch.assigned
    return owned


class EventLog:
    """What one context's events topic says."""

    def __init__(self, context: Context, source: Source) -> None:
        self._context = context
        self._source = source
        self._reading = False

    def partition(self, partition: int, start: int = 0) -> Iterator[Commit[Any]]:
        """The commits of a partition; what is not a commit is passed over.

        One reading at a time, since all share one source: a second one raises ``UsageError``.
        """
        if self._reading:
            raise UsageError("this log is being read already; end that reading first")
        self._reading = True
        try:
            for records in read(self._source, partition, start):
                for record in records:
                    try:
                        yield self._context.codec.decode_commit(record.value)
                    except DecodeError:
                        continue
        finally:
            self._reading = False

    def commits(self) -> Iterator[Commit[Any]]:
        """The commits of all partitions, one partition after the other."""
        for partition in sorted(self._source.ends()):
            yield from self.partition(partition)

    def stream(self, stream: str) -> list[Commit[Any]]:
        """The commits of a stream, oldest first, without those that fail the version check."""
        known = 0
        found: list[Commit[Any]] = []
        for commit in self.partition(self._source.partition_for(stream.encode())):
            if commit.stream == stream and commit.first == known + 1:
                known = commit.last
                found.append(commit)
        return found

    def state(self, stream: str, version: int | None = None) -> Any:
        """The state of a stream at ``version`` (``None``: the latest); ``None`` if it is empty."""
        state = None
        at = 0
        for commit in self.stream(stream):
            for event in commit.events:
                at += 1
                if version is not None and at > version:
                    return state
                state = self._context.evolve(state, event)
        return state

    def close(self) -> None:
        """Close the reader."""
        self._source.close()
