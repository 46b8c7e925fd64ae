"""In a world nothing may come from outside: no real sleep, no chance, no thread, no connection.

Whoever tries that in a life ends the trial with a line that names the place in the code.
"""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import stamina

from labkit.errors import UsageError
from labkit.experiments.verify.planting import planted_here, replace
from labkit.ports.failpoints import Failpoint, watched
from labkit.service.guard import guarded
from labkit.simulation.world import World

#: What is forbidden: owner, name, and what to use instead.
FORBIDDEN = (
    (time, "sleep", "a scheduled command, or the clock that a part is given"),
    (uuid, "uuid4", "ids that are made of the command"),
    (uuid, "uuid1", "ids that are made of the command"),
    (threading.Thread, "start", "the executor that a part is given"),
    (socket.socket, "connect", "the broker and the store of the run"),
    *(
        (random, name, "what the command says: a decision must be the same when it is repeated")
        for name in ("random", "randint", "randrange", "choice", "uniform", "shuffle", "sample")
    ),
)


class Unruly(BaseException):
    """Not an ``Exception``: no handler of the code that is simulated may swallow it."""


@contextmanager
def fenced(world: World) -> Iterator[None]:
    """Raises ``UsageError`` where a life does what is forbidden."""
    with planted_here(lambda: _forbid(world)):
        try:
            yield
        except Unruly as unruly:
            raise UsageError(str(unruly)) from None


def _forbid(world: World) -> None:
    for owner, name, instead in FORBIDDEN:
        replace(owner, name, _guard(world, owner, name, getattr(owner, name), instead))


def _guard(world: World, owner: Any, name: str, real: Any, instead: str) -> Any:
    def forbidden(*given: Any, **named: Any) -> Any:
        # A retry in a test sleeps for no time at all.
        if world.current is None or (owner is time and not given[0]):
            return real(*given, **named)
        at = sys._getframe(1)
        raise Unruly(
            f"{at.f_code.co_filename}:{at.f_lineno} calls {owner.__name__}.{name}(), so a "
            f"simulated run is not the same when it is played again; use {instead}"
        )

    return forbidden


@contextmanager
def acting(world: World) -> Iterator[None]:
    """Failpoints are places of the world, and nothing really sleeps."""

    def at(point: Failpoint) -> None:
        world.place(point)

    guarded(int)("0")  # the thread that watches a service's code is there before the fence
    with watched(at), stamina.set_testing(True, attempts=10, cap=True), fenced(world):
        yield
