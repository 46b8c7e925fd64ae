"""A run for one measurement, dropped afterwards: its topics and its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from labkit.experiments.results import versions
from labkit.lab import Lab


@contextmanager
def scratch_run(name: str, **settings: Any) -> Iterator[Lab]:
    """A new run on the servers ``name``; ``settings`` are the arguments of ``Lab``."""
    with Lab(name, **settings) as lab:
        try:
            yield lab
        finally:
            lab.drop()


def versions_on(name: str, *clients: str) -> dict[str, str]:
    """Those of the servers ``name``, of the packages and of these Kafka clients."""
    with scratch_run(name, services=[], start=False) as lab:
        return versions(lab.server_versions(), *clients)
