"""What the confluent-kafka adapters share: translated errors and a producer queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from labkit.adapters.kafka import COMPRESSION, MAX_RECORD_BYTES
from labkit.errors import Fenced, OutcomeUnknown, Unreachable
from labkit.stack.gone import explained

_FENCED = {
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_TXN_STATE,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
}
_TIMED_OUT = {KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT_QUEUE}

DeliveryCallback = Callable[[KafkaError | None, Any], None]


@contextmanager
def translated(doing: str, bootstrap: str, unknown: bool = False) -> Iterator[None]:
    """Translate client errors; ``unknown``: a timeout raises ``OutcomeUnknown``."""
    try:
        yield
    except KafkaException as raised:
        error = raised.args[0]
        if error.code() in _FENCED:
            raise Fenced(f"{doing}: another owner took over ({error.name()})") from raised
        if unknown and error.code() in _TIMED_OUT:
            raise OutcomeUnknown(f"{doing}: no answer in time") from raised
        said = f"{doing}: Kafka at {bootstrap} failed: {error.name()}: {error.str()}"
        raise Unreachable(explained(f"{said}; see `labkit status`")) from raised


def client_settings(bootstrap: str) -> dict[str, Any]:
    """The settings of every client; all errors are raised, so librdkafka logs nothing."""
    return {"bootstrap.servers": bootstrap, "error_cb": lambda _: None, "log_level": 0}


def new_producer(bootstrap: str, settings: dict[str, Any]) -> Producer:
    """An idempotent producer with further ``settings`` of librdkafka."""
    return Producer(
        {
            **client_settings(bootstrap),
            "enable.idempotence": True,
            "linger.ms": 1,
            "compression.type": COMPRESSION,
            "batch.num.messages": 10_000,
            "message.max.bytes": MAX_RECORD_BYTES,
            **settings,
        }
    )


def enqueue(
    producer: Producer,
    topic: str,
    key: bytes,
    value: bytes,
    partition: int,
    on_delivery: DeliveryCallback | None,
) -> None:
    """Queue one record; wait while the queue is full (polling delivers or expires records)."""
    while True:
        try:
            producer.produce(topic, value, key, partition, on_delivery)
            return
        except BufferError:
            producer.poll(0.1)
