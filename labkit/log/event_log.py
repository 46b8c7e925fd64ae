"""Reading the log: a partition, a stream, its history, its state at a version or an instant."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from labkit.errors import DecodeError, UsageError
from labkit.log.partition import read_partition
from labkit.log.snapshots import Snapshot
from labkit.log.tail import leave
from labkit.messages import Commit
from labkit.ports.broker import Record, Source
from labkit.ports.store import Store
from labkit.service import Service

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


#: The columns of a history.
HISTORY = ["version", "at", "event", "fields", "command", "outcome", "reason"]


#: What MongoDB can compare with.
MOST = 2**63 - 1


class EventLog:
    """What one service's events topic says; ``store`` holds the snapshots that shorten the way.

    ``again`` opens another reader, where a reading was interrupted in the middle of the first.
    """

    def __init__(
        self,
        service: Service,
        source: Source,
        store: Store | None = None,
        again: Callable[[], Source] | None = None,
    ) -> None:
        self._service = service
        self._source = source
        self._store = store
        self._again = again
        #: Whether no poll of the source was broken off: see ``Tail``.
        self._whole = True
        self._reading: Generator[list[Record], None, None] | None = None

    def partition(self, partition: int, start: int = 0) -> Iterator[Commit[Any]]:
        """The commits of a partition; what is not a commit is passed over.

        One reading at a time, since all share one source: a second one ends the first, which raises
        ``UsageError`` where it goes on.
        """
        return (commit for _, commit in self.placed(partition, start))

    def placed(self, partition: int, start: int = 0) -> Iterator[tuple[int, Commit[Any]]]:
        """The same, each with its offset in the log."""
        for record in self._records(partition, start):
            if (commit := self._decode(record)) is not None:
                yield record.offset, commit

    def commits(self) -> Iterator[Commit[Any]]:
        """The commits of all partitions, one partition after the other."""
        for partition in self.partitions:
            yield from self.partition(partition)

    @property
    def partitions(self) -> list[int]:
        """Of the topic."""
        return sorted(self._reader.ends())

    def stream(self, stream: str) -> list[Commit[Any]]:
        """The commits of a stream, oldest first, without those that fail the version check."""
        return list(self._following(stream, 0, 0))

    def state(
        self,
        stream: str,
        version: int | None = None,
        at: datetime | None = None,
        *,
        snapshots: bool = True,
    ) -> Any:
        """The state of a stream at a version or at an instant (by default the latest).

        ``None`` where the stream had no event yet. Nothing is ordered by a clock: the state at an
        instant is what the commits before the first later one have led to, whatever came after
        it. Without ``snapshots`` the fold begins at the start, and takes as long as the partition.

        Raises ``UsageError`` for a version that the stream has not, for an instant without a time
        zone, and for both at once.
        """
        until = self._checked(stream, version, at)
        found = self._snapshot(stream, version, until) if snapshots else None
        known, state, start = (
            (found.version, found.state, found.position) if found else (0, None, 0)
        )
        if known == version:
            return state
        with closing(self._following(stream, known, start)) as commits:
            for commit in commits:
                if until is not None and commit.at > until:
                    break
                for event in commit.events:
                    state = self._service.evolve(state, event)
                    known += 1
                    if known == version:
                        return state
        if version is not None:
            raise UsageError(f"stream {stream!r} has no version {version}, its newest is {known}")
        return state

    def history(self, stream: str) -> list[dict[str, Any]]:
        """One row an event, oldest first; a commit without one (a refusal, say) is a row too.

        ``version`` is the stream's after the event, ``at`` when it was decided (UTC), ``event`` and
        ``fields`` say what happened (``None`` and ``{}``: nothing), ``command`` is the id of the
        command, ``outcome`` and ``reason`` are its answer.
        """
        rows = []
        for commit in self.stream(stream):
            for number, event in enumerate(commit.events or (None,)):
                fields = {} if event is None else msgspec.to_builtins(event)
                rows.append(
                    {
                        "version": commit.first + number if event is not None else commit.last,
                        "at": EPOCH + timedelta(milliseconds=commit.at),
                        "event": fields.pop("type", None),
                        "fields": fields,
                        "command": commit.id,
                        "outcome": commit.outcome,
                        "reason": commit.reason,
                    }
                )
        return rows

    def close(self) -> None:
        """Close the reader."""
        self._source.close()

    def _checked(self, stream: str, version: int | None, at: datetime | None) -> int | None:
        """The instant in Unix milliseconds."""
        if version is not None and at is not None:
            raise UsageError(f"give a version or an instant, not both: got {version} and {at}")
        if version is not None and version < 0:
            raise UsageError(f"version must be at least 0, got {version}")
        if at is None:
            return None
        if at.utcoffset() is None:
            raise UsageError(f"at needs a time zone, got {at}; add tzinfo=datetime.UTC, say")
        return (at - EPOCH) // timedelta(milliseconds=1)

    def _snapshot(self, stream: str, version: int | None, until: int | None) -> Snapshot | None:
        """The newest one of this fold that is not past what is asked for."""
        if self._store is None:
            return None
        bounds = {"version": version, "at": until}
        found = self._store.find(
            self._service.snapshots,
            {"stream": stream, "fold": self._service.fold},
            [("version", -1)],
            1,
            {name: min(most, MOST) for name, most in bounds.items() if most is not None},
        )
        return Snapshot.load(found[0], self._service.state) if found else None

    def _following(self, stream: str, known: int, start: int) -> Generator[Commit[Any], None, None]:
        """The commits of a stream that fit onto version ``known``, and onto each other."""
        for record in self._records(self._reader.partitions_for([stream.encode()])[0], start):
            # Most of a partition is of other streams, and decoding is what takes the time.
            if record.key.decode("utf-8", "backslashreplace") != stream:
                continue
            commit = self._decode(record)
            if commit is not None and commit.first == known + 1:
                known = commit.last
                yield commit

    @property
    def _reader(self) -> Source:
        if not self._whole and self._again is not None:
            leave(self._source)
            self._source, self._whole = self._again(), True
        return self._source

    def _records(self, partition: int, start: int) -> Iterator[Record]:
        if self._reading is not None:
            self._reading.close()
        reading = self._reading = read_partition(self._reader, partition, start)
        self._whole = False
        try:
            for records in reading:
                self._whole = True
                for record in records:
                    yield record
                    if self._reading is not reading:
                        raise UsageError(
                            "another reading of this log has begun meanwhile; take what you need "
                            "of the first as a list before"
                        )
                self._whole = False
            self._whole = True
        finally:
            reading.close()

    def _decode(self, record: Record) -> Commit[Any] | None:
        """A commit; ``None`` for what is none. Raises ``DecodeError`` for one of other code: a
        state without it would be wrong."""
        commit, unread = self._service.codec.read_commit(record.value)
        if commit is not None and unread:
            raise DecodeError(
                f"version {commit.last} of {commit.stream!r} is not of this code: {unread}"
            )
        return commit
