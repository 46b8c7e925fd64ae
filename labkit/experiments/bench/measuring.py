"""The envelope of a bench's result: what was measured, on which machine, under which load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labkit import stack
from labkit.experiments.processes import fast_client
from labkit.experiments.results import load_average, machine


@contextmanager
def measuring(
    name: str, report: Callable[[str], None], bench: str, **about: Any
) -> Iterator[dict[str, Any]]:
    """The result of ``bench``, to be filled while the servers ``name`` are up.

    ``about`` holds the client, the seed and the settings; ``harness_client`` is the client of
    what only sends, listens or observes. Starts servers that are not up, and stops those that it
    started. Raises ``StackError`` and ``TimedOut`` where they fail.
    """
    with stack.borrowed(name, report) as servers:
        found: dict[str, Any] = {
            "bench": bench,
            **about,
            "harness_client": fast_client(),
            "machine": machine(),
            "load_average_before": load_average(),
            "stack": servers.kind,
        }
        yield found
        found["load_average_after"] = load_average()
