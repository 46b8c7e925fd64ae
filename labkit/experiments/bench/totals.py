"""What a run's first view adds up to, and what it must add up to.

The totals are the number of streams, and the sums of the versions and of every field that holds
whole numbers. What they must be is computed from the commands alone, with the service's own rules:
the log is not read. The streams are taken in parts, one after another, because the states and
documents of a million would fill the memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from zlib import crc32

from msgspec import Struct

from labkit.experiments.bench.decided import DecidedStreams
from labkit.lab import Lab
from labkit.messages import Command, Document
from labkit.read.projection import streams_of
from labkit.service import Service

#: Commands whose streams are kept at a time.
PART = 200_000


class Totals(Struct):
    """The number of streams, and sums by field."""

    streams: int
    sums: dict[str, int]

    def __str__(self) -> str:
        sums = ", ".join(f"{name} {total:,}" for name, total in self.sums.items())
        return f"{self.streams:,} streams with a total of {sums}"


def expected(service: Service, commands: Callable[[], Iterable[Command]], count: int) -> Totals:
    """What ``count`` commands lead to. ``commands`` gives the same ones at each call."""
    parts = 1 + (count - 1) // PART
    found = Totals(0, {"version": 0})
    sums = Counter[str]()
    for part in range(parts):
        documents = _documents(
            service, (c for c in commands() if crc32(c.stream.encode()) % parts == part)
        )
        found.streams += len(documents)
        for document in documents.values():
            sums.update({name: value for name, value in document.items() if type(value) is int})
    found.sums |= sums
    return found


def _documents(service: Service, commands: Iterable[Command]) -> dict[str, Document]:
    """The documents of the first view by stream; without such a view they hold versions alone."""
    view = service.first_view
    found: dict[str, Document] = {}
    rules = DecidedStreams(service)
    for taken in filter(None, map(rules.take, commands)):
        stream, document = taken.stream, found.get(taken.stream)
        for event in taken.events if view else ():
            version = document["version"] if document else 0
            document = {**view.apply(document, event), "_id": stream, "version": version}  # type: ignore[union-attr]
        found[stream] = (document or {}) | {"version": taken.version}
    return found


def shown(lab: Lab, service: Service, fields: list[str]) -> Totals:
    """The totals in the store."""
    collection = lab.where(streams_of(service))
    rows: list[dict[str, Any]] = lab.store.totals(collection, "version", fields)
    sums = Counter[str]()
    for row in rows:
        sums.update({name: row[name] for name in fields})
    return Totals(lab.store.count(collection), {name: sums[name] for name in fields})
