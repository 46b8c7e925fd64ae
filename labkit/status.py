"""The workers that live now, and how far behind they are."""

from __future__ import annotations

from typing import Any

import msgspec

from labkit.errors import StackError
from labkit.lab import Lab
from labkit.run import running_runs, runs_folder
from labkit.runtime import read_registry


def worker_status(name: str) -> list[dict[str, Any]]:
    """The workers of a lab, for ``labkit status``: run, role, context, slot, pid, restarts, lag.

    ``lag`` is that of the worker's group; ``None`` where a server does not answer.
    """
    rows: list[dict[str, Any]] = []
    for run in running_runs(name):
        found = read_registry(runs_folder(name) / f"{run}.json")
        if found is None:
            continue
        contexts = sorted({w.context for w in found.workers if w.role != "saga"})
        sagas = sorted({w.context for w in found.workers if w.role == "saga"})
        lags: dict[tuple[str, str], int] = {}
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
        except StackError:
            pass
        rows += [
            {"run": run, **msgspec.to_builtins(w), "lag": lags.get((w.role, w.context))}
            for w in found.workers
        ]
    return rows
