"""What is told of a parked stream, whoever parked it."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct


class DeadLetter(Struct, frozen=True):
    """A parked stream: ``waiting`` commands, of which the one at offset ``head`` is stuck.

    ``by`` is who parked it: the handler, or a reader. What waits there are commits.
    """

    service: str
    stream: str
    partition: int
    head: int
    waiting: int
    since: datetime
    reason: str
    by: str = "handler"
