"""Notices: business modules are told of events, each once.

::

    commit ──> notice + checkpoint, one MongoDB transaction ──> topic CONTEXT.notices ──> module

A notifier is a projection with an outbox, like a saga: whatever crashes, a notice goes out, with an
id that is derived from its event. It may go out twice, so a module keeps what it has heard in an
inbox, in one transaction with how far it has read. And a notifier remembers what it has told: where
it must read the log anew, from whatever place, the modules hear nothing again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import Struct, structs

from labkit.crashonly import CrashOnly
from labkit.documents import Docs
from labkit.domain.notices import Told
from labkit.messages import Commit, Event
from labkit.ports import Checkpoint, Document, Record, Source, Store, Writes
from labkit.projections import Indexes


class Notice(Struct, frozen=True):
    """What a module hears; ``at`` is when its event was committed, in Unix milliseconds."""

    id: str
    module: str
    stream: str
    version: int
    event: str
    text: str
    at: int


class Notifier:
    """The notices of one context.

    Collections::

        CONTEXT.notices.seen     {_id: stream, version}
        CONTEXT.notices.told     {_id: notice id}
        CONTEXT.notices.outbox   {_id: notice id, from: "context:partition", context, key, value}
    """

    def __init__(self, context: str, notices: Callable[[Event], Iterable[Told]]) -> None:
        self.context = context
        self._notices = notices
        self.name = f"{context}.notices"
        self.streams = f"{self.name}.seen"
        self.told = f"{self.name}.told"
        self.outbox = f"{self.name}.outbox"
        self.indexes: Indexes = {self.streams: [], self.told: [], self.outbox: [[("from", 1)]]}

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """What was told already."""
        return ((self.told, notice.id) for notice in self._of(commit))

    def apply(self, commit: Commit[Any], docs: Docs, fetched: int, now: int) -> None:
        """Each notice that nobody was given goes to the outbox."""
        if commit.events and docs.get(self.streams, commit.stream) is None:
            docs.add(self.streams, {"_id": commit.stream, "version": 0})
        for notice in self._of(commit):
            if docs.get(self.told, notice.id) is None:
                docs.add(self.told, {"_id": notice.id})
                docs.add(self.outbox, self._letter(notice, commit.partition))

    def _of(self, commit: Commit[Any]) -> Iterable[Notice]:
        for version, event in enumerate(commit.events, commit.first):
            for module, text in self._notices(event):
                yield Notice(
                    f"{commit.stream}:{version}:{module}",
                    module,
                    commit.stream,
                    version,
                    type(event).__name__,
                    text,
                    commit.at,
                )

    def _letter(self, notice: Notice, partition: int) -> Document:
        return {
            "_id": notice.id,
            "from": f"{self.context}:{partition}",
            "context": self.context,
            "key": notice.stream,
            "value": msgspec.json.encode(notice).decode(),
        }


class Module(CrashOnly):
    """The inbox of one module over the notices of a context: each notice once.

    Collections::

        MODULE.inbox         {_id: notice id, stream, version, event, text, at}
        MODULE.checkpoints   {_id: "context:partition", ...}
    """

    def __init__(self, name: str, context: str, source: Source, store: Store) -> None:
        self._name = name
        self._context = context
        self._source = source
        self._store = store
        self.inbox = f"{name}.inbox"
        self._collection = f"{name}.checkpoints"
        self._checkpoints: dict[int, Checkpoint] = {}

    def step(self, timeout: float = 0.5) -> int:
        """One batch; how many notices were new. Raises ``Fenced`` if an earlier step failed."""
        with self.unbroken():
            batch = self._source.poll(4_000, timeout)
            for partition in batch.revoked:
                self._checkpoints.pop(partition, None)
            self.own(batch.assigned)
            if not batch.positions:
                return 0
            new, strange = self._new(batch.records)
            moves = []
            for partition, position in batch.positions.items():
                at = self._checkpoints[partition]
                ignored = at.ignored + strange[partition]
                moves.append((at, structs.replace(at, position=position, ignored=ignored)))
            self._store.advance(self._collection, moves, Writes({self.inbox: new}))
            self._checkpoints.update(zip(batch.positions, (to for _, to in moves), strict=True))
            return len(new)

    def _new(self, records: list[Record]) -> tuple[list[Document], Counter[int]]:
        """The notices that are not in the inbox; and what is no notice, by partition."""
        heard: dict[str, Document] = {}
        strange: Counter[int] = Counter()
        for record in records:
            try:
                notice = msgspec.json.decode(record.value, type=Notice)
            except msgspec.MsgspecError:
                strange[record.partition] += 1
                continue
            if notice.module == self._name:
                document = structs.asdict(notice)
                del document["module"]
                heard[notice.id] = {"_id": document.pop("id"), **document}
        known = self._store.load(self.inbox, heard)
        return [document for id, document in heard.items() if id not in known], strange

    def own(self, partitions: Iterable[int]) -> None:
        """Claim partitions, and begin to read where the inbox stands."""
        for partition in sorted(partitions):
            at = self._store.claim(self._collection, f"{self._context}:{partition}")
            self._checkpoints[partition] = at
            self._source.start(partition, at.position)

    def close(self) -> None:
        """Leave the group."""
        self._source.close()
