"""Memory of a handler and a projector while they process a million streams.

One drain (``bulk.py``); of the built-in workload each command goes to its own stream. An observer
reads the resident set size of both processes twenty times per second (``psutil``), so it can miss a
peak shorter than 50 ms. A megabyte is 10**6 bytes.

``handler_mb`` and ``projector_mb`` are the peaks. ``projector_growth_mb`` is the median size of the
projector while the last tenth of the events becomes visible, minus that in the second tenth; as
medians, they leave out the batches that come and go. A projector keeps nothing of a stream, so its
growth must stay below ``FLAT_MB``.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec

from labkit.experiments.bench.bulk import Bulk, drain, tenths
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.observer import LOOKS_PER_SECOND
from labkit.experiments.bench.subject import about, subject
from labkit.experiments.demo import Progress
from labkit.experiments.results import archive
from labkit.run.settings import DEFAULTS
from labkit.service import Service

#: The most that a million streams may take, in megabytes.
HANDLER_MB, PROJECTOR_MB = 1_000, 300
#: The allocator keeps or releases some megabytes from batch to batch.
FLAT_MB = 30


def memory(
    name: str,
    client: str,
    commands: int,
    progress: Progress,
    report: Callable[[str], None],
    service: str | Service | None = None,
) -> dict[str, Any]:
    """Run the bench and archive its result.

    Raises ``UsageError`` for a service that cannot be measured.
    """
    import pandas as pd

    measured = subject("memory", service)

    settings = {
        "commands": commands,
        "partitions": DEFAULTS.partitions,
        "batch_size": DEFAULTS.batch_size,
        "looks_per_second": LOOKS_PER_SECOND,
        **about(measured),
    }
    with measuring(name, report, "memory", client=client, seed=None, settings=settings) as found:
        report(f"{commands:,} commands of service {measured.name!r}")
        run = drain(
            name, client, measured, commands, lambda done, all: progress("commands", done, all)
        )
    found["versions"] = run.versions
    found |= summary(run)
    looks = pd.json_normalize([msgspec.to_builtins(look) for look in run.looks])
    found["folder"] = str(archive("bench-memory", found, {"looks": looks}))
    return found


def summary(run: Bulk) -> dict[str, Any]:
    """The figures of the looks, in megabytes."""
    parts = tenths(run.looks, run.commands)
    peaks = {
        role: [max(look.memory.get(role, 0) for look in part) / 1e6 for part in parts]
        for role in ("handler", "projector")
    }
    start, end = (
        median(look.memory.get("projector", 0) for look in part) / 1e6
        for part in (parts[1], parts[-1])
    )
    most = {role: max(look.memory.get(role, 0) for look in run.looks) / 1e6 for role in peaks}
    return {
        "handler_mb": round(most["handler"], 1),
        "projector_mb": round(most["projector"], 1),
        "projector_growth_mb": round(end - start, 1),
        "targets": {
            "handler_mb": {"at_most": HANDLER_MB, "reached": most["handler"] <= HANDLER_MB},
            "projector_mb": {"at_most": PROJECTOR_MB, "reached": most["projector"] <= PROJECTOR_MB},
            "projector_growth_mb": {"at_most": FLAT_MB, "reached": end - start <= FLAT_MB},
        },
        "peaks_of_tenths_mb": {r: [round(mb, 1) for mb in some] for r, some in peaks.items()},
        "run": run.row(),
        "ok": not run.wrong,
    }
