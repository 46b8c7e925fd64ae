"""Views: how the events of a service become documents that queries read.

A view is one collection. The usual one keeps a document for each stream::

    class Tickets(View):
        indexes = [("customer", "closed")]

        def apply(self, document, event):
            match event:
                case TicketOpened():
                    return {"customer": event.customer, "closed": False}
                case TicketClosed():
                    return {**document, "closed": True}

Documents under other keys (sums, lists) are a :class:`KeyedView`. What is summed over streams keeps
one document for each key *and partition* and is added up when it is read: projectors of different
partitions then never write the same document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

from msgspec import Struct

from labkit.messages import Document, Event

#: Fields of an index in their order; a leading ``-`` reverses a field.
Index = Sequence[str]
#: The fields of a shard key, each with a direction or ``"hashed"``.
ShardKey = Sequence[tuple[str, int | str]]
#: What is written by its id is spread by a hash of it, so that each write goes to one shard.
BY_ID: ShardKey = (("_id", "hashed"),)


class At(Struct, frozen=True, gc=False):
    """Where an event stands: its stream, the stream's version after it, and its partition.

    ``document`` is the stream's document in the service's first view, after the event; ``None``
    while keys are collected, or if the service keeps no document for each stream.
    """

    stream: str
    version: int
    partition: int
    document: Document | None = None


class Documents(Protocol):
    """The documents of one view that an event may change, by id. Change them in place."""

    def get(self, id: str) -> Document | None:
        """A document whose id ``keys`` has named."""

    def add(self, document: Document) -> Document:
        """A new document; its ``_id`` must not exist."""

    def remove(self, id: str) -> None:
        """Delete a document, if it exists."""


class View:
    """One document for each stream.

    The projector adds ``_id`` (the stream), ``version`` (of the stream) and ``trace`` (the instants
    of the newest message, if it was not read again by a rebuild) to the documents of a service's
    first view.
    """

    #: The last part of the collection's name; the default is the name of the class.
    name: ClassVar[str] = ""
    indexes: ClassVar[Sequence[Index]] = ()
    shard_key: ClassVar[ShardKey] = BY_ID

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.__dict__.get("name"):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def apply(self, document: Any, event: Any) -> Document:
        """The stream's document after an event; ``None`` stands for no document yet.

        What it raises parks the stream in this view, and no other stream.
        """
        raise NotImplementedError(f"{type(self).__name__} needs apply(document, event)")


class KeyedView(View):
    """Documents under keys of the view's own choice."""

    def keys(self, event: Event, at: At) -> Iterable[str]:
        """The ids of existing documents that ``change`` will ask for."""
        return ()

    def change(self, documents: Documents, event: Any, at: At) -> None:
        """Change the documents of the view by one event."""
        raise NotImplementedError(f"{type(self).__name__} needs change(documents, event, at)")
