"""CRUD, well made: one transaction a command, an optimistic version, an idempotency table.

::

    crud.rows    one row a stream (``row.py``)
    crud.ids     {_id: command id, digest, outcome, version, reason}: the answers that were given
    crud.outbox  {_id: command id, stream, version, commit}: what others are told, if anybody is

1. Read the row. 2. Decide. 3. In one transaction replace the row, if its revision is still the one
that was read, and insert the answer under the command's id. If another writer was first, begin
again after a random pause, longer each time. If the id is there already, the command was sent
before: it gets the answer that was given then.

With a ``process`` the commands that it sends are decided in the same transaction, so that no reader
sees one row without the other. That takes one database that both services write; where there is
none, the outbox tells the process (``relay.py``).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from random import Random

import msgspec
from msgspec import Struct, structs

from labkit.errors import Conflict, Duplicate, TooSlow
from labkit.experiments.cost.arm import Followed, Reply
from labkit.experiments.cost.row import ROWS, Made, RowReads, made
from labkit.messages import Answer, Command, Commit, Document, digest, encode
from labkit.ports.store import Store, Writes
from labkit.service import Process, Service
from labkit.service.process import command_id

IDS, OUTBOX = "crud.ids", "crud.outbox"
#: No checkpoint is moved, but the store asks where they would be.
CHECKPOINTS = "crud.checkpoints"
#: A command meets other writers at most so often, and then its client is told.
TRIES = 200
#: The longest pause after the first try; it doubles up to ``LONGEST_SECONDS``.
PAUSE_SECONDS, LONGEST_SECONDS = 0.001, 0.064


class Step(Struct, frozen=True):
    """One command of a transaction, and what it led to."""

    id: str
    command: Command
    made: Made
    commit: Commit[object]


class Crud(RowReads):
    """``tells``: what a command led to is left in an outbox for others."""

    def __init__(
        self,
        service: Service,
        store: Store,
        *,
        process: Process | None = None,
        tells: bool = False,
        seed: int = 0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(store)
        self._service, self._store = service, store
        self._process = process
        self._tells = tells
        self._pause = pause
        self._random = Random(f"{seed} pauses")
        self._counting = threading.Lock()
        self.conflicts = 0
        for name in (ROWS, IDS, OUTBOX):
            store.index(name, [("_id", 1)])

    def send(self, command: Command, id: str, correlation: str = "") -> Reply:
        """See ``Arm.send``. ``correlation`` comes back in the outbox. Raises ``Conflict`` after
        ``TRIES`` tries."""
        for number in range(TRIES):
            steps, before = self._decide(command, id, correlation)
            try:
                self._commit(self._writes(steps, before))
                return Reply(steps[0].made.answer, None, tuple(map(_followed, steps[1:])))
            except Duplicate:
                if (kept := self._store.load(IDS, [id]).get(id)) is not None:
                    return Reply(_answer(kept, command))
            except (Conflict, TooSlow):
                pass
            with self._counting:
                self.conflicts += 1
            longest = min(LONGEST_SECONDS, PAUSE_SECONDS * 2 ** min(number, 10))
            self._pause(self._random.uniform(0, longest))
        raise Conflict(f"command {id!r} met other writers of {command.stream!r} {TRIES} times")

    def _decide(
        self, command: Command, id: str, instance: str
    ) -> tuple[list[Step], dict[str, Document | None]]:
        """The command and those that follow from it; and the rows as they were before."""
        before: dict[str, Document | None] = {}
        now: dict[str, Document | None] = {}
        steps: list[Step] = []
        state: object = None
        waiting = deque([(command, id, instance)])
        while waiting:
            command, id, instance = waiting.popleft()
            stream = command.stream
            if stream not in before:
                before[stream] = now[stream] = self._store.load(ROWS, [stream]).get(stream)
            row = now[stream]
            done = made(self._service, row, command)
            now[stream] = done.row or row
            commit = _commit(id, command, done, row["version"] if row else 0, instance)
            steps.append(Step(id, command, done, commit))
            if self._process is None:
                break
            found = self._process.instance(self._service.name, commit)
            if found is not None:
                state, sends = self._process.react(state, self._service.name, commit)
                for send in sends:
                    following = command_id(self._process.name, found, send.step)
                    waiting.append((send.command, following, found))
        return steps, before

    def _writes(self, steps: list[Step], before: dict[str, Document | None]) -> Writes:
        after = {s.made.row["_id"]: s.made.row for s in steps if s.made.row is not None}
        new, old = list[Document](), list[Document]()
        for stream, row in after.items():
            if (found := before[stream]) is None:
                new.append(row)
            else:  # several steps of one transaction are one write
                old.append({**row, "rev": found["rev"] + 1})
        inserts = {IDS: [_kept(step) for step in steps], ROWS: new}
        if self._tells:
            inserts[OUTBOX] = [_told(step) for step in steps]
        return Writes(inserts, {ROWS: old})

    def _commit(self, writes: Writes) -> None:
        """All of it in one transaction."""
        self._store.advance(CHECKPOINTS, [], writes)

    def close(self) -> None:
        """The store is the lab's."""


def _kept(step: Step) -> Document:
    return {"_id": step.id, "digest": digest(step.command), **structs.asdict(step.made.answer)}


def _answer(kept: Document, command: Command) -> Answer:
    if kept["digest"] != digest(command):
        reason = f"command id {kept['_id']!r} was used for another command"
        return Answer("refused", kept["version"], reason)
    fields = {name: kept[name] for name in Answer.__struct_fields__}
    return msgspec.convert(fields, Answer)


def _followed(step: Step) -> Followed:
    return Followed(step.id, step.command, step.made.answer)


def _told(step: Step) -> Document:
    place = {"_id": step.id, "stream": step.command.stream, "version": step.made.answer.version}
    return {**place, "commit": encode(step.commit).decode()}


def _commit(id: str, command: Command, done: Made, version: int, instance: str) -> Commit[object]:
    """What a process reads; there is no log in which it would have a place."""
    return Commit(
        stream=command.stream,
        id=id,
        partition=0,
        offset=0,
        outcome=done.answer.outcome,
        first=version + 1,
        last=done.answer.version,
        events=done.events,
        reason=done.answer.reason,
        correlation=instance,
    )
