"""The one runner of everything that reads events.

A projector reads an events topic as a member of a group, folds a batch of commits into documents
and writes these together with its checkpoint in one transaction under its epoch. So a view shows
each event once, whatever crashes between whichever two steps.

What cannot be applied parks its stream, and nothing else: the commits of a parked stream stay in
the log, in order, until they are replayed. Collection ``NAME.parked``::

    {_id: stream, partition, offset: of the first commit that waits, waiting, since, reason}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import stamina

from labkit.errors import (
    Conflict,
    DecodeError,
    Duplicate,
    Fenced,
    Parked,
    TooSlow,
    Unstorable,
    UsageError,
)
from labkit.log.crash_only import CrashOnly
from labkit.log.partition import join_group, read_partition
from labkit.messages import Codec
from labkit.ports.broker import Record, Source
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Checkpoint, Document, Store
from labkit.read.generations import named, serving
from labkit.read.projection import Dispatch, Projection, parked_in
from labkit.read.transaction import LogEntry, Owned, Poison, Transaction

#: Between two looks of a projector that has nothing to do, whether it is still the owner.
LOOK_NANOSECONDS = 1_000_000_000


class Projector(CrashOnly):
    """Runs one projection over the events of one service.

    With ``outbox`` it sends what the projection left there; with ``refusals`` the projection is
    told of refused and dropped commands too. ``generation`` is that of the documents it writes;
    ``live`` says that somebody sees them.
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
        live: bool = True,
    ) -> None:
        self.projection = projection
        self.generation = generation
        self.live = live
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
        self._owned = Owned({}, {})
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
            self._owned.checkpoints.pop(partition, None)
            self.owed.discard(partition)
        self.own(batch.assigned)
        if batch.records:
            hit(Failpoint.PROJECTOR_FETCHED)
        elif all(self._owned.checkpoints[p].position == at for p, at in batch.positions.items()):
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
            self._owned.checkpoints[partition] = claimed[-1]
            hit(Failpoint.PROJECTOR_CLAIMED)
        # Claimed first, then looked: a switch after the claim takes it away again.
        known = self._store.checkpoints(self._collection) if claimed else ()
        if serving(known, self.projection.name) > self.generation:
            raise Fenced(f"{self.name!r} does not serve any more: a later generation does")
        for checkpoint in claimed:
            partition = int(checkpoint.id.rpartition(":")[2])
            self._owned.parked[partition] = frozenset(
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

        Or it would rejoin only when the next event has come, and that would wait for it. Its own
        last batch may be gone, too: an election undoes what was written with write concern 1.
        """
        if now - self._looked < LOOK_NANOSECONDS:
            return
        self._looked = now
        known = {c.id: (c.epoch, c.position) for c in self._store.checkpoints(self._collection)}
        for mine in self._owned.checkpoints.values():
            if known.get(mine.id) != (mine.epoch, mine.position):
                raise Fenced(f"checkpoint {mine.id!r} has another owner, or was undone")

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
            end = self._owned.checkpoints[partition].position
            waiting = [
                entry
                for records in read_partition(self._source, partition, found["offset"], end=end)
                for entry in map(self._entry, records)
                if entry.stream == stream
            ]
            for count, entry in enumerate(waiting):
                following = [later.record.offset for later in waiting[count + 1 :]]
                try:
                    letters = self._resume(entry, following)
                except Poison as poison:
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
        return {partition: at.position for partition, at in self._owned.checkpoints.items()}

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

    def _entry(self, record: Record) -> LogEntry:
        """What is no commit is of the stream that its key says."""
        try:
            commit = self._codec.decode_commit(record.value)
        except DecodeError as error:
            key = record.key.decode("utf-8", "backslashreplace")
            return LogEntry(record, None, key, str(error))
        return LogEntry(record, commit, commit.stream)

    # --- transactions

    def _take(
        self, entries: Sequence[LogEntry], positions: Mapping[int, int], fetched: int
    ) -> tuple[int, list[Document]]:
        """The batch in one transaction; if there is poison in it, or it takes too long, in parts.

        So a batch without poison is as fast as can be, and one with it costs a few transactions
        for each. Returns how many commits were applied, and what the outbox has to send.
        """

        def fill(transaction: Transaction, trust: bool) -> None:
            transaction.load(part, trust=trust)
            transaction.take(part, fetched if self.live else 0)

        applied, letters = 0, list[Document]()
        parts = [entries]
        while parts:
            part = parts.pop()
            at = {e.record.partition: e.record.offset + 1 for e in part} if parts else positions
            try:
                count, added = self._commit(fill, at)
            except (Poison, TooSlow) as failed:
                if len(part) > 1:
                    poison = failed.entry if isinstance(failed, Poison) else None
                    parts += reversed(_parted(part, poison))
                    continue
                if isinstance(failed, TooSlow):
                    raise
                count, added = self._park(part[0], at, str(failed))
            applied += count
            letters += added
        return applied, letters

    def _park(
        self, entry: LogEntry, positions: Mapping[int, int], reason: str
    ) -> tuple[int, list[Document]]:
        def fill(transaction: Transaction, trust: bool) -> None:
            transaction.load_letters([entry])
            transaction.park(entry, reason)

        return self._commit(fill, positions)

    def _resume(self, entry: LogEntry, following: Sequence[int]) -> list[Document]:
        """Apply one commit of a parked stream; what the outbox has to send."""
        fetched = self._clock.now()

        def fill(transaction: Transaction, trust: bool) -> None:
            transaction.load([entry], trust=trust)
            transaction.resume(entry, following, fetched)

        # The checkpoint is written even if it does not move: the owner must still be this one.
        return self._commit(fill, {}, always=True)[1]

    def _commit(
        self,
        fill: Callable[[Transaction, bool], None],
        positions: Mapping[int, int],
        *,
        always: bool = False,
    ) -> tuple[int, list[Document]]:
        """Fill a transaction and commit it; again if another writer of a shared document was first.

        ``fill`` is told whether it may take a stream's first commit for new. If an insert shows
        that it is not, everything is looked up. Raises ``Poison``.
        """
        for attempt in stamina.retry_context(
            on=Conflict, attempts=10, wait_initial=0.01, wait_max=0.5
        ):
            with attempt:
                for trust in (True, False) if attempt.num == 1 else (False,):
                    transaction = self._transaction(positions)
                    fill(transaction, trust)
                    try:
                        return self._write(transaction, always)
                    except Duplicate as error:
                        if not trust:
                            raise Poison(str(error)) from error
                    except Unstorable as error:
                        raise Poison(str(error)) from error
        raise AssertionError("a retry ends with a result or an error")

    def _transaction(self, positions: Mapping[int, int]) -> Transaction:
        return Transaction(
            self.projection,
            self._store,
            self.generation,
            self._owned,
            positions,
            self._clock,
            refusals=self._refusals,
        )

    def _write(self, transaction: Transaction, always: bool) -> tuple[int, list[Document]]:
        hit(Failpoint.PROJECTOR_APPLIED)
        after = transaction.owned
        moves = [
            (old, after.checkpoints[partition])
            for partition, old in self._owned.checkpoints.items()
            if after.checkpoints[partition] != old or always
        ]
        letters = transaction.docs[self._outbox.collection].split()[0] if self._outbox else []
        self._store.advance(self._collection, moves, transaction.docs.writes())
        self._owned = after
        return transaction.applied, letters


def _parted(entries: Sequence[LogEntry], poison: LogEntry | None) -> list[Sequence[LogEntry]]:
    """What was before the poison, the poison alone, and the halves of what comes after it; the
    halves of all, if none is known."""
    at = next((n for n, entry in enumerate(entries) if entry is poison), None)
    after = 0 if at is None else at + 1
    half = (after + len(entries)) // 2
    parts = [entries[: after - 1], entries[after - 1 : after]] if after else []
    return [part for part in (*parts, entries[after:half], entries[half:]) if part]
