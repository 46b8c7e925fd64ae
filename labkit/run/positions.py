"""How far the readers of a run have come, and how far its logs go."""

from __future__ import annotations

from typing import NamedTuple

from labkit.errors import UsageError
from labkit.log.partition import Watermarks
from labkit.ports.broker import Broker, Source
from labkit.ports.store import Checkpoint
from labkit.read.generations import of_reader
from labkit.run.run import ROLES, Run


class Place(NamedTuple):
    """Of a topic, by partition: the next offset that a role reads, and the high watermark, which
    was read later."""

    topic: str
    reached: dict[int, int]
    ends: dict[int, int]


class Positions:
    """Checkpoints, ends and lags of one run. Readers of the ends are kept open."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._marks = Watermarks(self._source)

    def checkpoints(self) -> list[Checkpoint]:
        """How far each reader of the run has come, and in which epoch."""
        run = self._run
        wanted: dict[str, set[str]] = {}
        for role in ROLES:
            for instance in run.instances_of(role):
                for reader in run.readers(role, instance):
                    wanted.setdefault(reader.checkpoints, set()).add(reader.name)
        return [
            checkpoint
            for collection, names in sorted(wanted.items())
            for checkpoint in run.store.checkpoints(collection)
            if checkpoint.id.rpartition(":")[0] in names
        ]

    def epochs(self) -> dict[str, int]:
        """The epoch of each checkpoint, by its id."""
        return {checkpoint.id: checkpoint.epoch for checkpoint in self.checkpoints()}

    def ends(self, name: str) -> dict[int, int]:
        """The high watermarks of a topic (``orders.events``), where commands and commits are kept.

        Raises ``UsageError`` if the run has no such service.
        """
        self._run.service(name.partition(".")[0])
        return self._ends(self._run.log_broker, self._run.topic_name(name))

    def source(self, name: str) -> Source:
        """A reader of a topic (``orders.events``), in no group.

        Raises ``UsageError`` if the run has no such topic.
        """
        run, topic = self._run, self._run.topic_name(name)
        brokers = {run.broker, run.log_broker}  # mostly one
        has = sorted({topic for broker in brokers for topic in broker.topics() if run.owns(topic)})
        if topic not in has:
            names = ", ".join(topic.removeprefix(run.topic_name("")) for topic in has)
            raise UsageError(f"this run has no topic {name!r}, but {names or 'none'}")
        return run.broker_of(name).source(topic)

    def lag(self, role: str, service: str) -> int:
        """How many offsets the group of a role is behind; transaction markers count too."""
        return sum(
            end - place.reached.get(partition, 0)
            for place in self.places(role, service)
            for partition, end in place.ends.items()
        )

    def places(self, role: str, service: str) -> list[Place]:
        """How far a role has come in each topic that it reads, and how far these go.

        Raises ``UsageError`` if the run has no such role or service.
        """
        run = self._run
        if role not in ROLES or service not in run.instances_of(role):
            parts = ", ".join(f"{r} of {s}" for r in ROLES for s in run.instances_of(r))
            raise UsageError(f"this run has no {role} of {service!r}, but {parts or 'none'}")
        if role == "relay":
            topic = run.topic_name(f"{service}.events")
            published = self._ends(run.broker, topic)
            return [Place(topic, published, self._ends(run.log_broker, topic))]
        if role == "query":
            topic = run.topic_name(f"{service}.queries")
            reached = run.broker.committed(topic, run.group(role, service))
            return [Place(topic, reached, self._ends(run.broker, topic))]
        found = []
        for reader in run.readers(role, service):
            topic = run.topic_name(reader.topic)
            if role == "handler":
                reached = run.log_broker.committed(topic, run.group(role, service))
            else:
                known = of_reader(run.store.checkpoints(reader.checkpoints), reader.name)
                reached = {partition: c.position for partition, c in known.items()}
            found.append(Place(topic, reached, self._ends(run.broker_of(topic), topic)))
        return found

    def _ends(self, broker: Broker, topic: str) -> dict[int, int]:
        return self._marks((broker is self._run.broker, topic))

    def _source(self, key: tuple[bool, str]) -> Source:
        published, topic = key
        return (self._run.broker if published else self._run.log_broker).source(topic)

    def close(self) -> None:
        """Close the readers; the next call makes new ones."""
        self._marks.close()
