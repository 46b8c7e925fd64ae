"""The job that all contestants do, and what is the same for each: decision, document, start.

A command side reads ``PlaceOrder`` commands in labkit's wire form, makes the event, and writes one
record a command to the events topic. A view side reads these and writes one document an order. The
decision is the domain's own pure function; what labkit does around it (it validates, looks for
duplicates, counts versions) is no part of the job.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import msgspec
from msgspec import Struct

from labkit.messages import Envelope
from labkit.ports.store import Document
from labkit.run.worker import calm_gc
from labkit.services.orders import OrderPlaced, PlaceOrder, place
from labkit.services.views import order_document


class Job(Struct, frozen=True):
    """One contestant's: where to read and write, and how much at a time.

    ``commands`` and ``events`` are topics, ``orders`` is a collection of ``database``, and
    ``group`` begins the names of the consumer groups.
    """

    bootstrap: str
    mongo_uri: str
    database: str
    commands: str
    events: str
    orders: str
    group: str
    partitions: int
    batch: int


_commands = msgspec.json.Decoder(Envelope[PlaceOrder])
_events = msgspec.json.Decoder(OrderPlaced)
_encode = msgspec.json.Encoder().encode


def event_of(command: PlaceOrder) -> OrderPlaced:
    """What a new order leads to."""
    (event,) = place(None, command)
    assert isinstance(event, OrderPlaced)
    return event


def decided(value: bytes) -> bytes:
    """A command's record to the event's."""
    return _encode(event_of(_commands.decode(value).body))


def shown(value: bytes) -> Document:
    """An event's record to the order's document."""
    return document(_events.decode(value))


def document(event: OrderPlaced) -> Document:
    """An order as ``orders.view.orders`` shows it, without its trace."""
    return order_document(event) | {"version": 1}


def play(pipe: Connection, side: str, job: Job) -> None:
    """The main of a process: one side, by its name (``.bare:confluent_view``), until it is ended.

    When the bench is gone, it ends by itself.
    """
    calm_gc()
    threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
    module, _, function = side.partition(":")
    getattr(import_module(module, __package__), function)(pipe, job)


def ready(pipe: Connection) -> None:
    """A view side owns its partitions; a command side is about to begin."""
    pipe.send_bytes(str(os.getpid()).encode())


def _watch(pipe: Connection) -> Any:
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)
