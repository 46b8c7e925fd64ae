"""A run for one measurement, dropped afterwards: its topics and its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from labkit.lab import Lab


@contextmanager
def scratch_run(name: str, **settings: Any) -> Iterator[Lab]:
    """A new run on the servers ``name``; ``settings`` are the arguments of ``Lab``."""
    with Lab(name, **settings) as lab:
        try:
            yield lab
        finally:
            lab.drop()
