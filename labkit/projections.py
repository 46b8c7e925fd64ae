"""The one runner of everything that reads events.

A projector reads an events topic as a member of a group, folds a batch of commits into documents
and writes these together with its checkpoint in one transaction under its epoch. So a view shows
each event once, whatever crashes between whichever two steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import stamina
from msgspec import structs

from labkit import eventlog
from labkit.crashonly import CrashOnly
from labkit.errors import Conflict, DecodeError, Duplicate
from labkit.failpoints import Failpoint, hit
from labkit.messages import Codec, Commit
from labkit.ports import Checkpoint, Clock, Document, Record, Source, Store, SystemClock, Writes

#: Collection -> its indexes, each a list of (field, direction).
Indexes = dict[str, list[list[tuple[str, int]]]]


class Docs:
    """The documents of one batch: loaded once, changed in memory, written once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._documents: dict[str, dict[str, Document]] = {}
        self._stored: set[tuple[str, str]] = set()
        self._removed: dict[str, list[str]] = {}

    def load(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Bring the documents that exist among (collection, id), one look-up a collection."""
        ids: dict[str, dict[str, None]] = {}
        for collection, id in wanted:
            ids.setdefault(collection, {})[id] = None
        for collection, keys in ids.items():
            found = self._store.load(collection, keys)
            self._documents.setdefault(collection, {}).update(found)
            self._stored.update((collection, id) for id in found)

    def get(self, collection: str, id: str) -> Document | None:
        """A document of this batch; change it in place."""
        return self._documents.get(collection, {}).get(id)

    def add(self, collection: str, document: Document) -> Document:
        """A document that is new."""
        self._documents.setdefault(collection, {})[document["_id"]] = document
        return document

    def remove(self, collection: str, id: str) -> None:
        """Take a document out, if there is one."""
        if self._documents.get(collection, {}).pop(id, None) and (collection, id) in self._stored:
            self._removed.setdefault(collection, []).append(id)

    def writes(self) -> Writes:
        """All documents of the batch: inserts where they are new, which is far cheaper.

        A shared document is raised to its next revision.
        """
        writes = Writes(deletes=self._removed)
        for collection, documents in self._documents.items():
            for id, document in documents.items():
                stored = (collection, id) in self._stored
                if stored and "rev" in document:
                    document["rev"] += 1
                into = writes.replaces if stored else writes.inserts
                into.setdefault(collection, []).append(document)
        return writes


class Projection(Protocol):
    """Pure: what a commit does to documents. ``streams`` names the collection that holds, under
    the stream's id, at least the stream's ``version``."""

    name: str
    streams: str

    @property
    def indexes(self) -> Indexes:
        """What its collections need."""

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """The (collection, id) that ``apply`` will ask for, besides the stream's own document."""

    def apply(self, commit: Commit[Any], docs: Docs, fetched: int, now: int) -> None:
        """Change the documents. The runner has checked the version and will note the new one."""


class Outbox(Protocol):
    """Where a projection leaves commands in the transaction of its batch, to be sent after it."""

    collection: str

    def send(self, letters: list[Document]) -> None:
        """Send them, wait until they are acknowledged, take them out. Twice does no harm."""

    def leftovers(self, partition: int) -> list[Document]:
        """What a dead owner of a partition left behind."""


class Projector(CrashOnly):
    """Runs one projection over the events of one context.

    With ``outbox`` it sends what the projection left there; with ``refusals`` the projection is
    told of refused and dropped commands too.
    """

    def __init__(
        self,
        projection: Projection,
        codec: Codec,
        source: Source,
        store: Store,
        checkpoints: str,
        clock: Clock | None = None,
        *,
        batch_size: int = 4_000,
        outbox: Outbox | None = None,
        refusals: bool = False,
    ) -> None:
        self.projection = projection
        self._codec = codec
        self._source = source
        self._store = store
        self._collection = checkpoints
        self._clock = clock or SystemClock()
        self._batch_size = batch_size
        self._outbox = outbox
        self._refusals = refusals
        self._checkpoints: dict[int, Checkpoint] = {}
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
        self._take_over(batch.assigned)
        reached = dict(self._checkpoints)
        for partition, position in batch.positions.items():
            reached[partition] = structs.replace(reached[partition], position=position)
        if batch.records:
            hit(Failpoint.PROJECTOR_FETCHED)
        elif reached == self._checkpoints:
            return 0

        # 2. Fold the commits into documents, 3. write these and the checkpoints as one.
        commits = [(record, self._decode(record)) for record in batch.records]
        applied, letters = self._fold_and_write(commits, reached, fetched)
        if batch.records:
            hit(Failpoint.PROJECTOR_ADVANCED)

        # 4. Only now may the world hear of it.
        if self._outbox and letters:
            self._outbox.send(letters)
        return applied

    def _fold_and_write(
        self,
        commits: list[tuple[Record, Commit[Any] | None]],
        reached: dict[int, Checkpoint],
        fetched: int,
    ) -> tuple[int, list[Document]]:
        """Again where another writer of a shared document was first: nothing was written then."""
        for attempt in stamina.retry_context(
            on=Conflict, attempts=10, wait_initial=0.01, wait_max=0.5
        ):
            with attempt:
                try:
                    return self._write(commits, reached, fetched, trust=attempt.num == 1)
                except Duplicate:
                    # A first commit of a stream that is there already: look at every version.
                    return self._write(commits, reached, fetched, trust=False)
        raise AssertionError("a retry ends with a result or an error")

    def ends(self) -> dict[str, int]:
        """How far the log goes now, by the ids of the checkpoints."""
        return {f"{self.projection.name}:{p}": end for p, end in self._source.ends().items()}

    def send_owed(self) -> None:
        """Send what dead owners left, and nobody has taken out of the outbox since."""
        for partition in sorted(self.owed):
            if self._outbox and (letters := self._outbox.leftovers(partition)):
                self._outbox.send(letters)
        self.owed.clear()

    def join(self, partitions: int) -> None:
        """Own ``partitions`` before the first step: for those who step by hand."""
        self._take_over(eventlog.join(self._source, partitions))

    def close(self) -> None:
        """Leave the group."""
        self._source.close()

    def _take_over(self, partitions: frozenset[int]) -> None:
        for partition in sorted(partitions):
            id = f"{self.projection.name}:{partition}"
            checkpoint = self._store.claim(self._collection, id)
            hit(Failpoint.PROJECTOR_CLAIMED)
            self._checkpoints[partition] = checkpoint
            if self._outbox and self._outbox.leftovers(partition):
                self.owed.add(partition)
            self._source.start(partition, checkpoint.position)

    def _decode(self, record: Record) -> Commit[Any] | None:
        try:
            return self._codec.decode_commit(record.value)
        except DecodeError:
            return None

    def _write(
        self,
        commits: list[tuple[Record, Commit[Any] | None]],
        before: dict[int, Checkpoint],
        fetched: int,
        *,
        trust: bool,
    ) -> tuple[int, list[Document]]:
        """``trust``: a stream's first events need no look-up, its document is new."""
        reached = dict(before)
        streams = self.projection.streams
        docs = Docs(self._store)
        wanted: list[tuple[str, str]] = []
        for record, commit in commits:
            if commit is not None:
                if self._concerns(commit):
                    wanted.extend(self.projection.touches(commit, record.partition))
                if commit.first > 1 or not commit.events or not trust:
                    wanted.append((streams, commit.stream))
        docs.load(wanted)
        now = self._clock.now()
        applied = 0
        commands: dict[int, int] = {}
        for record, commit in commits:
            partition = record.partition
            stream = docs.get(streams, commit.stream) if commit else None
            known = stream["version"] if stream else 0
            if commit is None or commit.first != known + 1:
                at = reached[partition]
                reached[partition] = structs.replace(at, ignored=at.ignored + 1)
                continue
            commands[partition] = max(commit.offset, commands.get(partition, -1))
            if self._concerns(commit):
                self.projection.apply(commit, docs, fetched, now)
                applied += 1
            if commit.events:
                document = docs.get(streams, commit.stream)
                assert document is not None, f"{self.projection.name} kept no {commit.stream!r}"
                document["version"] = commit.last
        for partition, command in commands.items():
            reached[partition] = structs.replace(
                reached[partition], command=max(command, reached[partition].command)
            )
        hit(Failpoint.PROJECTOR_APPLIED)
        moves = [
            (old, reached[partition])
            for partition, old in self._checkpoints.items()
            if reached[partition] != old
        ]
        writes = docs.writes()
        self._store.advance(self._collection, moves, writes)
        self._checkpoints = reached
        letters = writes.inserts.get(self._outbox.collection, []) if self._outbox else []
        return applied, letters

    def _concerns(self, commit: Commit[Any]) -> bool:
        turned_down = self._refusals and commit.outcome in ("refused", "dropped")
        return bool(commit.events) or turned_down
