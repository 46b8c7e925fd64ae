"""The relay: publishes what the MongoDB log has committed to the Kafka topic of the same name.

::

    log (MongoDB) ──change stream──> Relay ──> Kafka ──acknowledged──> resume token saved

An outbox runner: whatever crashes between whichever two of them, a record is published at least
once; and since it alone writes that topic, without transactions, a record's offset in Kafka is its
offset in the log. So at its start it asks Kafka how far it has come, and publishes nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Protocol, runtime_checkable

from labkit.errors import Fenced
from labkit.log.crash_only import CrashOnly
from labkit.log.partition import fetch_records
from labkit.ports.broker import Broker, Record, Source
from labkit.ports.failpoints import Failpoint, hit

SEND_SECONDS = 30.0
#: Records in one step, unless they are large (``MAX_BATCH_BYTES``).
BATCH = 2_000


class LogChanges(Protocol):
    """What becomes part of a topic of the MongoDB log, in order; under an epoch of ownership."""

    def start(self, ends: Mapping[int, int]) -> None:
        """Begin after the saved token; where there is none that holds, at these offsets."""

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """The next records of each partition, as ``Source.poll`` limits them; some from before
        ``ends`` may come, too."""

    def check(self) -> None:
        """Raises ``Fenced`` for an owner of before."""

    def save(self) -> None:
        """Remember that all that was polled is done; raises ``Fenced`` for an owner of before."""

    def close(self) -> None:
        """Let go of connections."""


@runtime_checkable
class Log(Protocol):
    """What the relay asks of the MongoDB log."""

    def changes(self, topic: str) -> LogChanges:
        """Claim a topic."""

    def source(self, topic: str, group: str | None = None, *, uncommitted: bool = False) -> Source:
        """A reader of the topic."""


class Relay(CrashOnly):
    """Publishes one topic. One relay at a time: the newest owner fences those before it.

    Raises ``Fenced`` where Kafka holds something else than the log: there was another writer.
    """

    def __init__(self, log: Log, target: Broker, topic: str) -> None:
        self._topic = topic
        # Claimed first: whoever published before stops now, and only then Kafka is asked.
        self._changes = log.changes(topic)
        self._sender = target.sender()
        try:
            with closing(target.source(topic)) as there, closing(log.source(topic)) as written:
                self._ends = there.ends()
                self._compare(there, written)
            self._changes.start(self._ends)
        except BaseException:
            self.close()
            raise

    def _compare(self, there: Source, written: Source) -> None:
        """A record too many would shift all that follow, and the next would seem to be there."""
        written_ends = written.ends()
        for partition, end in self._ends.items():
            if end > written_ends[partition]:
                text = f"it has {end} records, the log {written_ends[partition]}"
                raise self._other_writer(partition, text)
            last = [end - 1] if end else []
            if fetch_records(there, partition, last) != fetch_records(written, partition, last):
                raise self._other_writer(partition, f"record {end - 1} is another")

    def step(self, timeout: float = 0.5) -> int:
        """One batch; returns the number of records that it published.

        Raises ``Fenced`` if an earlier step failed, or somebody else writes the topic.
        """
        with self.unbroken():
            records = self._changes.poll(BATCH, timeout)
            if not records:
                return 0
            new = [r for r in records if r.offset >= self._ends[r.partition]]
            self._changes.check()
            self._publish(new)
            hit(Failpoint.RELAY_SENT)
            self._changes.save()
            return len(new)

    def _publish(self, records: Iterable[Record]) -> None:
        """An idempotent producer keeps the order of a partition, however much is in flight."""
        sent = []
        for record in records:
            partition, end = record.partition, self._ends[record.partition]
            if record.offset != end:
                raise self._other_writer(partition, f"it ends at {end}, not at {record.offset}")
            self._ends[partition] += 1
            to = self._sender.send(self._topic, record.key, record.value, partition)
            sent.append((record, to))
        self._sender.flush(SEND_SECONDS)
        for record, to in sent:
            _, offset = to.result(SEND_SECONDS)
            if offset != record.offset:
                text = f"record {record.offset} of the log lies at {offset}"
                raise self._other_writer(record.partition, text)

    def _other_writer(self, partition: int, text: str) -> Fenced:
        return Fenced(
            f"{self._topic!r}:{partition} in Kafka differs from the log: {text}; there was another "
            "writer. Delete this topic in Kafka and create it anew: the relay fills it from the "
            "log; readers that went past this place begin anew as well (docs/adr/005)"
        )

    def join(self, partitions: int) -> None:
        """For those who step by hand: a relay owns its whole topic from the start."""

    def close(self) -> None:
        """Let go of both ends."""
        self._changes.close()
        self._sender.close()
