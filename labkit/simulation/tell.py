"""What the effects of the twins mean, in the words of a story."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from labkit.adapters.memory_topics import OpenTransaction, Slot
from labkit.ports.broker import Batch, Record
from labkit.ports.store import Checkpoint, Writes
from labkit.simulation.world import World

#: A list names so many, and counts the others.
NAMED = 4


def short(topic: str) -> str:
    """``lab.r0000000.orders.events`` -> ``orders.events``."""
    return topic.split(".", 2)[-1]


def appended(world: World, topic: str, partition: int, offset: int, value: bytes) -> None:
    if not world.recording:
        return
    name = short(topic)
    what, about = _message(value)
    relay = world.current is not None and world.current.role == "relay"
    does = "publishes" if relay else "decides:" if name.endswith(".events") else "sends"
    world.note("append", f"{does} {what} (to {name} {partition}:{offset})", about, name)


def written_at_once(
    world: World, topic: str, records: Sequence[Record], offsets: Sequence[int]
) -> None:
    """A transaction of MongoDB, all of which is there from now on."""
    if not world.recording:
        return
    for record, offset in zip(records, offsets, strict=True):
        appended(world, topic, record.partition, offset, record.value)
    _transaction(world, "committed", [record.value for record in records], [topic])


def fetched(world: World, topic: str, batch: Batch) -> None:
    """What a client reads is told by its answers."""
    if not world.recording or not batch.records or not (world.current and world.current.role):
        return
    about = {id for record in batch.records for id in _message(record.value)[1]}
    world.note("fetch", f"reads {listed(_ids(batch))} from {short(topic)}", about, short(topic))


def _ids(batch: Batch) -> list[str]:
    return [str(_json(r.value).get("id") or f"{r.partition}:{r.offset}") for r in batch.records]


def ended(world: World, topics: dict[str, list[list[Slot]]], transaction: OpenTransaction) -> None:
    """A transaction was committed or aborted: what was in it."""
    if not world.recording:
        return
    values = [
        slot.record.value
        for topic, partition in sorted(transaction.wrote)
        for slot in topics[topic][partition]
        if slot.transaction is transaction and slot.record is not None
    ]
    _transaction(world, transaction.state, values, [topic for topic, _ in transaction.wrote])


def _transaction(world: World, state: str, values: list[bytes], topics: list[str]) -> None:
    ids = [str(_json(value).get("id", "")) for value in values]
    about = {id for value in values for id in _message(value)[1]}
    done = "is committed" if state == "committed" else "is undone"
    other = min(map(short, topics), default="")
    of = f"the transaction of {listed(ids)}" if ids else "an empty transaction"
    world.note(state, f"{of} {done}", about, other)


def claimed(world: World, checkpoint: Checkpoint) -> None:
    """The first owner of a partition takes nothing over."""
    if world.recording and checkpoint.epoch > 1:
        text = f"takes {checkpoint.id} over in epoch {checkpoint.epoch}"
        world.note("claim", f"{text}, from offset {checkpoint.position}", (), "store")


def written(world: World, writes: Writes) -> None:
    if not world.recording:
        return
    found = []
    about: set[str] = set()
    for collection, documents in [*writes.inserts.items(), *writes.replaces.items()]:
        for document in documents:
            version = f" (version {document['version']})" if "version" in document else ""
            found.append(f"{document['_id']}{version} in {collection}")
            about.add(str(document["_id"]))
    deleted = [f"no more {id} in {name}" for name, ids in writes.deletes.items() for id in ids]
    if found or deleted:
        world.note("save", f"writes {listed(found + deleted)}", about, "store")


def listed(names: Iterable[str]) -> str:
    """``a, b and 3 more``."""
    every = list(names)
    more = len(every) - NAMED
    if more > 1:
        return f"{', '.join(every[:NAMED])} and {more} more"
    return ", ".join(every) or "nothing"


def _json(value: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _message(value: bytes) -> tuple[str, set[str]]:
    """A command or a commit in words, and the ids that it is about."""
    found = _json(value)
    if "outcome" in found:
        about = {str(found.get("id")), str(found.get("stream"))}
        versions = f" as version {found.get('last')}" if found.get("events") else ""
        why = f": {found['reason']}" if found.get("reason") else ""
        return f"{found.get('id')} {found['outcome']}{versions}{why}", about
    if isinstance(body := found.get("body"), dict):
        ids = {str(found.get("id"))} | {str(v) for k, v in body.items() if k.endswith("_id")}
        return f"{body.get('type')} {found.get('id')}", ids
    return f"{len(value)} bytes", set()
