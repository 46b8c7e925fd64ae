"""Processes: a process between streams, run as a projection with an outbox.

What a process does is pure (``Process.react``): a commit comes in, a new state and commands
come out. Here these are kept::

    commit ──> state + checkpoint + outgoing commands, one MongoDB transaction ──> send ──> delete

Whatever crashes between whichever two of them, a command goes out at least once, and its id is
derived from the step it belongs to, so it takes effect once. A new owner first reads all answers
that are there by then; each takes its command out of the outbox, and only what is left is sent
again. Deadlines are commands with ``deliver_at``: they wait
in the stream that they are for, and survive like it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from labkit.log.crash_only import CrashOnly
from labkit.messages import Commit, Envelope, encode
from labkit.ports.broker import Sender
from labkit.ports.store import Checkpoint, Document
from labkit.read.projection import Indexes
from labkit.read.projector import Projector
from labkit.read.unit_of_work import UnitOfWork
from labkit.service import Process, Send, command_id
from labkit.service.guard import guarded


class ProcessProjection:
    """One process over the events of one of its services.

    Collections::

        NAME.instances        {_id: instance, rev, state, ended}; shared by the services
        NAME.seen.CONTEXT     {_id: stream, version}
        NAME.outbox           {_id: command id, from: "service:partition", service, key, value}
    """

    def __init__(self, process: Process, service: str) -> None:
        self.process = process
        self._instance = guarded(process.instance)
        self._react = guarded(process.react, process.state)
        self.service = service
        self.name = f"{process.name}.{service}"
        self.streams = f"{process.name}.seen.{service}"
        self.instances = f"{process.name}.instances"
        self.outbox = f"{process.name}.outbox"
        self.indexes: Indexes = {
            self.streams: [],
            self.instances: [],
            self.outbox: [[("from", 1)]],
        }

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """The instance that the commit is about, and the command that it answers."""
        instance = self._instance(self.service, commit)
        if instance is not None:
            yield self.instances, instance
        if commit.correlation:
            yield self.outbox, commit.id

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        """Let the process react; what it sends goes to the outbox."""
        if commit.events and docs[self.streams].get(commit.stream) is None:
            docs[self.streams].add({"_id": commit.stream, "version": 0})
        docs[self.outbox].remove(commit.id)  # what is answered was sent
        if (instance := self._instance(self.service, commit)) is None:
            return
        kept = docs[self.instances].get(instance)
        before = msgspec.convert(kept["state"], self.process.state) if kept else None
        state, sends = self._react(before, self.service, commit)
        if state is None:
            return
        document = kept or docs[self.instances].add({"_id": instance, "rev": 0})
        document["state"] = msgspec.to_builtins(state)
        document["ended"] = self.process.ended(state)
        for send in sends:
            docs[self.outbox].add(self._letter(instance, send, commit))

    def _letter(self, instance: str, send: Send, commit: Commit[Any]) -> Document:
        due = None if send.after is None else commit.at + int(send.after * 1000)
        envelope = Envelope(
            id=command_id(self.process.name, instance, send.step),
            body=send.command,
            deliver_at=due,
            correlation=instance,
        )
        return {
            "_id": envelope.id,
            "from": f"{self.service}:{commit.partition}",
            "service": send.service,
            "key": send.command.stream,
            "value": encode(envelope).decode(),
        }


class ProcessManager(CrashOnly):
    """One process in one worker: a projector for each service that it listens to.

    ``checkpoints`` says how far the projectors of all its workers have come.
    """

    def __init__(
        self,
        projectors: Sequence[Projector],
        sender: Sender,
        checkpoints: Callable[[], Iterable[Checkpoint]],
    ) -> None:
        self._projectors = projectors
        self._sender = sender
        self._checkpoints = checkpoints
        self._owed: list[frozenset[int]] = []
        self._ends: dict[str, int] = {}

    def step(self, timeout: float = 0.1) -> int:
        """One batch of each service; returns the number of commits that the process reacted to.

        Raises ``Fenced`` if an earlier step failed.
        """
        with self.unbroken():
            share = timeout / len(self._projectors)
            count = sum(projector.step(share) for projector in self._projectors)
            if any(projector.owed for projector in self._projectors):
                self._send_owed()
            return count

    def _send_owed(self) -> None:
        """What dead owners left: once all is read that was in the log when it was taken over."""
        owed = [frozenset(projector.owed) for projector in self._projectors]
        if owed != self._owed:
            self._owed = owed
            self._ends = {k: end for one in self._projectors for k, end in one.ends().items()}
        reached = {checkpoint.id: checkpoint.position for checkpoint in self._checkpoints()}
        if all(reached.get(id, 0) >= end for id, end in self._ends.items()):
            for projector in self._projectors:
                projector.send_owed()
            self._owed = []

    def join(self, partitions: int) -> None:
        """Own all partitions before the first step: for those who step by hand."""
        for projector in self._projectors:
            projector.join(partitions)

    def close(self) -> None:
        """Leave the groups."""
        for projector in self._projectors:
            projector.close()
        self._sender.close()
