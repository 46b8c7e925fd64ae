"""Kafka through confluent-kafka (librdkafka): the faster client."""

from __future__ import annotations

try:
    import confluent_kafka  # noqa: F401
except ImportError as error:  # pragma: no cover - an optional extra
    from labkit.errors import UsageError

    raise UsageError(
        "the client 'confluent' is not installed; run: pip install 'cqrs-labkit[confluent]'"
    ) from error

from labkit.adapters.confluent_log import ConfluentLog
from labkit.adapters.confluent_sender import ConfluentSender
from labkit.adapters.confluent_source import ConfluentSource
from labkit.adapters.kafka_python import KafkaPythonBroker


class ConfluentBroker(KafkaPythonBroker):
    """A Kafka broker; kafka-python still manages the topics, because that need not be fast."""

    new_sender = ConfluentSender
    new_source = ConfluentSource
    new_log = ConfluentLog
