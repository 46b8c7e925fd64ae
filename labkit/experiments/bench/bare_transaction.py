"""The lower bound of a latency: one record in, one event out, one transaction; and its client.

A bare consume-transform-produce loop, one record at a time: poll, begin, produce, send the offsets
to the transaction, commit. It is exactly-once within Kafka, like labkit's handler, but has no
streams, versions, deduplication or state. It is the only instance, so it assigns itself all
partitions without a group, and its transactional id fences it. The requester sends a record and
waits for its event. The records are those of one fixed job (``job.py``). Both use the settings of
labkit's adapters where they matter, except that the producer of the loop does not linger.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from labkit.adapters.kafka import (
    COMPRESSION,
    DELIVERY_MS,
    MAX_RECORD_BYTES,
    TRANSACTION_MS,
)
from labkit.errors import TimedOut
from labkit.experiments.bench.job import Job, decided, ready

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30.0


class Requester(Protocol):
    """Sends the commands of a job and waits for their events."""

    def ask(self, key: bytes, value: bytes) -> None:
        """Send, and wait for the event of this key. Raises ``TimedOut``."""

    def close(self) -> None: ...


def heard(poll: Callable[[float], list[bytes]], key: bytes) -> None:
    """Poll until this key arrives. Raises ``TimedOut``."""
    for _ in range(int(PATIENCE_SECONDS / POLL_SECONDS)):
        if key in poll(POLL_SECONDS):
            return
    raise TimedOut(
        f"the bare loop made no event of {key!r} within {PATIENCE_SECONDS:g} s; see `labkit status`"
    )


# --- kafka-python


def _kafka_consumer(job: Job, topic: str, group: str | None) -> KafkaConsumer:
    consumer = KafkaConsumer(
        bootstrap_servers=job.bootstrap,
        group_id=group,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        retry_backoff_ms=20,
        metrics_enabled=False,
    )
    consumer.assign([TopicPartition(topic, partition) for partition in range(job.partitions)])
    return consumer


def kafka_python_loop(pipe: Connection, job: Job) -> None:
    producer = KafkaProducer(
        bootstrap_servers=job.bootstrap,
        transactional_id=job.group,
        transaction_timeout_ms=TRANSACTION_MS,
        delivery_timeout_ms=DELIVERY_MS,
        request_timeout_ms=DELIVERY_MS - 1_000,
        retry_backoff_ms=2,
        linger_ms=0,
        compression_type=COMPRESSION,
        metrics_enabled=False,
    )
    producer.init_transactions()
    consumer = _kafka_consumer(job, job.commands, job.group)
    ready(pipe)
    while True:
        for tp, records in consumer.poll(int(POLL_SECONDS * 1000), max_records=1).items():
            for record in records:
                producer.begin_transaction()
                sent = producer.send(
                    job.events, decided(record.value), record.key, partition=tp.partition
                )
                after = {tp: OffsetAndMetadata(record.offset + 1, "", -1)}
                producer.send_offsets_to_transaction(after, consumer.group_metadata())
                producer.commit_transaction()
                sent.get(timeout=0)


class KafkaPythonRequester:
    """On kafka-python."""

    def __init__(self, job: Job) -> None:
        self._topic = job.commands
        self._producer = KafkaProducer(
            bootstrap_servers=job.bootstrap,
            acks="all",
            linger_ms=1,
            compression_type=COMPRESSION,
            batch_size=128 << 10,
            max_request_size=MAX_RECORD_BYTES,
            metrics_enabled=False,
        )
        self._consumer = _kafka_consumer(job, job.events, None)

    def ask(self, key: bytes, value: bytes) -> None:
        """Send, and wait for the event of this key. Raises ``TimedOut``."""
        self._producer.send(self._topic, value, key)
        heard(self._poll, key)

    def _poll(self, seconds: float) -> list[bytes]:
        found = self._consumer.poll(timeout_ms=int(seconds * 1000))
        return [record.key for records in found.values() for record in records]

    def close(self) -> None:
        self._producer.close()
        self._consumer.close()


# --- confluent-kafka, which is optional


def _confluent_consumer(job: Job, topic: str, group: str) -> Any:
    from confluent_kafka import OFFSET_BEGINNING, Consumer
    from confluent_kafka import TopicPartition as Place

    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": group,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 100,
        }
    )
    consumer.assign([Place(topic, p, OFFSET_BEGINNING) for p in range(job.partitions)])
    return consumer


def confluent_loop(pipe: Connection, job: Job) -> None:
    from confluent_kafka import KafkaException, Producer
    from confluent_kafka import TopicPartition as Place

    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap,
            "transactional.id": job.group,
            "transaction.timeout.ms": TRANSACTION_MS,
            "message.timeout.ms": DELIVERY_MS,
            "linger.ms": 0,
            "compression.type": COMPRESSION,
        }
    )
    producer.init_transactions(DELIVERY_MS / 1000)
    consumer = _confluent_consumer(job, job.commands, job.group)
    ready(pipe)
    while True:
        if (message := consumer.poll(POLL_SECONDS)) is None:
            continue
        if message.error() is not None:
            raise KafkaException(message.error())
        producer.begin_transaction()
        event = decided(message.value())
        producer.produce(job.events, event, message.key(), message.partition())
        after = [Place(job.commands, message.partition(), message.offset() + 1)]
        producer.send_offsets_to_transaction(after, consumer.consumer_group_metadata())
        producer.commit_transaction()


class ConfluentRequester:
    """On confluent-kafka."""

    def __init__(self, job: Job) -> None:
        from confluent_kafka import Producer

        self._topic = job.commands
        self._producer = Producer(
            {
                "bootstrap.servers": job.bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 1,
                "compression.type": COMPRESSION,
            }
        )
        self._consumer = _confluent_consumer(job, job.events, f"{job.group}.requester")

    def ask(self, key: bytes, value: bytes) -> None:
        """Send, and wait for the event of this key. Raises ``TimedOut``."""
        self._producer.produce(self._topic, value, key)
        heard(self._poll, key)
        self._producer.poll(0)

    def _poll(self, seconds: float) -> list[bytes]:
        message = self._consumer.poll(seconds)
        return [message.key()] if message is not None and message.error() is None else []

    def close(self) -> None:
        self._producer.flush(PATIENCE_SECONDS)
        self._consumer.close()


#: By client: the name of the loop for ``job.play``, and its requester.
SIDES: dict[str, tuple[str, Callable[[Job], Requester]]] = {
    "kafka-python": (f"{__name__}:kafka_python_loop", KafkaPythonRequester),
    "confluent": (f"{__name__}:confluent_loop", ConfluentRequester),
}
