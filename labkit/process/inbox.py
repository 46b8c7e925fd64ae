"""The receiving end of notices: a module that takes each notice once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
from msgspec import structs

from labkit.log.crash_only import CrashOnly
from labkit.ports.broker import Record, Source
from labkit.ports.store import Checkpoint, Document, Store, Writes
from labkit.process.notifier import Notice


class Module(CrashOnly):
    """The inbox of one module over the notices of a service: each notice once.

    Collections::

        MODULE.inbox         {_id: notice id, stream, version, event, text, at}
        MODULE.checkpoints   {_id: "service:partition", ...}
    """

    def __init__(self, name: str, service: str, source: Source, store: Store) -> None:
        self._name = name
        self._service = service
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
            at = self._store.claim(self._collection, f"{self._service}:{partition}")
            self._checkpoints[partition] = at
            self._source.start(partition, at.position)

    def close(self) -> None:
        """Leave the group."""
        self._source.close()
