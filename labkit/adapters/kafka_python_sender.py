"""Sending commands through kafka-python, and the translation of its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaProducer, errors

from labkit.adapters.kafka import CLOSE_SECONDS, COMPRESSION, MAX_RECORD_BYTES
from labkit.errors import Fenced, Unreachable, said
from labkit.stack.gone import explained

_FENCED = (
    errors.ProducerFencedError,
    errors.InvalidProducerEpochError,
    errors.InvalidTxnStateError,
    errors.CommitFailedError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
    errors.FencedInstanceIdError,
    errors.RebalanceInProgressError,
)


@contextmanager
def translated(doing: str, bootstrap: str) -> Iterator[None]:
    """Translate client errors."""
    try:
        yield
    except _FENCED as error:
        raise Fenced(f"{doing}: another owner took over ({type(error).__name__})") from error
    except errors.KafkaError as error:
        raise Unreachable(
            explained(f"{doing}: Kafka at {bootstrap} failed: {said(error)}; see `labkit status`")
        ) from error


class QuietProducer(KafkaProducer):  # type: ignore[misc]
    """A producer whose end is bounded and quiet.

    ``close`` of kafka-python raises where a record is still queued, and leaves its thread alive;
    called by the garbage collector or at the end of the process, it prints a traceback.
    """

    _ending = False

    def flush(self, timeout: float | None = None) -> None:
        if not self._ending:
            super().flush(timeout)

    def close(self, timeout: float = CLOSE_SECONDS, null_logger: bool = False) -> None:
        if not getattr(self, "_closed", True):
            try:
                self.flush(timeout)
            except errors.KafkaError:
                timeout = 0  # without its queued records
        self._ending = True  # `close` would flush once more
        super().close(timeout, null_logger)


class KafkaPythonDelivery:
    """The future of a send."""

    def __init__(self, future: Any, bootstrap: str) -> None:
        self._future = future
        self._bootstrap = bootstrap

    def settled(self) -> bool:
        return bool(self._future.is_done)

    def result(self, timeout: float) -> tuple[int, int]:
        with translated("send a command", self._bootstrap):
            sent = self._future.get(timeout=timeout)
        return sent.partition, sent.offset


class KafkaPythonSender:
    """Sends commands."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        with translated("connect", bootstrap):
            self._producer = QuietProducer(
                bootstrap_servers=bootstrap,
                bootstrap_timeout_ms=5_000,
                acks="all",
                linger_ms=1,
                compression_type=COMPRESSION,
                batch_size=128 << 10,
                max_request_size=MAX_RECORD_BYTES,
                max_block_ms=10_000,
                delivery_timeout_ms=30_000,
                request_timeout_ms=10_000,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> KafkaPythonDelivery:
        with translated(f"send to {topic!r}", self._bootstrap):
            future = self._producer.send(topic, key=key, value=value, partition=partition)
        return KafkaPythonDelivery(future, self._bootstrap)

    def flush(self, timeout: float) -> None:
        with translated("flush", self._bootstrap):
            self._producer.flush(timeout)

    def close(self) -> None:
        self._producer.close()
