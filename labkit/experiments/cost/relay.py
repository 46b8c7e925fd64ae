"""A process is told what stands in the outbox of ``crud``: two services without one transaction.

::

    crud.outbox     what the commands led to; a row is deleted once the process has had it
    crud.instances  {_id: instance, rev, state}: what the process knows

The relay sends the commands of the process first, under ids that follow from what it was told, and
then saves the process and deletes the row, in one transaction. If it dies in between, it sends them
again, and their ids make that harmless. So the services agree in the end, and not at once.
"""

from __future__ import annotations

from typing import Any

import msgspec

from labkit.experiments.cost.arm import Followed
from labkit.experiments.cost.crud import CHECKPOINTS, OUTBOX, Crud
from labkit.ports.store import Store, Writes
from labkit.service import Process, Service
from labkit.service.process import command_id

INSTANCES = "crud.instances"


class Relay:
    """The only reader of an outbox. ``followed``: what it sent, with the answers."""

    def __init__(self, service: Service, store: Store, arm: Crud, process: Process) -> None:
        self._service, self._store, self._arm, self._process = service, store, arm, process
        for name in (OUTBOX, INSTANCES):
            store.index(name, [("_id", 1)])
        self.followed: list[Followed] = []

    def step(self) -> int:
        """All rows that are there; how many."""
        letters = self._store.find(OUTBOX, {}, sort=[("stream", 1), ("version", 1)])
        for letter in letters:
            self._pass_on(letter["_id"], letter["commit"].encode())
        return len(letters)

    def _pass_on(self, id: str, wire: bytes) -> None:
        commit = self._service.codec.decode_commit(wire)
        done = Writes(deletes={OUTBOX: [id]})
        instance = self._process.instance(self._service.name, commit)
        if instance is not None:
            known = self._store.load(INSTANCES, [instance]).get(instance)
            state: Any = msgspec.convert(known["state"], self._process.state) if known else None
            state, sends = self._process.react(state, self._service.name, commit)
            for send in sends:
                following = command_id(self._process.name, instance, send.step)
                reply = self._arm.send(send.command, following, instance)
                self.followed.append(Followed(following, send.command, reply.answer))
            if state is not None:
                row = {"_id": instance, "state": msgspec.to_builtins(state)}
                if known is None:
                    done.inserts[INSTANCES] = [{**row, "rev": 1}]
                else:
                    done.replaces[INSTANCES] = [{**row, "rev": known["rev"] + 1}]
        self._finish(done)

    def _finish(self, writes: Writes) -> None:
        self._store.advance(CHECKPOINTS, [], writes)
