"""One transaction of a projector: documents and checkpoints after some commits.

Three things can happen to a commit: it is applied (:meth:`Transaction.take`), it parks its stream
(:meth:`Transaction.park`), or it is replayed out of a parked stream (:meth:`Transaction.resume`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, structs

from labkit.errors import Fenced, said
from labkit.messages import Commit, Document
from labkit.ports.broker import Record
from labkit.ports.clock import Clock
from labkit.ports.store import Checkpoint, Store
from labkit.read.projection import Projection, parked_in
from labkit.read.unit_of_work import UnitOfWork


class LogEntry(Struct, frozen=True, gc=False):
    """A record of the log: a commit, or the reason why it is none."""

    record: Record
    commit: Commit[Any] | None
    stream: str
    reason: str = ""


class Poison(Exception):
    """A commit that cannot be applied; ``entry`` where it is known which one."""

    def __init__(self, reason: str, entry: LogEntry | None = None) -> None:
        super().__init__(reason)
        self.entry = entry


class Owned(Struct):
    """The partitions that a projector owns: their checkpoints, and the streams parked in each."""

    checkpoints: dict[int, Checkpoint]
    parked: dict[int, frozenset[str]]

    def copy(self) -> Owned:
        return Owned(dict(self.checkpoints), dict(self.parked))


class Transaction:
    """Documents that are changed in memory, and the ``owned`` partitions as they will be.

    With ``refusals`` the projection is told of refused and dropped commands too.
    """

    def __init__(
        self,
        projection: Projection,
        store: Store,
        generation: int,
        owned: Owned,
        positions: Mapping[int, int],
        clock: Clock,
        *,
        refusals: bool,
    ) -> None:
        self._projection = projection
        self._clock = clock
        self._refusals = refusals
        self._letters = parked_in(projection.name)
        self.docs = UnitOfWork(store, generation)
        self._streams = self.docs[projection.streams]
        self.owned = owned.copy()
        self.applied = 0
        for partition, at in owned.checkpoints.items():
            position = positions.get(partition, at.position)
            self.owned.checkpoints[partition] = structs.replace(at, position=position)

    # --- before anything is changed

    def load(self, entries: Iterable[LogEntry], *, trust: bool) -> None:
        """Load what ``entries`` will change; ``trust``: a stream's first commit needs no look-up,
        since its document is new."""
        wanted: list[tuple[str, str]] = []
        touches, parked = self._projection.touches, self.owned.parked
        for entry in entries:
            commit, partition = entry.commit, entry.record.partition
            if entry.stream in parked[partition]:
                wanted.append((self._letters, entry.stream))
            if commit is None:
                continue
            if commit.events or self._concerns(commit):
                try:
                    wanted += touches(commit, partition)
                except Exception as error:
                    raise Poison(said(error), entry) from error
            if commit.first > 1 or not commit.events or not trust:
                wanted.append((self._projection.streams, commit.stream))
        self.docs.load(wanted)

    def load_letters(self, entries: Iterable[LogEntry]) -> None:
        """Load the notes of parked streams alone."""
        self.docs.load((self._letters, entry.stream) for entry in entries)

    # --- what can happen to a commit

    def take(self, entries: Sequence[LogEntry], fetched: int) -> None:
        """Apply commits in the order of the log; what a parked stream has, waits behind it."""
        now = self._clock.now()
        parked = self.owned.parked
        for entry in entries:
            commit, partition = entry.commit, entry.record.partition
            if entry.stream in parked[partition]:
                self._wait(entry)
            elif commit is None:
                self._park(entry, entry.reason)
            elif (known := self._version(commit)) + 1 < commit.first:
                self._park(entry, _gap(commit, known))
            elif commit.first <= known:
                self._move(partition, ignored=self.owned.checkpoints[partition].ignored + 1)
            else:
                self.applied += self._apply(entry, commit, fetched, now)
        self._note_commands(entries)

    def park(self, entry: LogEntry, reason: str) -> None:
        """Park the stream of one entry for a reason; or let it wait, if it is parked already."""
        if entry.stream in self.owned.parked[entry.record.partition]:
            self._wait(entry)
        else:
            self._park(entry, entry.reason or reason)
        self._note_commands([entry])

    def resume(self, entry: LogEntry, following: Sequence[int], fetched: int) -> None:
        """Apply one commit of a parked stream; the commits at the offsets ``following`` still wait.

        Raises ``Poison`` if it still cannot be applied.
        """
        commit, partition = entry.commit, entry.record.partition
        if commit is None:
            raise Poison(entry.reason)
        if (known := self._version(commit)) + 1 < commit.first:
            raise Poison(_gap(commit, known))
        if commit.first <= known:
            self._move(partition, ignored=self.owned.checkpoints[partition].ignored + 1)
        else:
            self.applied += self._apply(entry, commit, fetched, self._clock.now())
        letter = self.docs[self._letters].get(entry.stream)
        assert letter is not None
        if following:
            letter.update(offset=following[0], waiting=len(following))
        else:
            self.docs[self._letters].remove(entry.stream)
            self.owned.parked[partition] -= {entry.stream}
            self._move(partition, parked=self.owned.checkpoints[partition].parked - 1)
        self._note_commands([entry])

    # ---

    def _wait(self, entry: LogEntry) -> None:
        if (letter := self.docs[self._letters].get(entry.stream)) is None:
            partition = entry.record.partition
            raise Fenced(f"{entry.stream!r} was replayed by another, who took {partition} over")
        letter["waiting"] += 1

    def _park(self, entry: LogEntry, reason: str) -> None:
        partition = entry.record.partition
        letter: Document = {
            "_id": entry.stream,
            "partition": partition,
            "offset": entry.record.offset,
            "waiting": 1,
            "since": self._clock.wall(),
            "reason": reason,
        }
        self.docs[self._letters].add(letter)
        self.owned.parked[partition] |= {entry.stream}
        self._move(partition, parked=self.owned.checkpoints[partition].parked + 1)

    def _apply(self, entry: LogEntry, commit: Commit[Any], fetched: int, now: int) -> bool:
        """Whether it concerned the projection, which is pure: what it raises is the commit's."""
        concerned = self._concerns(commit)
        try:
            if concerned:
                self._projection.apply(commit, self.docs, fetched, now)
            if commit.events:
                document = self._streams.get(commit.stream)
                assert document is not None, f"{self._projection.name} kept no {commit.stream!r}"
                document["version"] = commit.last
        except Exception as error:
            raise Poison(said(error), entry) from error
        return concerned

    def _concerns(self, commit: Commit[Any]) -> bool:
        return bool(commit.events) or (self._refusals and commit.outcome in ("refused", "dropped"))

    def _version(self, commit: Commit[Any]) -> int:
        stream = self._streams.get(commit.stream)
        return stream["version"] if stream else 0

    def _note_commands(self, entries: Iterable[LogEntry]) -> None:
        """The highest command offset of each partition: what waits for a token."""
        commands = {p: at.command for p, at in self.owned.checkpoints.items()}
        for entry in entries:
            if entry.commit is not None and entry.commit.offset > commands[entry.record.partition]:
                commands[entry.record.partition] = entry.commit.offset
        for partition, command in commands.items():
            if command != self.owned.checkpoints[partition].command:
                self._move(partition, command=command)

    def _move(self, partition: int, **fields: int) -> None:
        at = self.owned.checkpoints[partition]
        self.owned.checkpoints[partition] = structs.replace(at, **fields)


def _gap(commit: Commit[Any], known: int) -> str:
    return f"version {commit.first} cannot follow on {known}: a commit is missing"
