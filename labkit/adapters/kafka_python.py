"""Kafka through kafka-python: the default client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from functools import cached_property
from typing import ClassVar

from kafka import KafkaAdminClient, errors
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic

from labkit.adapters.kafka import LEAST_SESSION_MS, SESSION_MS, TOPIC_CONFIG, once_there
from labkit.adapters.kafka_python_log import KafkaPythonLog
from labkit.adapters.kafka_python_sender import KafkaPythonSender, translated
from labkit.adapters.kafka_python_source import KafkaPythonSource
from labkit.ports.broker import CommandLog, Delivery, Sender, Source

__all__ = ["KafkaPythonBroker", "KafkaPythonLog", "KafkaPythonSource"]


class KafkaPythonBroker:
    """A Kafka cluster at ``bootstrap`` (host:port); ``replication`` -1 is the broker's default."""

    new_sender: ClassVar[Callable[..., Sender]] = KafkaPythonSender
    new_source: ClassVar[Callable[..., Source]] = KafkaPythonSource
    new_log: ClassVar[Callable[..., CommandLog]] = KafkaPythonLog

    def __init__(self, bootstrap: str, replication: int = -1) -> None:
        self.bootstrap = bootstrap
        self._replication = replication
        self._admin_client: KafkaAdminClient | None = None

    def create(self, topics: Mapping[str, int]) -> None:
        """Create the missing topics and wait until their partitions have leaders."""
        present = set(self.topics())
        new = [
            NewTopic(name, partitions, self._replication, topic_configs=TOPIC_CONFIG)
            for name, partitions in topics.items()
            if name not in present
        ]
        with translated("create topics", self.bootstrap):
            if new:
                with suppress(errors.TopicAlreadyExistsError):  # by another client, meanwhile
                    self._admin().create_topics(new, timeout_ms=20_000)
            self._admin().wait_for_topics(list(topics), timeout_ms=20_000)

    def drop(self, topics: Iterable[str]) -> None:
        present = sorted(set(topics) & set(self.topics()))
        if present:
            with translated("delete topics", self.bootstrap):
                self._admin().delete_topics(present, timeout_ms=20_000)

    def topics(self) -> list[str]:
        with translated("list topics", self.bootstrap):
            return sorted(t for t in self._admin().list_topics() if not t.startswith("__"))

    def sizes(self) -> dict[str, int]:
        """The partitions of each topic."""
        with translated("describe topics", self.bootstrap):
            return {t["name"]: len(t["partitions"]) for t in self._admin().describe_topics()}

    def groups(self) -> dict[str, bool]:
        """All consumer groups, and whether each has members."""
        with translated("list groups", self.bootstrap):
            found = once_there(lambda: self._admin().list_groups())
        return {g["group_id"]: g["group_state"] not in ("Empty", "Dead") for g in found}

    def drop_groups(self, groups: Iterable[str]) -> None:
        if found := list(groups):
            with translated("delete groups", self.bootstrap):
                self._admin().delete_groups(found)

    def sender(self) -> Sender:
        return self.new_sender(self.bootstrap)

    def source(self, topic: str, group: str | None = None, *, uncommitted: bool = False) -> Source:
        session = self.session_ms if group else SESSION_MS
        return self.new_source(self.bootstrap, topic, group, uncommitted, session)

    def log(
        self,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery = "exactly_once",
    ) -> CommandLog:
        return self.new_log(
            self.bootstrap, commands, events, group, transactional_id, delivery, self.session_ms
        )

    @cached_property
    def session_ms(self) -> int:
        """How long the sessions of group members last: as short as the broker allows."""
        name, least = "group.min.session.timeout.ms", LEAST_SESSION_MS
        with suppress(errors.KafkaError, KeyError):  # it may be nobody's to ask
            node = str(self._admin().describe_cluster()["brokers"][0]["broker_id"])
            asked = ConfigResource(ConfigResourceType.BROKER, node, [name])
            found = self._admin().describe_configs([asked], config_filter="all")
            least = int(found["broker"][node][name]["value"])
        return max(SESSION_MS, least)

    def committed(self, topic: str, group: str, *, settled: bool = False) -> dict[int, int]:
        """See the port.

        An admin client does not wait for pending offset commits. A consumer does, and it does not
        join its group before its first poll.
        """
        if settled:
            with closing(KafkaPythonSource(self.bootstrap, topic, group)) as source:
                return source.committed()
        with translated(f"offsets of {group!r}", self.bootstrap):
            # The very first group makes the broker create its offsets topic.
            ask = self._admin().list_group_offsets
            found = once_there(lambda: ask({group: None})[group])
        return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic}

    def version(self) -> str:
        """The version as ``major.minor``, derived from the protocol versions of the broker."""
        with translated("ask for the version", self.bootstrap):
            node = self._admin().describe_cluster()["brokers"][0]["broker_id"]
            version = self._admin().get_broker_version_data(node).broker_version
            return ".".join(str(part) for part in version)

    def close(self) -> None:
        if self._admin_client:
            self._admin_client.close()
            self._admin_client = None

    def _admin(self) -> KafkaAdminClient:
        if self._admin_client is None:
            self._admin_client = KafkaAdminClient(
                bootstrap_servers=self.bootstrap,
                bootstrap_timeout_ms=5_000,
                request_timeout_ms=20_000,
            )
        return self._admin_client
