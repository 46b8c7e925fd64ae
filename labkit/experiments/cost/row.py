"""A row of the arms without a log: what one command makes of it, by the service's own rules.

::

    {_id: stream, rev, version, state: {...}, shown: {...}}

``state`` is what the rules need, ``shown`` the document that readers get: what labkit's first view
holds. ``rev`` counts the writes of the row, ``version`` the events, of which nothing else is kept.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import Refused
from labkit.messages import Answer, Command, Document, Event
from labkit.ports.store import Reads
from labkit.service import Service

ROWS = "crud.rows"


class Made(Struct, frozen=True):
    """What a command led to. ``row`` is ``None`` if it changes nothing: it was refused, say."""

    answer: Answer
    row: Document | None = None
    events: tuple[Event, ...] = ()


def made(service: Service, row: Document | None, command: Command) -> Made:
    """Decide on the state of a row, and fold the events into its next one."""
    version = row["version"] if row else 0
    state: Any = msgspec.convert(row["state"], service.state) if row else None
    try:
        command.validate()
        events = service.decide[type(command)](state, command)
    except Refused as no:
        return Made(Answer("refused", version, str(no)))
    answer = Answer("accepted", version + len(events))
    if not events:
        return Made(answer)
    view = service.first_view
    assert view is not None
    shown = dict(row["shown"]) if row else None
    for event in events:
        state = service.evolve(state, event)
        shown = view.apply(shown, event)
    after = {
        "_id": command.stream,
        "rev": row["rev"] + 1 if row else 1,
        "version": answer.version,
        "state": msgspec.to_builtins(state),
        "shown": shown,
    }
    return Made(answer, after, events)


class RowReads:
    """What readers get of an arm whose rows they read themselves."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def read(self, stream: str) -> Document | None:
        row = self._reads.load(ROWS, [stream]).get(stream)
        return document(row) if row else None

    def documents(self) -> list[Document]:
        return [document(row) for row in self._reads.find(ROWS, {})]

    def states(self) -> list[Document]:
        return [row["state"] for row in self._reads.find(ROWS, {})]


def document(row: Document) -> Document:
    """What readers get of a row: the same fields as in labkit's view."""
    return {"_id": row["_id"], "version": row["version"], **row["shown"]}
