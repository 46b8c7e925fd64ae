"""The job of all contestants: order commands to events, and events to documents.

A command side reads ``PlaceOrder`` commands and writes one event record for each command. A view
side reads the events and writes one document for each order. The commands, the events and the
decision are those of ``labkit.experiments.bench.job``.
"""

from __future__ import annotations

import msgspec

from labkit.experiments.bench import job
from labkit.ports.store import Document
from labkit.services.orders import OrderPlaced, order_document


class Job(job.Job, frozen=True):
    """One contestant's job: the view side writes to the collection ``orders`` of ``database``.

    Both sides take at most ``batch`` records at a time.
    """

    mongo_uri: str
    database: str
    orders: str
    batch: int


_events = msgspec.json.Decoder(OrderPlaced)


def shown(value: bytes) -> Document:
    """The document of an event record."""
    return document(_events.decode(value))


def document(event: OrderPlaced) -> Document:
    """An order as the view ``orders`` shows it, without its trace."""
    found: Document = order_document(event) | {"version": 1}
    return found
