"""Dead letters: the streams that are parked, what waits in them, and how they go on.

Nothing is copied to a queue of its own: the commands topic keeps what waits, and the stream's
bookkeeping knows where. A release is a command like any other, handled by the stream's owner.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from msgspec import Struct

from labkit.errors import CheckFailed, Refused, UsageError
from labkit.log.dead_letter import DeadLetter
from labkit.log.event_log import EPOCH
from labkit.log.partition import fetch_records
from labkit.messages import Answer, Envelope, ReleaseParked, Token, encode
from labkit.ports.broker import Record, Sender, Source
from labkit.ports.ids import new_id
from labkit.ports.store import Document, Store
from labkit.service import Service
from labkit.write.bus import CommandBus

#: Of a command that cannot be read, so much is shown.
SHOWN_BYTES = 500


class Waiting(Struct, frozen=True):
    """A command that waits in a parked stream.

    ``body`` is an object. Where it cannot be read, ``id`` and ``command`` are empty, and ``body``
    is the text that is there, with backslashes for bytes that are none.
    """

    offset: int
    id: str
    command: str
    body: Any


class DeadLetters:
    """Those of one service. ``commands`` reads its commands topic, ``topic`` is that topic's name.

    Handlers save their states some tenths of a second after a commit: so much may be missing here.
    """

    def __init__(
        self,
        service: Service,
        store: Store,
        commands: Source,
        topic: str,
        bus: CommandBus,
        sender: Sender,
    ) -> None:
        self.service = service
        self._store = store
        self._commands = commands
        self._topic = topic
        self._bus = bus
        self._sender = sender

    def parked(self) -> list[DeadLetter]:
        """The parked streams, those that have waited longest first."""
        documents = self._store.find(self.service.states, {"dead": True})
        found = [_letter(self.service.name, document) for document in documents]
        return sorted(found, key=lambda letter: (letter.since, letter.stream))

    def find(self, stream: str) -> DeadLetter:
        """A parked stream; raises ``UsageError`` where it is not one."""
        return _letter(self.service.name, self._document(stream))

    def _document(self, stream: str) -> Document:
        document = self._store.load(self.service.states, [stream]).get(stream)
        if document is None or not document.get("dead"):
            state = "has no commits" if document is None else "is not parked"
            raise UsageError(
                f"stream {stream!r} of {self.service.name} {state}; "
                "`labkit dead-letters list` shows those that are"
            )
        return document

    def waiting(self, stream: str, limit: int = 1_000) -> list[Waiting]:
        """What waits in a parked stream, in order: the first ``limit`` commands."""
        document = self._document(stream)
        held = document["held"][:limit]
        found = fetch_records(self._commands, document["partition"], held)
        return [
            _waiting(record) if record is not None else Waiting(offset, "", "", "(gone)")
            for offset, record in found.items()
        ]

    def release(
        self, stream: str, *, drop: bool = False, head: int | None = None, timeout: float = 30.0
    ) -> Answer:
        """Replay what waits in a stream; with ``drop``, without the first.

        The commands are handled one after the other; the next that gets stuck parks the stream
        again. ``head`` is the offset of the first as it was looked at; the default is what is saved
        now. Raises ``Refused`` where another one is first by then, and ``TimedOut`` where no
        handler has answered: the release is in the topic, and the next handler does it.
        """
        letter = self.find(stream)
        key = self._key(letter)
        first = letter.head if head is None else head
        release = Envelope(new_id(), ReleaseParked(stream, drop=drop, head=first))
        self._bus.listen(self.service.name)
        sent = self._sender.send(self._topic, key, encode(release), letter.partition)
        answer = self._bus.answer(Token(self.service.name, *sent.result(timeout)), timeout)
        if not answer.accepted:
            raise Refused(f"{stream!r} was not released: {answer.reason}")
        return answer

    def let_go(
        self, stream: str, *, drop: bool = False, head: int | None = None, timeout: float = 30.0
    ) -> str:
        """Release a stream, and see how far it gets: where and why it is stuck again; empty: it is
        not. Of more than a thousand commands the first are waited for.

        Raises what :meth:`release` raises.
        """
        document = self._document(stream)
        held = document["held"][drop : 1_000 + drop]
        tokens = [Token(self.service.name, document["partition"], offset) for offset in held]
        for token in tokens:
            self._bus.forget(token)
        self.release(stream, drop=drop, head=head, timeout=timeout)
        for token in tokens:
            answer = self._bus.answer(token, timeout)
            if answer.outcome == "parked":
                return f"stuck again at offset {token.offset}: {answer.reason}"
        return ""

    def _key(self, letter: DeadLetter) -> bytes:
        """The key of the stuck record: the stream's name need not be one."""
        found = fetch_records(self._commands, letter.partition, [letter.head])
        if (record := found[letter.head]) is not None:
            return record.key
        if letter.stream.startswith("\0"):
            raise CheckFailed(
                f"the command at offset {letter.head} of partition {letter.partition} is gone from "
                f"{self._topic}, and with it the key under which its stream could be released"
            )
        return letter.stream.encode()

    def close(self) -> None:
        """Close the reader and the sender."""
        self._commands.close()
        self._sender.close()


def _letter(service: str, document: Document) -> DeadLetter:
    return DeadLetter(
        service,
        document["_id"],
        document["partition"],
        document["held"][0],
        len(document["held"]),
        EPOCH + timedelta(milliseconds=document["held_at"][0]),
        document["parked"],
    )


def _waiting(record: Record) -> Waiting:
    """As far as it can be read: by any reader of JSON, whatever the schema says."""
    try:
        envelope = json.loads(record.value)
        body = envelope["body"]
        if isinstance(body, dict):
            json.dumps(envelope, ensure_ascii=False).encode()  # half characters cannot be shown
            name = str(body.pop("type", ""))
            return Waiting(record.offset, str(envelope.get("id", "")), name, body)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    text = printable(record.value[:SHOWN_BYTES].decode("utf-8", "backslashreplace"))
    size = len(record.value)
    more = f"... ({size:,} bytes)" if size > SHOWN_BYTES else ""
    return Waiting(record.offset, "", "", text + more)


def printable(text: str) -> str:
    """With backslashes for what is no visible character: poison may hold a terminal's codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
