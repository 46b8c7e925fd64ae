"""TODO."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from labkit.log.partition import fetch_records

if TYPE_CHECKING:
    pass


def poll_all(consumer: Any, patience: float = 8.0, quiet: float = 1.5) -> list[Any]:
    """Everything that a bare Kafka consumer is given, in the order of its coming.

    It joins its group in the first polls, so it has ``patience`` seconds for the first record; then
    it is done when nothing has come for ``quiet`` seconds.
    """
    found: list[Any] = []
    last, patient = time.monotonic(), patience
    while time.monotonic() - last < patient:
        some = [r for records in consumer.poll(timeout_ms=200).values() for r in records]
        if some:
            found += some
            last, patient = time.monotonic(), quiet
        elif not found and consumer.assignment():
            patient = min(patient, 3.0)
    return found


def send_raw(lab: Any, stream: str, raw: bytes, topic: str = "orders.commands") -> tuple[int, int]:
    """Put bytes into a topic, past all checks; returns their place: partition and offset."""
    sender = lab.log_broker.sender()
    try:
        place: tuple[int, int] = sender.send(lab.topic_name(topic), stream.encode(), raw).result(30)
    finally:
        sender.close()
    return place


def read_raw(lab: Any, topic: str, place: tuple[int, int]) -> bytes:
    """The bytes that lie at a place of a topic."""
    partition, offset = place
    source = lab.log_broker.source(lab.topic_name(topic))
    try:
        record = fetch_records(source, partition, [offset])[offset]
    finally:
        source.close()
    return record.value if record else b""
