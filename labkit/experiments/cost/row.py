"""A row of the arms without a log: what one command makes of it, by the service's own rules. Pure.

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


def document(row: Document) -> Document:
    """What readers get of a row: the same fields as in labkit's view."""
    return {"_id": row["_id"], "version": row["version"], **row["shown"]}
