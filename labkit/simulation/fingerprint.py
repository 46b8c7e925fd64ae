"""What decides the future of a world that stands between two turns, as a few bytes.

Two states with one fingerprint have the same futures, and the checkers say the same of them. Left
out or renamed is only what cannot make a difference: instants, which are compared for being equal
at most; the numbers of members, epochs and generations, of which only counts whose is the newest;
and what dead workers held.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Set
from concurrent.futures import Executor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from labkit.adapters.memory_log import MemoryLog
from labkit.adapters.memory_mongo_log import MemoryLogChanges, MemoryMongoLog
from labkit.adapters.memory_source import MemorySource
from labkit.adapters.memory_store import MemoryStore
from labkit.adapters.memory_topics import MemoryTopics, OpenTransaction, Slot
from labkit.messages import Codec
from labkit.ports.clock import Clock
from labkit.ports.store import Checkpoint
from labkit.read.projection import ServiceProjection
from labkit.service import Service
from labkit.simulation.mongo_log import SimulatedMongoBroker
from labkit.simulation.twins import SimulatedBroker

if TYPE_CHECKING:
    from labkit.simulation.trial import Trial
    from labkit.simulation.turns import TurnWorld

#: Instants that are told, and never compared.
TOLD = ("sent", "intended", "at", "fetched", "applied", "since")
#: Instants that tell two tries to decide apart.
MARKS = ("polled", "decided")
#: Of parts: when something was last done. What is due is due after a second at the latest.
LAST_DONE = {"_flushed": 1e9, "_looked": 1, "moved": 1e9}
DUE_MS = 1_000
#: What has no state, or is looked at by itself.
PASSED_OVER = (Clock, Service, Codec, Executor, ServiceProjection, MemoryTopics, MemoryStore)


def of_state(trial: Trial, world: TurnWorld, kills: int) -> bytes:
    """Of all that decides what can come, and what the checkers will say."""
    names = _Names()
    made = trial.workforce.parts
    parts = sorted(made.items())
    lives = {life.name: life for life in world.lives if life.state != "dead"}
    walk = _Walk(trial, names)
    what = (
        kills,
        _servers(trial, names),
        sorted((name, world.waits(life, name in made)) for name, life in lives.items()),
        sorted((h.name, about) for h in world.happenings if (about := h.about()) is not None),
        [(client.answered, client.sent) for client in trial.clients],
        [(o.id, o.status, o.token, o.answer) for o in trial.history.operations],
        [(h.token, h.answer, names(h.mark)) for h in trial.history.heard],
        [sorted(tail._at.items()) for tail in trial.lab.bus._tails.values()],
        [(name, walk(part)) for name, part in parts if name in lives],
    )
    return hashlib.blake2b(repr(what).encode(), digest_size=16).digest()


def of_servers(trial: Trial) -> object:
    """Of what outlives a worker."""
    return _servers(trial, _Names())


class _Names:
    """New names in the order in which things are met: equal ones stay equal, and that is all."""

    def __init__(self) -> None:
        self._known: dict[object, int] = {}

    def __call__(self, thing: object) -> int:
        return self._known.setdefault(thing, len(self._known))


# --- the servers


def _servers(trial: Trial, names: _Names) -> object:
    store = trial.store
    brokers = [_broker(trial.broker, names)]
    if isinstance(trial.log, SimulatedMongoBroker):
        tokens = [(topic, claim.token) for topic, claim in sorted(trial.log.relays.items())]
        brokers += [_broker(trial.log, names), tokens]
    documents = [
        (name, [_document(d, names) for d in held.values() if id(d) not in trial.first_documents])
        for name, held in store._collections.items()
    ]
    checkpoints = [
        (name, [_checkpoint(c) for c in held.values()]) for name, held in store._checkpoints.items()
    ]
    return brokers, documents, checkpoints


def _broker(broker: SimulatedBroker, names: _Names) -> object:
    topics = [
        (topic, [[_slot(slot, names) for slot in slots] for slots in partitions])
        for topic, partitions in sorted(broker._topics.items())
    ]
    groups = [
        (
            name,
            len(group.members),
            [(p, _rank(group.members, member)) for p, member in sorted(group.owners.items())],
            sorted(group.offsets.items()),
            [_transaction(t, names) for t in group.pending],
        )
        for name, group in sorted(broker._groups.items())
    ]
    opened = [(id, _transaction(t, names)) for id, t in sorted(broker._open.items())]
    return topics, groups, opened


def _slot(slot: Slot, names: _Names) -> object:
    transaction = slot.transaction
    state: object = transaction.state if transaction else ""
    if state == "open":
        state = names(id(transaction))
    if slot.record is None:
        return state
    told, mark = _message(slot.record.value)
    return slot.record.key, told, mark and names(mark), state


def _transaction(transaction: OpenTransaction, names: _Names) -> object:
    return names(id(transaction)), sorted(transaction.offsets.items())


def _rank(members: list[int], member: int) -> int:
    """The numbers of members only grow, and only their order counts."""
    return sorted(members).index(member) if member in members else -1


@lru_cache(50_000)
def _message(value: bytes) -> tuple[str, tuple[Any, ...] | None]:
    """A record without its instants, and its mark if it is a commit."""
    found = msgspec.json.decode(value)
    mark = tuple(found.pop(name, 0) for name in MARKS)
    for name in TOLD:
        found.pop(name, None)
    return repr(found), mark if "outcome" in found else None


def _document(document: Mapping[str, Any], names: _Names) -> object:
    """The instants of a document are in its trace, or beside the state of a stream."""
    if "trace" in document:
        trace = document["trace"]
        told = [value for name, value in trace.items() if name not in (*TOLD, *MARKS)]
        mark = names(tuple(trace[name] for name in MARKS))
        return [*((k, v) for k, v in document.items() if k != "trace"), told, mark]
    if "seen" in document or "waiting" in document:
        return [item for item in document.items() if item[0] not in TOLD]
    return list(document.items())


def _checkpoint(checkpoint: Checkpoint) -> object:
    c = checkpoint
    return c.id, c.position, c.command, c.ignored, c.parked


# --- the parts


class _Walk:
    """Makes plain values of whatever a part holds."""

    def __init__(self, trial: Trial, names: _Names) -> None:
        self._trial = trial
        self._names = names

    def __call__(self, value: Any) -> Any:
        match value:
            case None | bool() | int() | float() | str() | bytes():
                return value
            case Mapping():
                return [(key, self(held)) for key, held in value.items()]
            case Set():
                return sorted(map(self, value))
            case list() | tuple() | deque():
                return [self(item) for item in value]
            case MemorySource():
                return self._source(value)
            case MemoryLogChanges():
                claim = value._broker.relays[value._topic]
                return value._token, list(value._at.items()), value._epoch == claim.epoch
            case Checkpoint():
                known = self._trial.store._checkpoints.values()
                newest = (held[value.id].epoch for held in known if value.id in held)
                return _checkpoint(value), value.epoch in newest
        if isinstance(value, PASSED_OVER) or callable(value):
            return None
        fields = value.__struct_fields__ if isinstance(value, Struct) else value.__dict__
        return [
            (name, self._last_done(name, value) if name in LAST_DONE else self(found))
            for name in fields
            if name not in ("at", "began") and not callable(found := getattr(value, name))
        ]

    def _last_done(self, name: str, part: Any) -> int:
        since: float = self._trial.world.time - getattr(part, name) * LAST_DONE[name]
        return min(DUE_MS, round(since / 1e6))

    def _source(self, source: MemorySource) -> Any:
        found: list[Any] = [
            source._topic,
            source._group,
            source._closed,
            list(source._positions.items()),
        ]
        if source._group and not source._closed:
            group = source._broker.group(source._topic, source._group)
            # What it would keep; the generation itself it learns with the next poll.
            kept = [(p, group.since[p] <= source._generation) for p in sorted(source._owned)]
            found += [_rank(group.members, source._member), kept]
        if isinstance(source, MemoryLog | MemoryMongoLog):
            found.append(source._broker._epochs.get(source._id) == source._epoch)
        return found
