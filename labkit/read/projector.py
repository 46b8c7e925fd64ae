"""The one runner of everything that reads events.

A projector reads an events topic as a member of a group, folds a batch of commits into documents
and writes these together with its checkpoint in one transaction under its epoch. So a view shows
each event once, whatever crashes between whichever two steps.

What cannot be applied parks its stream, and nothing else: the commits of a parked stream stay in
the log, in order, until they are replayed. Collection ``NAME.parked``::

    {_id: stream, partition, offset: of the first commit that waits, waiting, since, reason}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import stamina
from msgspec import Struct, structs

from labkit.errors import (
    Conflict,
    DecodeError,
    Duplicate,
    Fenced,
    LabkitError,
    Parked,
    Unstorable,
    UsageError,
)
from labkit.log.crash_only import CrashOnly
from labkit.log.partition import join_group, read_partition
from labkit.messages import Codec, Commit
from labkit.ports.broker import Record, Source
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Checkpoint, Document, Store
from labkit.read.generations import named, serving
from labkit.read.projection import Dispatch, Projection, parked_in
from labkit.read.unit_of_work import UnitOfWork

#: Between two looks of a projector that has nothing to do, whether it is still the owner.
LOOK_NANOSECONDS = 1_000_000_000


class _Entry(Struct, frozen=True, gc=False):
    """A record of the log: a commit, or the reason why it is none."""

    record: Record
    commit: Commit[Any] | None
    stream: str
    reason: str = ""


class _Poison(Exception):
    """Something in a batch cannot be applied."""


class Projector(CrashOnly):
    """Runs one projection over the events of one service.

    With ``outbox`` it sends what the projection left there; with ``refusals`` the projection is
    told of refused and dropped commands too. ``generation`` is that of the documents it writes.
    """

    def __init__(
        self,
        projection: Projection,
        codec: Codec,
        source: Source,
        store: Store,
        checkpoints: str,
        clock: Clock = SYSTEM,
        *,
        batch_size: int = 4_000,
        outbox: Dispatch | None = None,
        refusals: bool = False,
        generation: int = 0,
    ) -> None:
        self.projection = projection
        self.generation = generation
        self.name = named(projection.name, generation)
        self._codec = codec
        self._source = source
        self._store = store
        self._collection = checkpoints
        self._clock = clock
        self._batch_size = batch_size
        self._outbox = outbox
        self._refusals = refusals
        self._letters = parked_in(projection.name)
        self._checkpoints: dict[int, Checkpoint] = {}
        self._parked: dict[int, frozenset[str]] = {}
        self._looked = self._clock.now()
        #: Partitions whose dead owner left commands in the outbox.
        self.owed: set[int] = set()

    def step(self, timeout: float = 0.5) -> int:
        """One batch; returns the number of commits that it applied.

        Raises ``Fenced`` if an earlier step failed.
        """
        with self.unbroken():
            return self._step(timeout)

    def _step(self, timeout: float) -> int:
        # 1. Poll; claim what is new under a raised epoch, and go on where its checkpoint says.
        batch = self._source.poll(self._batch_size, timeout)
        fetched = self._clock.now()
        for partition in batch.revoked:
            self._checkpoints.pop(partition, None)
            self.owed.discard(partition)
        self.own(batch.assigned)
        if batch.records:
            hit(Failpoint.PROJECTOR_FETCHED)
        elif all(self._checkpoints[p].position == at for p, at in batch.positions.items()):
            self._check_owner(fetched)
            return 0

        # 2. Fold the commits into documents, 3. write these and the checkpoints as one.
        entries = [self._entry(record) for record in batch.records]
        applied, letters = self._take(entries, batch.positions, fetched)
        if batch.records:
            hit(Failpoint.PROJECTOR_ADVANCED)

        # 4. Only now may the world hear of it.
        if self._outbox and letters:
            self._outbox.send(letters)
        return applied

    def own(self, partitions: Iterable[int]) -> None:
        """Claim partitions, and begin to read where their checkpoints stand.

        Raises ``Fenced`` where a later generation serves: whoever makes this projector anew gets
        that one.
        """
        claimed: list[Checkpoint] = []
        for partition in sorted(partitions):
            claimed.append(self._store.claim(self._collection, f"{self.name}:{partition}"))
            self._checkpoints[partition] = claimed[-1]
            hit(Failpoint.PROJECTOR_CLAIMED)
        # Claimed first, then looked: a switch after the claim takes it away again.
        known = self._store.checkpoints(self._collection) if claimed else ()
        if serving(known, self.projection.name) > self.generation:
            raise Fenced(f"{self.name!r} does not serve any more: a later generation does")
        for checkpoint in claimed:
            partition = int(checkpoint.id.rpartition(":")[2])
            self._parked[partition] = frozenset(
                document["_id"]
                for document in self._store.find(
                    named(self._letters, self.generation), {"partition": partition}, fields=["_id"]
                )
            )
            if self._outbox and self._outbox.leftovers(partition):
                self.owed.add(partition)
            self._source.start(partition, checkpoint.position)

    def _check_owner(self, now: int) -> None:
        """Who writes nothing for a while is not fenced by a write, so it looks.

        Or it would rejoin only when the next event has come, and that would wait for it.
        """
        if now - self._looked < LOOK_NANOSECONDS:
            return
        self._looked = now
        epochs = {c.id: c.epoch for c in self._store.checkpoints(self._collection)}
        for checkpoint in self._checkpoints.values():
            if epochs.get(checkpoint.id) != checkpoint.epoch:
                raise Fenced(f"checkpoint {checkpoint.id!r} has another owner")

    def replay(self, partition: int, stream: str) -> int:
        """Apply what waits in a parked stream, one commit a transaction; how many it were.

        The partition is taken from its owner, who rejoins. Raises ``UsageError`` where the stream
        is not parked, and ``Parked`` where it gets no further.
        """
        with self.unbroken():
            self.own([partition])
            found = self._store.load(named(self._letters, self.generation), [stream]).get(stream)
            if found is None or found["partition"] != partition:
                raise UsageError(f"stream {stream!r} is not parked in {self.name!r}")
            end = self._checkpoints[partition].position
            waiting = [
                entry
                for records in read_partition(self._source, partition, found["offset"], end=end)
                for entry in map(self._entry, records)
                if entry.stream == stream
            ]
            for count, entry in enumerate(waiting):
                following = [later.record.offset for later in waiting[count + 1 :]]
                try:
                    _, letters = self._as_one([entry], {}, self._clock.now(), waiting=following)
                except _Poison as poison:
                    raise Parked(
                        f"{stream!r} stays parked in {self.name!r}, at offset "
                        f"{entry.record.offset} of partition {partition}: {poison}"
                    ) from poison
                if self._outbox and letters:
                    self._outbox.send(letters)
            return len(waiting)

    @property
    def positions(self) -> dict[int, int]:
        """The next offset of each partition that it owns."""
        return {partition: at.position for partition, at in self._checkpoints.items()}

    def ends(self) -> dict[str, int]:
        """How far the log goes now, by the ids of the checkpoints."""
        return {f"{self.name}:{p}": end for p, end in self._source.ends().items()}

    def send_owed(self) -> None:
        """Send what dead owners left, and nobody has taken out of the outbox since."""
        for partition in sorted(self.owed):
            if self._outbox and (letters := self._outbox.leftovers(partition)):
                self._outbox.send(letters)
        self.owed.clear()

    def join(self, partitions: int) -> None:
        """Own ``partitions`` before the first step: for those who step by hand."""
        self.own(join_group(self._source, partitions))

    def close(self) -> None:
        """Leave the group."""
        self._source.close()

    def _entry(self, record: Record) -> _Entry:
        """What is no commit is of the stream that its key says."""
        try:
            commit = self._codec.decode_commit(record.value)
        except DecodeError as error:
            key = record.key.decode("utf-8", "backslashreplace")
            return _Entry(record, None, key, str(error))
        return _Entry(record, commit, commit.stream)

    def _take(
        self, entries: Sequence[_Entry], positions: Mapping[int, int], fetched: int
    ) -> tuple[int, list[Document]]:
        """The batch in one transaction; where there is poison in it, in ever smaller parts.

        So a batch without is as fast as can be, and one that holds some costs a few transactions
        for each. Returns how many commits were applied, and what the outbox has to send.
        """
        try:
            return self._as_one(entries, positions, fetched)
        except _Poison as poison:
            if len(entries) == 1:
                return self._as_one(entries, positions, fetched, reason=str(poison))
        half = len(entries) // 2
        before = {e.record.partition: e.record.offset + 1 for e in entries[:half]}
        applied, letters = self._take(entries[:half], before, fetched)
        more, others = self._take(entries[half:], positions, fetched)
        return applied + more, letters + others

    def _as_one(
        self,
        entries: Sequence[_Entry],
        positions: Mapping[int, int],
        fetched: int,
        *,
        reason: str = "",
        waiting: list[int] | None = None,
    ) -> tuple[int, list[Document]]:
        """Again where another writer of a shared document was first: nothing was written then."""
        for attempt in stamina.retry_context(
            on=Conflict, attempts=10, wait_initial=0.01, wait_max=0.5
        ):
            with attempt:
                for trust in (True, False) if attempt.num == 1 else (False,):
                    try:
                        return self._write(entries, positions, fetched, trust, reason, waiting)
                    except Duplicate as error:
                        # A first commit of a stream that is there already: look at every version.
                        if not trust:
                            raise _Poison(str(error)) from error
                    except Unstorable as error:
                        raise _Poison(str(error)) from error
        raise AssertionError("a retry ends with a result or an error")

    def _write(
        self,
        entries: Sequence[_Entry],
        positions: Mapping[int, int],
        fetched: int,
        trust: bool,
        poison: str,
        waiting: list[int] | None,
    ) -> tuple[int, list[Document]]:
        """One transaction.

        ``trust``: a stream's first events need no look-up, its document is new. ``poison``: park
        the one entry for this reason. ``waiting``: it is replayed, and these offsets follow it.
        """
        reached = {
            partition: structs.replace(at, position=positions.get(partition, at.position))
            for partition, at in self._checkpoints.items()
        }
        parked = dict(self._parked)
        docs = UnitOfWork(self._store, self.generation)
        try:
            docs.load(self._wanted(entries, trust, poison))
        except LabkitError:
            raise
        except Exception as error:
            raise _Poison(f"{type(error).__name__}: {error}") from error
        now = self._clock.now()
        applied = 0
        commands = {partition: at.command for partition, at in reached.items()}
        for entry in entries:
            commit, stream, partition = entry.commit, entry.stream, entry.record.partition
            at = reached[partition]
            known = self._version(commit, docs) if commit else 0
            if stream in parked[partition] and waiting is None:
                if (letter := docs.get(self._letters, stream)) is None:
                    raise Fenced(f"{stream!r} was replayed by another, who took {at.id!r} over")
                letter["waiting"] += 1
            elif commit is None or (reason := poison or _gap(commit, known)):
                if waiting is not None:
                    raise _Poison(entry.reason or reason)
                docs.add(self._letters, self._letter(entry, entry.reason or reason))
                parked[partition] |= {stream}
                at = structs.replace(at, parked=at.parked + 1)
            elif commit.first <= known:
                at = structs.replace(at, ignored=at.ignored + 1)
            else:
                applied += self._apply(commit, docs, fetched, now)
            if waiting is not None and self._last(stream, docs, waiting):
                parked[partition] -= {stream}
                at = structs.replace(at, parked=at.parked - 1)
            if commit is not None and commit.offset > commands[partition]:
                commands[partition] = commit.offset
            reached[partition] = at
        for partition, command in commands.items():
            reached[partition] = structs.replace(reached[partition], command=command)
        hit(Failpoint.PROJECTOR_APPLIED)
        moves = [
            (old, reached[partition])
            for partition, old in self._checkpoints.items()
            if reached[partition] != old or waiting is not None
        ]
        letters = docs.added(self._outbox.collection) if self._outbox else []
        self._store.advance(self._collection, moves, docs.writes())
        self._checkpoints, self._parked = reached, parked
        return applied, letters

    def _wanted(
        self, entries: Iterable[_Entry], trust: bool, poison: str
    ) -> Iterable[tuple[str, str]]:
        """What the entries will be folded into, as (collection, id)."""
        for entry in entries:
            commit = entry.commit
            if entry.stream in self._parked[entry.record.partition]:
                yield self._letters, entry.stream
            if commit is None or poison:
                continue
            if self._concerns(commit):
                yield from self.projection.touches(commit, entry.record.partition)
            if commit.first > 1 or not commit.events or not trust:
                yield self.projection.streams, commit.stream

    def _apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> bool:
        """Whether it concerned the projection, which is pure: what it raises is the commit's."""
        concerned = self._concerns(commit)
        try:
            if concerned:
                self.projection.apply(commit, docs, fetched, now)
            if commit.events:
                document = docs.get(self.projection.streams, commit.stream)
                assert document is not None, f"{self.projection.name} kept no {commit.stream!r}"
                document["version"] = commit.last
        except LabkitError:
            raise
        except Exception as error:
            raise _Poison(f"{type(error).__name__}: {error}") from error
        return concerned

    def _concerns(self, commit: Commit[Any]) -> bool:
        if commit.events:
            return True
        return self._refusals and commit.outcome in ("refused", "dropped")

    def _version(self, commit: Commit[Any], docs: UnitOfWork) -> int:
        stream = docs.get(self.projection.streams, commit.stream)
        return stream["version"] if stream else 0

    def _letter(self, entry: _Entry, reason: str) -> Document:
        return {
            "_id": entry.stream,
            "partition": entry.record.partition,
            "offset": entry.record.offset,
            "waiting": 1,
            "since": self._clock.wall(),
            "reason": reason,
        }

    def _last(self, stream: str, docs: UnitOfWork, waiting: list[int]) -> bool:
        """Note what still waits in a parked stream; whether that is nothing."""
        letter = docs.get(self._letters, stream)
        assert letter is not None
        if waiting:
            letter.update(offset=waiting[0], waiting=len(waiting))
        else:
            docs.remove(self._letters, stream)
        return not waiting


def _gap(commit: Commit[Any], known: int) -> str:
    """Why a commit cannot be next; empty: it can, or it comes too late."""
    if commit.first <= known + 1:
        return ""
    return f"version {commit.first} cannot follow on {known}: a commit is missing"
