"""Read one partition of a topic: all that is committed, or the records at given offsets."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

from labkit.errors import TimedOut
from labkit.log.tail import leave
from labkit.ports.broker import Record, Source
from labkit.ports.clock import SYSTEM, Clock

K = TypeVar("K")


#: Longer than a dead worker's open transaction can hold readers back (design: about 20 s).
READ_TIMEOUT = 60.0


#: Reading on through so many records is cheaper than a seek.
STRETCH = 1_000


def read_partition(
    source: Source,
    partition: int,
    start: int = 0,
    timeout: float = READ_TIMEOUT,
    *,
    end: int | None = None,
    limit: int = 5_000,
    clock: Clock = SYSTEM,
) -> Generator[list[Record], None, None]:
    """The committed records from ``start`` to the high watermark at the time of the call.

    ``source`` is a reader in no group. Reading to the *high watermark*, not to the last stable
    offset, waits for transactions that are being ended. ``end`` is one that is known already;
    ``limit`` is how many records come at once, at most. Raises ``TimedOut`` where that never comes.
    """
    if end is None:
        end = source.ends()[partition]
    deadline = clock.seconds() + timeout
    position = start
    source.start(partition, start)
    try:
        while position < end:
            batch = source.poll(limit, 0.2)
            position = batch.positions.get(partition, position)
            if records := [r for r in batch.records if r.partition == partition and r.offset < end]:
                yield records
            if batch.positions:
                deadline = clock.seconds() + timeout
            elif clock.seconds() > deadline:
                raise TimedOut(
                    f"partition {partition} was read to offset {position} of {end}, then nothing "
                    f"came for {timeout:.0f} s: a transaction is open, or the broker is gone; see "
                    "`labkit status`, and try again"
                )
    finally:
        source.stop(partition)


def fetch_records(
    source: Source, partition: int, offsets: Iterable[int]
) -> dict[int, Record | None]:
    """The records at these offsets of a partition; ``None`` where there is none any more.

    What lies near to each other is read in one stretch. Raises ``TimedOut``.
    """
    wanted = sorted(set(offsets))
    found: dict[int, Record | None] = dict.fromkeys(wanted)
    end = source.ends()[partition] if wanted else 0
    while wanted:
        near = (n for n in range(1, len(wanted)) if wanted[n] - wanted[n - 1] > STRETCH)
        length = next(near, len(wanted))
        stretch, wanted = wanted[:length], wanted[length:]
        span = min(5_000, stretch[-1] - stretch[0] + 1)
        for records in read_partition(source, partition, stretch[0], end=end, limit=span):
            found.update((r.offset, r) for r in records if r.offset in found)
            if records[-1].offset >= stretch[-1]:
                break
    return found


def peek(source: Source, patience: float, clock: Clock = SYSTEM) -> tuple[list[Record], int]:
    """What a reader of committed records sees of a topic now, and how many offsets it may not see.

    Unlike :func:`read_partition` this does not wait for transactions that are open: it stops where
    nothing has come for ``patience`` seconds. Records are in the order of partition and offset.
    """
    ends = source.ends()
    at = dict.fromkeys(ends, 0)
    for partition in ends:
        source.start(partition, 0)
    found: list[Record] = []
    moved = clock.seconds()
    while any(at[p] < ends[p] for p in ends):
        batch = source.poll(5_000, 0.1)
        at.update(batch.positions)
        found += batch.records
        if batch.positions:
            moved = clock.seconds()
        elif clock.seconds() - moved >= patience:
            break
    found.sort(key=lambda record: (record.partition, record.offset))
    return found, sum(max(0, ends[p] - at[p]) for p in ends)


def readable(value: bytes) -> Any:
    """The JSON of a record, or its bytes where it is none."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def row(record: Record) -> dict[str, Any]:
    """A record for people: ``partition``, ``offset``, ``key`` and ``value``."""
    return {
        "partition": record.partition,
        "offset": record.offset,
        "key": record.key.decode("utf-8", "backslashreplace"),
        "value": readable(record.value),
    }


def join_group(
    source: Source, partitions: int, timeout: float = READ_TIMEOUT, clock: Clock = SYSTEM
) -> frozenset[int]:
    """Poll until a group member owns that many partitions; nothing is read yet.

    For those who step by hand: a worker just polls. Raises ``TimedOut``.
    """
    owned: frozenset[int] = frozenset()
    deadline = clock.seconds() + timeout
    while len(owned) < partitions:
        if clock.seconds() > deadline:
            raise TimedOut(
                f"got {len(owned)} of {partitions} partitions within {timeout:g} s; "
                "does another member of the group hold the others? `labkit status` shows workers"
            )
        batch = source.poll(1, 0.1)
        owned = (owned - batch.revoked) | batch.assigned
    return owned


class Watermarks(Generic[K]):
    """The high watermarks of topics, by readers that are kept: a new one takes a fifth of a second.

    ``open(key)`` makes the reader of a topic; a service may be the key, say.
    """

    def __init__(self, open: Callable[[K], Source]) -> None:
        self._open = open
        self._sources: dict[K, Source] = {}

    def __call__(self, key: K) -> dict[int, int]:
        """By partition."""
        source = self._sources.pop(key, None) or self._open(key)
        try:
            ends = source.ends()
        except BaseException:  # see ``Tail``: it may never answer again
            leave(source)
            raise
        self._sources[key] = source
        return ends

    def close(self) -> None:
        """Let go of the readers; the next call makes new ones."""
        sources, self._sources = self._sources, {}
        for source in sources.values():
            source.close()
