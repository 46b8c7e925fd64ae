"""The named places where a crash is tried: between any two effects of a worker.

A worker process is told by its environment to die at one of them, by SIGKILL and once
(``LABKIT_FAILPOINT`` names the place, ``LABKIT_FAILPOINT_MARK`` a file that is created when it is
hit, so that the next life passes; ``LABKIT_FAILPOINT_PASSES`` is how often it passes unharmed
before, ``LABKIT_FAILPOINT_SIGNAL`` another signal, such as SIGSTOP). Inside one process
:func:`armed` raises :class:`Crash` instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path


class Failpoint(StrEnum):
    """ROLE.what-has-just-been-done."""

    HANDLER_CLAIMED = "handler.claimed"  # epoch raised; the tail is not replayed yet
    HANDLER_POLLED = "handler.polled"  # commands fetched, nothing decided
    HANDLER_DECIDED = "handler.decided"  # decided in memory, nothing written
    HANDLER_PRODUCED = "handler.produced"  # commits acknowledged, the transaction is open
    HANDLER_OFFSETS = "handler.offsets"  # offsets in the transaction, not committed
    HANDLER_COMMITTED = "handler.committed"  # transaction done, cache and states not
    HANDLER_FLUSHING = "handler.flushing"  # states and checkpoint about to be written
    HANDLER_FLUSHED = "handler.flushed"  # states and checkpoint written
    PROJECTOR_CLAIMED = "projector.claimed"  # epoch raised, reading not started
    PROJECTOR_FETCHED = "projector.fetched"  # commits fetched, nothing written
    PROJECTOR_APPLIED = "projector.applied"  # views changed in memory, nothing written
    PROJECTOR_ADVANCED = "projector.advanced"  # views and checkpoint written
    PROCESS_SENT = "process.sent"  # commands acknowledged, still in the outbox
    RELAY_SENT = "relay.sent"  # records acknowledged, the resume token is not saved


ALL = tuple(Failpoint)


class Crash(BaseException):
    """A crash inside one process: not an ``Exception``, so that no handler can swallow it."""


_action: Callable[[Failpoint], None] | None = None


def hit(point: Failpoint) -> None:
    """Called at the place; does nothing unless armed."""
    if _action is not None:
        _action(point)


@contextmanager
def watched(action: Callable[[Failpoint], None]) -> Iterator[None]:
    """Call ``action`` at each failpoint, in this process."""
    global _action
    before, _action = _action, action
    try:
        yield
    finally:
        _action = before


@contextmanager
def armed(point: Failpoint) -> Iterator[None]:
    """Raise :class:`Crash` at ``point``, in this process."""

    def crash(at: Failpoint) -> None:
        if at is point:
            raise Crash(point)

    with watched(crash):
        yield


def arm_from_environment(environment: Mapping[str, str]) -> None:
    """In a worker process: die by SIGKILL at the place that the environment names, once."""
    global _action
    if not (name := environment.get("LABKIT_FAILPOINT")):
        return
    point, mark = Failpoint(name), Path(environment["LABKIT_FAILPOINT_MARK"])
    passes = int(environment.get("LABKIT_FAILPOINT_PASSES", "0"))
    blow = signal.Signals[environment.get("LABKIT_FAILPOINT_SIGNAL", "SIGKILL")]

    def die(at: Failpoint) -> None:
        nonlocal passes
        if at is not point or mark.exists():
            return
        if passes > 0:
            passes -= 1
            return
        mark.touch()
        os.kill(os.getpid(), blow)

    _action = die
