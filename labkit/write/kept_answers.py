"""What a command was answered, from the bookkeeping of its stream: for whoever did not hear it."""

from __future__ import annotations

from labkit.messages import Answer, command_id
from labkit.ports.broker import Record
from labkit.ports.store import Reads
from labkit.service import Service
from labkit.write.names import nameless, stream_id, undecodable_id
from labkit.write.older_ids import seen_id, seen_known
from labkit.write.stream_state import StreamState


def kept_answer(store: Reads, service: Service, record: Record) -> Answer | None:
    """The answer to the command in ``record``; ``None``: no handler has saved one yet.

    A handler saves its bookkeeping some tenths of a second after it has answered.
    """
    ids = [id for id in (command_id(record.value), undecodable_id(record)) if id]
    for key, document in store.load(
        service.states, [stream_id(record.key), nameless(record)]
    ).items():
        stream = StreamState.load(document, service.state)
        if stream.partition == record.partition and record.offset in stream.held:
            return Answer("parked", stream.version, stream.parked or "waits")
        if stream.partition == record.partition and record.offset in stream.scheduled:
            return Answer("scheduled", stream.version)
        older = store.load(service.seen, [seen_id(key, id) for id in ids]) if stream.older else {}
        for id in ids:
            if (known := stream.seen.get(id)) is not None:
                return known[0]
            if (found := older.get(seen_id(key, id))) is not None:
                return seen_known(found)[0]
    return None
