"""The relay: publishes what the MongoDB log has committed to the Kafka topic of the same name.

::

    log (MongoDB) ──change stream──> Relay ──> Kafka ──acknowledged──> resume token saved

An outbox runner: whatever crashes between whichever two of them, a record is published at least
once; and since it alone writes that topic, without transactions, a record's offset in Kafka is its
offset in the log. So at its start it asks Kafka how far it has come, and publishes nothing twice.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from labkit.crashonly import CrashOnly
from labkit.errors import Fenced
from labkit.failpoints import Failpoint, hit
from labkit.ports import Broker, Record

SEND_SECONDS = 30.0
BATCH = 2_000


class Changes(Protocol):
    """What becomes part of a topic of the MongoDB log, in order; under an epoch of ownership."""

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """The next records; those that were there before ``ends`` may come, too."""

    def save(self) -> None:
        """Remember that all that was polled is done; raises ``Fenced`` for an owner of before."""

    def close(self) -> None:
        """Let go of connections."""


@runtime_checkable
class Log(Protocol):
    """What the relay asks of the MongoDB log."""

    def changes(self, topic: str, ends: dict[int, int]) -> Changes:
        """Claim a topic; go on after the saved token, or from these offsets where there is none."""


class Relay(CrashOnly):
    """Publishes one topic. One relay at a time: the newest owner fences those before it."""

    def __init__(self, log: Log, target: Broker, topic: str) -> None:
        self._topic = topic
        self._target = target.source(topic)
        self._sender = target.sender()
        self._ends = self._target.ends()
        self._changes = log.changes(topic, self._ends)

    def step(self, timeout: float = 0.5) -> int:
        """One batch; returns the number of records that it published.

        Raises ``Fenced`` if an earlier step failed, or somebody else writes the topic.
        """
        with self.unbroken():
            records = self._changes.poll(BATCH, timeout)
            if not records:
                return 0
            new = [r for r in records if r.offset >= self._ends[r.partition]]
            self._publish(new)
            hit(Failpoint.RELAY_SENT)
            self._changes.save()
            return len(new)

    def _publish(self, records: list[Record]) -> None:
        sent: list[tuple[Record, Any]] = []
        for record in records:
            if record.offset != self._ends[record.partition]:
                raise Fenced(
                    f"{self._topic!r}:{record.partition} ends at {self._ends[record.partition]}, "
                    f"the log goes on at {record.offset}: there was another writer"
                )
            self._ends[record.partition] += 1
            sent.append(
                (
                    record,
                    self._sender.send(self._topic, record.key, record.value, record.partition),
                )
            )
        self._sender.flush(SEND_SECONDS)
        for record, acknowledgement in sent:
            _, offset = acknowledgement.result(SEND_SECONDS)
            if offset != record.offset:
                raise Fenced(
                    f"{self._topic!r}:{record.partition}: record {record.offset} of the log lies "
                    f"at {offset} in Kafka: there was another writer"
                )

    def close(self) -> None:
        """Let go of both ends."""
        self._changes.close()
        self._sender.close()
        self._target.close()
