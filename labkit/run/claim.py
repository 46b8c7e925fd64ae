"""The claim of an autoscaler on a role of a run, in the run's database: one at a time.

::

    collection run   {_id: "autoscaler:handler:SERVICE", host, pid, born, rev}

The owner raises ``rev`` again and again. Whoever finds a claim asks, on the same host, whether its
process lives; on another host it waits for ``rev`` to move. So no two clocks are compared.
"""

from __future__ import annotations

import os
import socket

import msgspec
from msgspec import Struct, structs

from labkit.errors import Conflict, Duplicate, UsageError
from labkit.ports.clock import Clock
from labkit.ports.store import Store, Writes
from labkit.run.run import COLLECTION
from labkit.stack.processes import born, same_birth

#: The owner moves its claim this often; without a move for the longer time it is dead.
BEAT_SECONDS, DEAD_SECONDS = 1.0, 8.0


class _Owner(Struct, frozen=True):
    host: str
    pid: int
    born: float
    rev: int = 0

    @classmethod
    def me(cls) -> _Owner:
        return cls(socket.gethostname(), os.getpid(), born(os.getpid()))


class Claim:
    """A claim that this process takes on construction, keeps by ``beat``, and ends by ``release``.

    Raises ``UsageError`` that names the owner if another has it.
    """

    def __init__(self, store: Store, run: str, role: str, service: str, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._id = f"autoscaler:{role}:{service}"
        self._of = f"the {role}s of {service!r} in run {run!r}"
        self._mine = _Owner.me()
        while not self._take():
            pass

    def _take(self) -> bool:
        """Whether it is ours now; ``False``: another was as fast, so look again."""
        found = self._found()
        if found is not None and self._lives(found):
            mine = structs.replace(found, rev=self._mine.rev) == self._mine
            me = " (this process)" if mine else ""
            raise UsageError(
                f"{self._of} have an autoscaler already: pid {found.pid}{me} on host "
                f"{found.host!r}; stop that one first"
            )
        self._mine = structs.replace(self._mine, rev=found.rev + 1 if found else 0)
        document = {"_id": self._id, **msgspec.to_builtins(self._mine)}
        try:
            writes = {COLLECTION: [document]}
            self._write(Writes(replaces=writes) if found else Writes(inserts=writes))
        except (Conflict, Duplicate):
            return False
        return True

    def _lives(self, owner: _Owner) -> bool:
        if owner.host == self._mine.host:
            return same_birth(born(owner.pid), owner.born)
        deadline = self._clock.seconds() + DEAD_SECONDS
        while self._clock.seconds() < deadline:
            self._clock.sleep(BEAT_SECONDS / 4)
            if self._found() != owner:
                return True
        return False

    def beat(self) -> bool:
        """Keep the claim; ``False``: the run was dropped, and the claim with it.

        Raises ``UsageError`` if another has taken it, since this process was taken for dead.
        """
        moved = structs.replace(self._mine, rev=self._mine.rev + 1)
        document = {"_id": self._id, **msgspec.to_builtins(moved)}
        found = self._found()
        if found == self._mine:
            try:
                self._write(Writes(replaces={COLLECTION: [document]}))
            except Conflict:
                found = self._found()
        if found is None:
            return False
        if found != self._mine:
            raise UsageError(
                f"pid {found.pid} on host {found.host!r} scales {self._of} now: this autoscaler "
                f"did not show itself for {DEAD_SECONDS:g} s, and ends"
            )
        self._mine = moved
        return True

    def release(self) -> None:
        """Let the next one have it at once."""
        if self._found() == self._mine:
            self._write(Writes(deletes={COLLECTION: [self._id]}))

    def _found(self) -> _Owner | None:
        document = self._store.load(COLLECTION, [self._id]).get(self._id)
        return None if document is None else msgspec.convert(document, _Owner)

    def _write(self, writes: Writes) -> None:
        self._store.advance(f"{COLLECTION}.checkpoints", [], writes)
