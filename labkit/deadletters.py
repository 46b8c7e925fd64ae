"""Dead letters: the streams that are parked, what waits in them, and how they go on.

Nothing is copied to a queue of its own: the commands topic keeps what waits, and the stream's
bookkeeping knows where. A release is a command like any other, handled by the stream's owner.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct

from labkit import eventlog
from labkit.bus import CommandBus
from labkit.errors import Refused, UsageError
from labkit.eventlog import EPOCH
from labkit.handlers import Context
from labkit.messages import Answer, Envelope, ReleaseParked, Token, encode, new_id
from labkit.ports import Document, Record, Sender, Source, Store

#: Of a command that cannot be read, so much is shown.
SHOWN_BYTES = 500


class DeadLetter(Struct, frozen=True):
    """A parked stream: ``waiting`` commands, of which the one at offset ``head`` is stuck."""

    context: str
    stream: str
    partition: int
    head: int
    waiting: int
    since: datetime
    reason: str


class Waiting(Struct, frozen=True):
    """A command that waits in a parked stream; ``id`` is empty where it cannot be read."""

    offset: int
    id: str
    command: str
    body: Any


class DeadLetters:
    """Those of one context. ``commands`` reads its commands topic, ``topic`` is that topic's name.

    Handlers save their states some tenths of a second after a commit: so much may be missing here.
    """

    def __init__(
        self,
        context: Context,
        store: Store,
        commands: Source,
        topic: str,
        bus: CommandBus,
        sender: Sender,
    ) -> None:
        self._context = context
        self._store = store
        self._commands = commands
        self._topic = topic
        self._bus = bus
        self._sender = sender

    def parked(self) -> list[DeadLetter]:
        """The parked streams, those that have waited longest first."""
        documents = self._store.find(self._context.states, {"dead": True})
        found = [_letter(self._context.name, document) for document in documents]
        return sorted(found, key=lambda letter: (letter.since, letter.stream))

    def find(self, stream: str) -> DeadLetter:
        """A parked stream; raises ``UsageError`` where it is not one."""
        document = self._store.load(self._context.states, [stream]).get(stream)
        if document is None or not document.get("dead"):
            state = "has no commits" if document is None else "is not parked"
            raise UsageError(
                f"stream {stream!r} of {self._context.name} {state}; "
                "`labkit dead-letters list` shows those that are"
            )
        return _letter(self._context.name, document)

    def waiting(self, stream: str, limit: int = 1_000) -> list[Waiting]:
        """What waits in a parked stream, in order: the first ``limit`` commands."""
        letter = self.find(stream)
        held = self._store.load(self._context.states, [stream])[stream]["held"][:limit]
        found = eventlog.fetch(self._commands, letter.partition, held)
        return [_waiting(found[offset]) for offset in held if offset in found]

    def release(self, stream: str, *, drop: bool = False, timeout: float = 30.0) -> Answer:
        """Replay what waits in a stream; with ``drop``, without the first.

        The commands are handled one after the other; the next that gets stuck parks the stream
        again. Raises ``Refused`` where the stream has changed since it was looked at, ``TimedOut``
        without a handler.
        """
        letter = self.find(stream)
        head = eventlog.fetch(self._commands, letter.partition, [letter.head])[letter.head]
        release = Envelope(new_id(), ReleaseParked(stream, drop=drop, head=letter.head))
        self._bus.listen(self._context.name)
        # Under the key of the stuck record and in its partition, which need not be those that the
        # stream's name would lead to.
        sent = self._sender.send(self._topic, head.key, encode(release), letter.partition)
        answer = self._bus.answer(Token(self._context.name, *sent.result(timeout)), timeout)
        if not answer.accepted:
            raise Refused(f"{stream!r} was not released: {answer.reason}")
        return answer

    def close(self) -> None:
        """Close the reader and the sender."""
        self._commands.close()
        self._sender.close()


def _letter(context: str, document: Document) -> DeadLetter:
    return DeadLetter(
        context,
        document["_id"],
        document["partition"],
        document["held"][0],
        len(document["held"]),
        EPOCH + timedelta(milliseconds=document["at"]),
        document["parked"],
    )


def _waiting(record: Record) -> Waiting:
    """As far as it can be read: by any reader of JSON, whatever the schema says."""
    try:
        envelope = json.loads(record.value)
        body = dict(envelope["body"])
        return Waiting(record.offset, str(envelope.get("id", "")), str(body.pop("type", "")), body)
    except (ValueError, KeyError, TypeError, RecursionError):
        text = record.value[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
        return Waiting(record.offset, "", "", text)
