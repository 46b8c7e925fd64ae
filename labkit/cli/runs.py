"""The runs of a lab, from outside: what works in them, and how to join one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from labkit.errors import StackError, UsageError
from labkit.lab import Lab
from labkit.log.dead_letter import DeadLetter
from labkit.run.registry import live_runs


@contextmanager
def joined(lab: str, run: str, service: str | None = None) -> Iterator[Lab]:
    """The lab of a run that exists; raises ``UsageError`` if it does not, or has no ``service``."""
    with Lab(lab, run=run, start=False) as found:
        if service is not None:
            found.of.service(service)
        yield found


def worker_status(name: str) -> list[dict[str, Any]]:
    """The workers of a lab, for ``labkit status``: run, role, service, slot, pid, restarts, lag,
    parked.

    ``lag`` is that of the worker's group, and ``parked`` counts the streams that it holds back;
    ``None`` if a server does not answer.
    """
    rows: list[dict[str, Any]] = []
    for run, workers in live_runs(name).items():
        lags: dict[tuple[str, str], int] = {}
        parked: Counter[tuple[str, str]] | None = None
        try:
            with Lab(name, run=run, start=False) as lab:
                for role, service in sorted({(w.role, w.service) for w in workers}):
                    lags[role, service] = lab.lag(role, service)
                parked = Counter(_holder(letter, lab) for letter in lab.parked())
        except (StackError, UsageError):  # a service of somebody's whose module is elsewhere
            pass
        rows += [
            {
                "run": run,
                **msgspec.to_builtins(w),
                "lag": lags.get((w.role, w.service)),
                "parked": None if parked is None else parked[w.role, w.service],
            }
            for w in workers
        ]
    return rows


def _holder(letter: DeadLetter, lab: Lab) -> tuple[str, str]:
    """The role and the service, or the process, of who has parked it."""
    reader = letter.by.partition(".")[0]
    if letter.by == "handler":
        return "handler", letter.service
    if letter.by.endswith(".notices"):
        return "notifier", letter.service
    return ("process", reader) if reader in lab.processes else ("projector", letter.service)
