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
from labkit.run.registry import read_registry, running_runs, runs_folder
from labkit.run.settings import DEFAULTS
from labkit.services.fulfilment import PROCESSES
from labkit.services.services import CONTEXTS


@contextmanager
def joined(lab: str, run: str, service: str | None = None) -> Iterator[Lab]:
    """The lab of a run that is there, with all of its services or with one.

    Raises ``UsageError`` where there is none.
    """
    if service is not None and service not in CONTEXTS:
        raise UsageError(f"--service must be one of {', '.join(CONTEXTS)}, got {service!r}")
    registry = read_registry(runs_folder(lab) / f"{run}.json")
    client = DEFAULTS.client if registry is None else registry.client
    with Lab(lab, run=run, services=list(CONTEXTS), start=False, client=client) as every:
        topics = set(every.broker.topics())
        present = [c for c in CONTEXTS if every.topic_name(f"{c}.events") in topics]
        # Without workers a run is in no registry, but its topics tell where its commands are.
        kept = any(every.topic_name(f"{c}.commands") in topics for c in present)
        log = "kafka" if kept else "mongodb"
        stored = set(every.store.collections())
        processes = [s for s in PROCESSES if f"{s}.checkpoints" in stored and service is None]
    if not present or service not in (None, *present):
        there = f"it has {', '.join(present)}" if present else "`labkit status` lists the runs"
        raise UsageError(f"run {run!r} of lab {lab!r} has no {service or 'topics'}; {there}")
    names = [service] if service else present
    with Lab(
        lab, run=run, services=names, processes=processes, start=False, client=client, log=log
    ) as found:
        yield found


def worker_status(name: str) -> list[dict[str, Any]]:
    """The workers of a lab, for ``labkit status``: run, role, service, slot, pid, restarts, lag,
    parked.

    ``lag`` is that of the worker's group, and ``parked`` counts the streams that it holds back;
    ``None`` where a server does not answer.
    """
    rows: list[dict[str, Any]] = []
    for run in running_runs(name):
        found = read_registry(runs_folder(name) / f"{run}.json")
        if found is None:
            continue
        services = sorted({w.service for w in found.workers if w.role != "process"})
        processes = sorted({w.service for w in found.workers if w.role == "process"})
        lags: dict[tuple[str, str], int] = {}
        parked: Counter[tuple[str, str]] | None = None
        try:
            with Lab(
                name,
                run=run,
                client=found.client,
                log=found.log,
                services=services,
                processes=processes,
                partitions=found.partitions,
                start=False,
            ) as lab:
                for role, service in sorted({(w.role, w.service) for w in found.workers}):
                    lags[role, service] = lab.lag(role, service)
                parked = Counter(_holder(letter) for letter in lab.parked())
        except StackError:
            pass
        rows += [
            {
                "run": run,
                **msgspec.to_builtins(w),
                "lag": lags.get((w.role, w.service)),
                "parked": None if parked is None else parked[w.role, w.service],
            }
            for w in found.workers
        ]
    return rows


def _holder(letter: DeadLetter) -> tuple[str, str]:
    """The role and the service, or the process, of who has parked it."""
    reader = letter.by.partition(".")[0]
    if letter.by == "handler":
        return "handler", letter.service
    if letter.by.endswith(".notices"):
        return "notifier", letter.service
    return ("process", reader) if reader in PROCESSES else ("projector", letter.service)
