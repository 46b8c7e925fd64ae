"""What a handler and a projector hold in memory, once a million streams have passed through them.

One drain (``bulk.py``): each command is of a stream of its own. An observer reads the resident set
size of both processes twenty times a second (``psutil``), so a peak that is shorter than 50 ms may
be missed. A megabyte is 10**6 bytes.

``handler_mb`` and ``projector_mb`` are the peaks. ``projector_growth_mb`` is what the projector
holds while the last tenth of the events becomes visible, less what it held in the second tenth, by
the medians of the looks: a batch that is there at one look and not at the next is no growth. A
projector keeps nothing of a stream, so it has to stay flat: below ``FLAT_MB``.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec

from labkit import stack
from labkit.experiments.bench.bulk import Bulk, drain, tenths
from labkit.experiments.bench.preloaded import LOOKS_PER_SECOND
from labkit.experiments.demo import Progress
from labkit.experiments.results import archive, load_average, machine
from labkit.run.settings import DEFAULTS

#: What of a million streams may be held, in megabytes.
HANDLER_MB, PROJECTOR_MB = 1_000, 300
#: What the allocator keeps or gives back from batch to batch comes to some megabytes.
FLAT_MB = 30


def memory(
    name: str, client: str, commands: int, progress: Progress, report: Callable[[str], None]
) -> dict[str, Any]:
    """On real servers; the result is the JSON.

    Starts servers that are not up, and stops what it started. Raises ``StackError`` and
    ``TimedOut`` where servers or workers fail.
    """
    with stack.borrowed(name, report) as servers:
        found: dict[str, Any] = {
            "bench": "memory",
            "client": client,
            "seed": None,
            "settings": {
                "commands": commands,
                "partitions": DEFAULTS.partitions,
                "batch_size": DEFAULTS.batch_size,
                "looks_per_second": LOOKS_PER_SECOND,
            },
            "machine": machine(),
            "load_average_before": load_average(),
            "stack": servers.kind,
        }
        report(f"{commands:,} commands, each to a stream of its own")
        run = drain(name, client, commands, lambda done, all: progress("commands", done, all))
        found["load_average_after"] = load_average()
    found["versions"] = run.versions
    found |= summary(run)
    import pandas as pd

    looks = pd.json_normalize([msgspec.to_builtins(look) for look in run.looks])
    archive("bench-memory", found, {"looks": looks})
    return found


def summary(run: Bulk) -> dict[str, Any]:
    """What the looks come to, in megabytes."""
    parts = tenths(run.looks, run.commands)
    peaks = {
        role: [max(look.memory.get(role, 0) for look in part) / 1e6 for part in parts]
        for role in ("handler", "projector")
    }
    start, end = (
        median(look.memory.get("projector", 0) for look in part) / 1e6
        for part in (parts[1], parts[-1])
    )
    most = {
        role: max(look.memory.get(role, 0) for look in run.looks) / 1e6
        for role in ("handler", "projector")
    }
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
