"""Raw records: read and write Kafka topics without labkit's codecs."""

from __future__ import annotations

import time
from typing import Any

from labkit.log.partition import fetch_records


def poll_all(consumer: Any, patience: float = 8.0, quiet: float = 1.5) -> list[Any]:
    """All records that a bare Kafka consumer gets, in the order of arrival.

    The consumer joins its group in the first polls, so it waits up to ``patience`` seconds for the
    first record. Then it stops after ``quiet`` seconds without a record.
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
    """Append bytes to a topic without any check. Returns their partition and offset."""
    sender = lab.log_broker.sender()
    try:
        place: tuple[int, int] = sender.send(lab.topic_name(topic), stream.encode(), raw).result(30)
    finally:
        sender.close()
    return place


def read_raw(lab: Any, topic: str, place: tuple[int, int]) -> bytes:
    """The bytes of the record at a (partition, offset) of a topic."""
    partition, offset = place
    source = lab.log_broker.source(lab.topic_name(topic))
    try:
        record = fetch_records(source, partition, [offset])[offset]
    finally:
        source.close()
    return record.value if record else b""
