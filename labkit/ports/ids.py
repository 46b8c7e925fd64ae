"""Ids of commands, queries and runs."""

from __future__ import annotations

import uuid
from collections.abc import Callable

#: Makes an id that nobody else has.
Ids = Callable[[], str]


def new_id() -> str:
    """A random id."""
    return uuid.uuid4().hex
