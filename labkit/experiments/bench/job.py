"""Turn order commands into events, without labkit's handler: the work of a bare loop.

A bare loop reads ``PlaceOrder`` commands in labkit's wire form and writes one event record for each
command. The decision is the domain's own pure function; validation, deduplication and versions are
not part of it. All peers do this one fixed job, whatever service labkit itself is measured with.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.connection import Connection
from random import Random

import msgspec
from msgspec import Struct

from labkit.messages import Envelope
from labkit.run.worker import calm_gc
from labkit.services.orders import WORKLOADS, OrderPlaced, PlaceOrder
from labkit.services.orders.rules import place


class Job(Struct, frozen=True):
    """Where a bare loop reads and writes.

    ``commands`` and ``events`` are topics of ``partitions`` partitions each; ``group`` is the
    prefix of the consumer groups and transactional ids.
    """

    bootstrap: str
    commands: str
    events: str
    group: str
    partitions: int


_commands = msgspec.json.Decoder(Envelope[PlaceOrder])
_encode = msgspec.json.Encoder().encode


def commands() -> Iterator[PlaceOrder]:
    """The commands of the job, without end: new orders."""
    for command in WORKLOADS["new"].commands(Random(0)):
        assert isinstance(command, PlaceOrder)
        yield command


def event_of(command: PlaceOrder) -> OrderPlaced:
    """The event of a new order."""
    (event,) = place(None, command)
    assert isinstance(event, OrderPlaced)
    return event


def decided(value: bytes) -> bytes:
    """The event record of a command record."""
    return _encode(event_of(_commands.decode(value).body))


def play(pipe: Connection, side: str, job: Job) -> None:
    """Run one side of a job in this process, until the bench ends.

    ``side`` is ``module:function``. It is a name, so that a process imports only the framework that
    it runs.
    """
    calm_gc()
    threading.Thread(target=_exit_with_parent, args=(pipe,), daemon=True).start()
    module, _, function = side.partition(":")
    getattr(import_module(module), function)(pipe, job)


def ready(pipe: Connection) -> None:
    """Report the pid: a view owns its partitions, or a command side is about to start."""
    pipe.send_bytes(str(os.getpid()).encode())


def _exit_with_parent(pipe: Connection) -> None:
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)
