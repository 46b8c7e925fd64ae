"""Sending commands through confluent-kafka."""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import KafkaError, Producer

from labkit.adapters.confluent_producer import enqueue, new_producer, translated
from labkit.adapters.kafka import CLOSE_SECONDS
from labkit.errors import Unreachable


class ConfluentDelivery:
    """The future of a send; polling its producer resolves it."""

    __slots__ = ("_bootstrap", "_producer", "error", "where")

    def __init__(self, producer: Producer, bootstrap: str) -> None:
        self._producer = producer
        self._bootstrap = bootstrap
        self.error: KafkaError | None = None
        self.where: tuple[int, int] | None = None

    def done(self, error: KafkaError | None, message: Any) -> None:
        self.error = error
        if error is None:
            self.where = message.partition(), message.offset()

    def settled(self) -> bool:
        if self.where is None and self.error is None:
            self._producer.poll(0)
        return self.where is not None or self.error is not None

    def result(self, timeout: float) -> tuple[int, int]:
        deadline = time.monotonic() + timeout
        while self.where is None and self.error is None and time.monotonic() < deadline:
            self._producer.poll(0.05)
        if self.where is None:
            reason = self.error.str() if self.error else f"no answer within {timeout:g} s"
            raise Unreachable(
                f"send a command: Kafka at {self._bootstrap}: {reason}; see `labkit status`"
            )
        return self.where


class ConfluentSender:
    """Sends commands."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._producer = new_producer(
            bootstrap,
            {
                "acks": "all",
                # The same partitions as kafka-python and the Java client.
                "partitioner": "murmur2_random",
                "message.timeout.ms": 30_000,
                "allow.auto.create.topics": False,
            },
        )

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> ConfluentDelivery:
        delivery = ConfluentDelivery(self._producer, self._bootstrap)
        to = -1 if partition is None else partition
        with translated(f"send to {topic!r}", self._bootstrap):
            enqueue(self._producer, topic, key, value, to, delivery.done)
        self._producer.poll(0)
        return delivery

    def flush(self, timeout: float) -> None:
        if left := self._producer.flush(timeout):
            raise Unreachable(
                f"flush: Kafka at {self._bootstrap} did not acknowledge {left} records within "
                f"{timeout:g} s; see `labkit status`"
            )

    def close(self) -> None:
        self._producer.flush(CLOSE_SECONDS)
