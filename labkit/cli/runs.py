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
from labkit.services.contexts import CONTEXTS
from labkit.services.fulfilment import PROCESSES


@contextmanager
def joined(lab: str, run: str, context: str | None = None) -> Iterator[Lab]:
    """The lab of a run that is there, with all of its services or with one.

    Raises ``UsageError`` where there is none.
    """
    if context is not None and context not in CONTEXTS:
        raise UsageError(f"--context must be one of {', '.join(CONTEXTS)}, got {context!r}")
    registry = read_registry(runs_folder(lab) / f"{run}.json")
    client = DEFAULTS.client if registry is None else registry.client
    with Lab(lab, run=run, contexts=list(CONTEXTS), start=False, client=client) as every:
        topics = set(every.broker.topics())
        present = [c for c in CONTEXTS if every.topic_name(f"{c}.events") in topics]
        # Without workers a run is in no registry, but its topics tell where its commands are.
        kept = any(every.topic_name(f"{c}.commands") in topics for c in present)
        log = "kafka" if kept else "mongodb"
        stored = set(every.store.collections())
        sagas = [s for s in PROCESSES if f"{s}.checkpoints" in stored and context is None]
    if not present or context not in (None, *present):
        there = f"it has {', '.join(present)}" if present else "`labkit status` lists the runs"
        raise UsageError(f"run {run!r} of lab {lab!r} has no {context or 'topics'}; {there}")
    names = [context] if context else present
    with Lab(
        lab, run=run, contexts=names, sagas=sagas, start=False, client=client, log=log
    ) as found:
        yield found


def worker_status(name: str) -> list[dict[str, Any]]:
    """The workers of a lab, for ``labkit status``: run, role, context, slot, pid, restarts, lag,
    parked.

    ``lag`` is that of the worker's group, and ``parked`` counts the streams that it holds back;
    ``None`` where a server does not answer.
    """
    rows: list[dict[str, Any]] = []
    for run in running_runs(name):
        found = read_registry(runs_folder(name) / f"{run}.json")
        if found is None:
            continue
        contexts = sorted({w.context for w in found.workers if w.role != "saga"})
        sagas = sorted({w.context for w in found.workers if w.role == "saga"})
        lags: dict[tuple[str, str], int] = {}
        parked: Counter[tuple[str, str]] | None = None
        try:
            with Lab(
                name,
                run=run,
                client=found.client,
                log=found.log,
                contexts=contexts,
                sagas=sagas,
                partitions=found.partitions,
                start=False,
            ) as lab:
                for role, context in sorted({(w.role, w.context) for w in found.workers}):
                    lags[role, context] = lab.lag(role, context)
                parked = Counter(_holder(letter) for letter in lab.parked())
        except StackError:
            pass
        rows += [
            {
                "run": run,
                **msgspec.to_builtins(w),
                "lag": lags.get((w.role, w.context)),
                "parked": None if parked is None else parked[w.role, w.context],
            }
            for w in found.workers
        ]
    return rows


def _holder(letter: DeadLetter) -> tuple[str, str]:
    """The role and the context, or the process, of who has parked it."""
    reader = letter.by.partition(".")[0]
    if letter.by == "handler":
        return "handler", letter.context
    if letter.by.endswith(".notices"):
        return "notifier", letter.context
    return ("saga", reader) if reader in PROCESSES else ("projector", letter.context)
