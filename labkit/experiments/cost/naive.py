"""CRUD as it is often written: read, decide, write. Its anomalies are what is measured.

No transaction, no version that is compared, no table of the commands that were seen. Two writers of
one row overwrite each other, and a command that is sent again takes effect again. The row counts
its versions only so that the checkers can tell what was lost.
"""

from __future__ import annotations

from typing import Protocol

from labkit.adapters.mongo import connect, translated
from labkit.experiments.cost.arm import Reply
from labkit.experiments.cost.row import ROWS, RowReads, made
from labkit.messages import Command, Document
from labkit.ports.store import Reads
from labkit.service import Service


class Saver(Protocol):
    """Writes one document, whatever is there."""

    def save(self, collection: str, document: Document) -> None: ...

    def close(self) -> None: ...


class Naive(RowReads):
    """The same rules and rows as ``crud``."""

    conflicts = 0

    def __init__(self, service: Service, reads: Reads, saver: Saver) -> None:
        super().__init__(reads)
        self._service, self._saver = service, saver

    def send(self, command: Command, id: str) -> Reply:
        row = self._reads.load(ROWS, [command.stream]).get(command.stream)
        done = made(self._service, row, command)
        if done.row is not None:
            self._saver.save(ROWS, done.row)
        return Reply(done.answer)

    def close(self) -> None:
        self._saver.close()


class PlainSaver:
    """Writes to MongoDB without a transaction."""

    def __init__(self, uri: str, database: str) -> None:
        self._client, self._db = connect(uri, database)

    def save(self, collection: str, document: Document) -> None:
        with translated(f"save in {collection!r}"):
            where = {"_id": document["_id"]}
            self._db[collection].replace_one(where, document, upsert=True)

    def close(self) -> None:
        self._client.close()
