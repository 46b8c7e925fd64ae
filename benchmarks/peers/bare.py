"""The bare clients: an upper bound of the rate. They promise at-least-once and nothing else.

The settings are those of labkit's adapters where they matter. Each batch is polled, written and
acknowledged; only then are its offsets committed.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from kafka import KafkaConsumer, KafkaProducer
from pymongo import ReplaceOne
from pymongo.collection import Collection

from benchmarks.peers.job import Job, shown
from labkit.adapters.kafka import (
    COMPRESSION,
    DELIVERY_MS,
    MAX_RECORD_BYTES,
    POLL_INTERVAL_MS,
    SESSION_MS,
)
from labkit.adapters.mongo import connect
from labkit.experiments.bench.job import decided, ready
from labkit.ports.store import Document

#: The longest wait of a poll for its batch to fill, or for its first record.
POLL_SECONDS = 0.1


def _collection(job: Job) -> Collection[Document]:
    return connect(job.mongo_uri, job.database)[1][job.orders]


def upsert(orders: Collection[Document], documents: list[Document]) -> None:
    """Write a batch; to write it again changes nothing."""
    orders.bulk_write(
        [ReplaceOne({"_id": d["_id"]}, d, upsert=True) for d in documents], ordered=False
    )


def insert(orders: Collection[Document], documents: list[Document]) -> None:
    """Write a batch at a lower price; to write it again fails."""
    orders.insert_many(documents, ordered=False)


# --- kafka-python


def _kafka_consumer(job: Job, topic: str) -> KafkaConsumer:
    consumer = KafkaConsumer(
        bootstrap_servers=job.bootstrap,
        group_id=f"{job.group}.{topic}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=SESSION_MS // 3,
        max_poll_interval_ms=POLL_INTERVAL_MS,
        max_poll_records=job.batch,
        retry_backoff_ms=20,
        fetch_max_bytes=4 << 20,
        max_partition_fetch_bytes=4 << 20,
        metrics_enabled=False,
    )
    # A consumer that joins before it knows the topic gets no partition, possibly for minutes.
    consumer.partitions_for_topic(topic)
    consumer.subscribe([topic])
    return consumer


def kafka_python_commands(pipe: Connection, job: Job) -> None:
    """Consume, decide, produce, commit the offsets."""
    consumer = _kafka_consumer(job, job.commands)
    producer = KafkaProducer(
        bootstrap_servers=job.bootstrap,
        delivery_timeout_ms=DELIVERY_MS,
        request_timeout_ms=DELIVERY_MS - 1_000,
        retry_backoff_ms=2,
        linger_ms=1_000,
        compression_type=COMPRESSION,
        batch_size=2 << 20,
        max_request_size=MAX_RECORD_BYTES,
        metrics_enabled=False,
    )
    ready(pipe)
    while True:
        found = consumer.poll(timeout_ms=int(POLL_SECONDS * 1000))
        sent = [
            producer.send(job.events, key=r.key, value=decided(r.value), partition=tp.partition)
            for tp, records in found.items()
            for r in records
        ]
        if sent:
            producer.flush()
            for future in sent:
                if future.failed():
                    raise future.exception
            consumer.commit()


def kafka_python_view(pipe: Connection, job: Job) -> None:
    """Consume, upsert, commit the offsets."""
    orders = _collection(job)
    consumer = _kafka_consumer(job, job.events)
    while not consumer.assignment():
        consumer.poll(timeout_ms=100)
    ready(pipe)
    while True:
        found = consumer.poll(timeout_ms=int(POLL_SECONDS * 1000))
        documents = [shown(r.value) for records in found.values() for r in records]
        if documents:
            upsert(orders, documents)
            consumer.commit()


# --- confluent-kafka


def _confluent_consumer(job: Job, topic: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": f"{job.group}.{topic}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": SESSION_MS // 3,
            "max.poll.interval.ms": POLL_INTERVAL_MS,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 100,
        }
    )


def _batch(consumer: Consumer, job: Job) -> list[Message]:
    messages: list[Message] = consumer.consume(job.batch, POLL_SECONDS)
    for message in messages:
        if (error := message.error()) is not None:
            raise KafkaException(error)
    return messages


def confluent_commands(pipe: Connection, job: Job) -> None:
    """Consume, decide, produce, commit the offsets."""
    consumer = _confluent_consumer(job, job.commands)
    consumer.subscribe([job.commands])
    failed: list[KafkaError] = []
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap,
            "enable.idempotence": True,
            "message.timeout.ms": DELIVERY_MS,
            "linger.ms": 1,
            "compression.type": COMPRESSION,
            "batch.num.messages": 10_000,
            "message.max.bytes": MAX_RECORD_BYTES,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _: failed.append(error),
        }
    )
    ready(pipe)
    while True:
        messages = _batch(consumer, job)
        for message in messages:
            producer.produce(
                job.events, decided(message.value()), message.key(), message.partition()
            )
        if messages:
            if producer.flush(DELIVERY_MS / 1000) or failed:
                raise KafkaException(*failed)
            consumer.commit(asynchronous=False)


def _confluent_view(
    pipe: Connection, job: Job, write: Callable[[Collection[Document], list[Document]], None]
) -> None:
    orders = _collection(job)
    consumer = _confluent_consumer(job, job.events)
    owned: list[Any] = []
    consumer.subscribe([job.events], on_assign=lambda _, partitions: owned.extend(partitions))
    while not owned:
        consumer.poll(0.1)
    ready(pipe)
    while True:
        if messages := _batch(consumer, job):
            write(orders, [shown(message.value()) for message in messages])
            consumer.commit(asynchronous=False)


def confluent_upserts(pipe: Connection, job: Job) -> None:
    """Consume, upsert, commit the offsets."""
    _confluent_view(pipe, job, upsert)


def confluent_inserts(pipe: Connection, job: Job) -> None:
    """Consume, insert, commit the offsets."""
    _confluent_view(pipe, job, insert)
