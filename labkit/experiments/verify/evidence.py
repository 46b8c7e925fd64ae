"""What the log and the store of a run say, read once for all checkers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from typing import Any

from msgspec import Struct

from labkit.errors import DecodeError
from labkit.experiments.verify.history import Heard, History
from labkit.lab import Lab
from labkit.log.partition import read_partition
from labkit.messages import Commit, Document, Envelope, ReleaseParked, Token
from labkit.ports.broker import Source
from labkit.ports.store import Checkpoint
from labkit.read.projection import streams_of
from labkit.service import Case, Operation, Service


class Evidence(Struct):
    """What the log and the store say of one service.

    ``chain`` holds the commits that readers take: those whose version fits; ``unread`` are those of
    them whose events this code does not know. ``misfits`` are the others, each with the version
    that it should have followed; ``aborted`` are those that a transaction wrote and took back.
    ``states`` are the stored ones, ``saved`` the versions that they must have where the handler's
    checkpoints stand. ``views`` holds the documents of each collection.
    """

    service: Service
    commits: list[Commit[Any]]
    chain: list[Commit[Any]]
    unread: list[Commit[Any]]
    misfits: list[tuple[Commit[Any], int]]
    checkpoints: list[Checkpoint]
    states: dict[str, Document]
    saved: dict[str, int]
    views: dict[str, list[Document]]
    lag: dict[str, int]
    aborted: list[Heard]

    @property
    def streams(self) -> list[Document]:
        """The documents that hold the version of each stream; none of a service without views."""
        return self.views.get(streams_of(self.service), [])

    def own(self, operations: Iterable[Operation]) -> list[Operation]:
        """The operations on this service."""
        return [o for o in operations if type(o.command) in self.service.decide]

    def case(self, operations: Iterable[Operation]) -> Case:
        """What the service's own audits are given: the events that its code knows."""
        chain = [commit for commit in self.chain if commit not in self.unread]
        return Case(self.own(operations), chain, self.states, self.views)


def gather(lab: Lab, service: str | None = None) -> Evidence:
    """Read the log, the states and the views of a service; the default is the run's first."""
    name = service or lab.first
    found = lab.of.service(name)
    with lab.store.snapshot() as reads:  # a handler may save its states at any time
        states = {d["_id"]: d for d in reads.find(found.states, {})}
        positions = {c.id: c.position for c in reads.checkpoints(found.checkpoints)}
    commits: list[Commit[Any]] = []
    chain: list[Commit[Any]] = []
    misfits: list[tuple[Commit[Any], int]] = []
    saved: dict[str, int] = {}
    unread: list[Commit[Any]] = []
    with closing(lab.broker.source(lab.topic_name(f"{name}.events"))) as source:
        for partition in sorted(source.ends()):
            known: dict[str, int] = {}
            position = positions.get(found.checkpoint(partition), 0)
            for offset, commit, why in _placed(source, partition, found):
                commits.append(commit)
                if commit.first != known.get(commit.stream, 0) + 1:
                    misfits.append((commit, known.get(commit.stream, 0)))
                    continue
                known[commit.stream] = commit.last
                chain.append(commit)
                if why:
                    unread.append(commit)
                if offset < position:
                    saved[commit.stream] = commit.last
    marks = {Heard.of(name, commit) for commit in commits}
    collections = {found.collection(view) for view in found.views}
    if found.views:
        collections.add(streams_of(found))
    roles = ("handler", "projector")
    return Evidence(
        service=found,
        commits=commits,
        chain=chain,
        unread=unread,
        misfits=misfits,
        checkpoints=[c for c in lab.positions.checkpoints() if c.id.startswith(f"{name}.")],
        states=states,
        saved=saved,
        views={each: lab.store.find(lab.where(each), {}) for each in sorted(collections)},
        lag={role: lab.lag(role, name) for role in roles if name in lab.instances_of(role)},
        aborted=[written for written in _written(lab, found) if written not in marks],
    )


def _placed(
    source: Source, partition: int, service: Service
) -> Iterator[tuple[int, Commit[Any], str]]:
    """Each commit of a partition with its place, and why this code does not know its events."""
    for records in read_partition(source, partition):
        for record in records:
            commit, why = service.codec.read_commit(record.value)
            if commit is not None:
                yield record.offset, commit, why


def _written(lab: Lab, service: Service) -> Iterator[Heard]:
    """Every commit of the topic, those of open and aborted transactions too."""
    topic = lab.topic_name(f"{service.name}.events")
    with closing(lab.broker.source(topic, uncommitted=True)) as source:
        for partition in sorted(source.ends()):
            for records in read_partition(source, partition):
                for record in records:
                    with suppress(DecodeError):
                        yield Heard.of(service.name, service.codec.decode_commit(record.value))


def adopt_commands(lab: Lab, history: History, services: Iterable[str] | None = None) -> int:
    """Take over what processes have sent, as it lies in the commands topics; how many there are."""
    names = lab.services if services is None else services
    return sum(history.adopt(_commands(lab, lab.of.service(name))) for name in names)


def _commands(lab: Lab, service: Service) -> Iterator[tuple[Token, Envelope[Any]]]:
    """What lies in a commands topic, if it is a command to the service."""
    with closing(lab.log_broker.source(lab.topic_name(f"{service.name}.commands"))) as source:
        for partition in sorted(source.ends()):
            for records in read_partition(source, partition):
                for record in records:
                    try:
                        envelope = service.codec.decode_command(record.value)
                    except DecodeError:
                        continue
                    if not isinstance(envelope.body, ReleaseParked):
                        yield Token(service.name, partition, record.offset), envelope
