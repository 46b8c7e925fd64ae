"""Messages of an older and of a newer schema: what handlers meet while a fleet is updated.

An *older command* lacks the fields that have a default, and is the same command. A *newer command*
has a field that this code does not know: like all bytes that are no command, it parks its stream.
A *newer event* was decided by newer code, and then handlers of this code take over: they decide
nothing upon it, views hold its stream back, and all others go on.
"""

from __future__ import annotations

from contextlib import closing
from functools import cache
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct, structs

from labkit.errors import DecodeError
from labkit.lab import Lab
from labkit.log.partition import join_group
from labkit.messages import Codec, Command, Commit, Envelope, encode
from labkit.ports.broker import Record

#: What is met, and where: they are counted like faults.
OLDER_COMMAND = ("older schema", "a command")
NEWER_COMMAND = ("newer schema", "a command")
NEWER_EVENT = ("newer schema", "an event")
MET = (OLDER_COMMAND, NEWER_COMMAND, NEWER_EVENT)


def older(command: Command, id: str, expected_version: int | None) -> bytes:
    """A command as a client writes it that knows no field with a default."""
    body = _body(command)
    for name, encoded, default in _defaults(type(command)):
        if getattr(command, name) == default:
            del body[encoded]
    return encode(Envelope(id, body, expected_version))


def newer(command: Command, id: str) -> bytes:
    """A command as a client writes it that knows one field more."""
    return encode(Envelope(id, {**_body(command), "of_newer_code": True}))


def elsewhere(command: Command, stream: str, codec: Codec) -> Command | None:
    """The same command to another stream; ``None``: its first field does not say which."""
    moved = structs.replace(command, **{command.__struct_fields__[0]: stream})
    try:
        read: Command = codec.decode_command(encode(Envelope("moved", moved))).body
        return read if read.stream == stream else None
    except (DecodeError, TypeError):
        return None


def _body(command: Command) -> dict[str, Any]:
    return msgspec.json.decode(encode(command), type=dict[str, Any])


@cache
def _defaults(kind: type[Command]) -> list[tuple[str, str, object]]:
    """The fields of a command that may be missing: their names here and on the wire, and what they
    are then."""
    return [
        (f.name, f.encode_name, f.default if f.default is not NODEFAULT else f.default_factory())
        for f in structs.fields(kind)
        if not f.required
    ]


class NewerEvent(Struct, frozen=True):
    """An event of a newer schema: the first of a stream of its own."""

    service: str
    stream: str

    @property
    def told(self) -> str:
        """It, in words."""
        return f"a handler of newer code has decided version 1 of {self.stream!r}, and is gone"

    def put(self, lab: Lab) -> None:
        """Let a handler of newer code decide a command, and leave; no other handler is there."""
        commands, events = (lab.topic_name(f"{self.service}.{k}") for k in ("commands", "events"))
        with closing(lab.log_broker.sender()) as sender:
            command = encode(Envelope("newer", {"type": "CommandOfNewerCode"}))
            sender.send(commands, self.stream.encode(), command).result(30)
        group = lab.of.group("handler", self.service)
        log = lab.log_broker.log(commands, events, group, f"{group}-newer", lab.settings.delivery)
        with closing(log):
            for partition in join_group(log, lab.partitions):
                log.start(partition)
            while not (batch := log.poll(1, 0.5)).records:
                pass
            log.commit(batch, [self._decided(record) for record in batch.records])

    def _decided(self, record: Record) -> Record:
        commit = Commit(
            stream=self.stream,
            id="newer",
            partition=record.partition,
            offset=record.offset,
            outcome="accepted",
            first=1,
            last=1,
            events=({"type": "EventOfNewerCode"},),
        )
        return Record(record.partition, 0, record.key, encode(commit))
