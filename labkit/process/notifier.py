"""Notices: business modules are told of events, each once.

::

    commit ──> notice + checkpoint, one MongoDB transaction ──> topic SERVICE.notices ──> module

A notifier is a projection with an outbox, like a process. Whatever crashes, a notice goes out with
an id that is derived from its event. It may go out twice, so a module keeps what it has heard in an
inbox, in one transaction with how far it has read. And a notifier remembers what it has told: where
it must read the log anew, from whatever place, the modules hear nothing again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import wraps
from typing import Any

import msgspec
from msgspec import Struct

from labkit.messages import Commit
from labkit.ports.store import Document
from labkit.read.projection import Indexes
from labkit.read.unit_of_work import UnitOfWork
from labkit.service import Event, Notices, Told
from labkit.service.guard import guarded


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
    """The notices of one service.

    Collections::

        SERVICE.notices.seen     {_id: stream, version}
        SERVICE.notices.told     {_id: notice id}
        SERVICE.notices.outbox   {_id: notice id, from: "service:partition", service, key, value}
    """

    def __init__(self, service: str, notices: Notices) -> None:
        self.service = service

        @wraps(notices)
        def told(event: Event) -> list[Told]:
            return list(notices(event))

        self._notices = guarded(told)
        self.name = f"{service}.notices"
        self.streams = f"{self.name}.seen"
        self.told = f"{self.name}.told"
        self.outbox = f"{self.name}.outbox"
        self.indexes: Indexes = {self.streams: [], self.told: [], self.outbox: [[("from", 1)]]}

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """What was told already."""
        return ((self.told, notice.id) for notice in self._of(commit))

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        """Each notice that nobody was given goes to the outbox."""
        if commit.events and docs[self.streams].get(commit.stream) is None:
            docs[self.streams].add({"_id": commit.stream, "version": 0})
        for notice in self._of(commit):
            if docs[self.told].get(notice.id) is None:
                docs[self.told].add({"_id": notice.id})
                docs[self.outbox].add(self._letter(notice, commit.partition))

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
            "from": f"{self.service}:{partition}",
            "service": self.service,
            "key": notice.stream,
            "value": msgspec.json.encode(notice).decode(),
        }
