"""Writing records to the log on MongoDB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import stamina
from bson import Binary
from msgspec import Struct
from pymongo.client_session import ClientSession
from pymongo.database import Database

from labkit.adapters.mongo_client import translated
from labkit.errors import Conflict, Unreachable
from labkit.ports.broker import Record
from labkit.ports.store import Document

#: The server aborts the transaction of a dead worker after 8 s, so retries last longer.
PATIENCE_SECONDS = 20.0


class _Fact(Struct):
    """The fields of a commit that the unique indexes need."""

    stream: str
    partition: int
    offset: int
    outcome: str
    first: int
    last: int


_facts = msgspec.json.Decoder(_Fact)


def unique(value: bytes, *, once: bool) -> Document:
    """The fields of a commit that must be unique; none for bytes that are not a commit.

    ``once``: of a command there is one decision. If it is delivered again, because somebody has set
    the offsets back, it has a second commit, which is "repeated" or "dropped" and changes nothing.
    """
    try:
        fact = _facts.decode(value)
    except msgspec.MsgspecError:
        return {}
    found: Document = {}
    if fact.last >= fact.first:
        # A zombie decides on an old version, so its commit has the same `first` as another one.
        found |= {"stream": fact.stream, "version": fact.first}
    if once and fact.outcome in ("accepted", "refused"):
        found["command"] = f"{fact.partition}:{fact.offset}"
    return found


def append(
    db: Database[Document],
    session: ClientSession,
    topic: str,
    records: Sequence[Record],
    fields: Callable[[bytes], Document] = lambda _: {},
) -> tuple[list[int], dict[int, int]]:
    """Allocate offsets and insert records; return the offset of each, and the partitions' ends.

    ``fields`` derives the indexed fields from a value.
    """
    counts = Counter(record.partition for record in records)
    following: dict[int, int] = {}
    for partition in sorted(counts):
        found = db["log.ends"].find_one_and_update(
            {"_id": f"{topic}|{partition}"}, {"$inc": {"next": counts[partition]}}, session=session
        )
        if found is None:
            raise Unreachable(f"topic {topic!r} has no partition {partition}; create it first")
        following[partition] = found["next"]
    offsets: list[int] = []
    documents: list[Document] = []
    for record in records:
        offset = following[record.partition]
        following[record.partition] = offset + 1
        offsets.append(offset)
        documents.append(
            {
                "_id": {"p": record.partition, "o": offset},
                "key": Binary(record.key),
                "value": Binary(record.value),
                **fields(record.value),
            }
        )
    if documents:
        db[f"log.{topic}"].insert_many(documents, ordered=False, session=session)
    return offsets, following


def as_record(document: Document) -> Record:
    place = document["_id"]
    return Record(place["p"], place["o"], bytes(document["key"]), bytes(document["value"]))


def attempts() -> Iterable[Any]:
    """Retry on ``Conflict``: of two transactions on one document, MongoDB aborts the later."""
    return stamina.retry_context(
        on=Conflict, attempts=None, timeout=PATIENCE_SECONDS, wait_initial=0.005, wait_max=0.5
    )


def partitions_of(db: Database[Document], topic: str) -> int:
    """The number of partitions; raises ``Unreachable`` for an unknown topic."""
    with translated(f"read {topic!r}"):
        found = db["log.topics"].find_one({"_id": topic})
    if found is None:
        raise Unreachable(f"topic {topic!r} does not exist; create it first")
    return int(found["partitions"])
