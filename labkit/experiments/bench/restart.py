"""The gain from snapshots and checkpoints: the state of a long stream, and a handler's restart.

Two ratios (``snapshot_speedup.py`` and ``takeover.py``), each measured in one process, alternating,
after one round that does not count (connections, metadata, the servers' caches). In all arms the
servers have recent data in their caches; nothing is read from a cold disk. A real handler fills the
topics, with confluent-kafka where it is installed, which is three times as fast; the measured code
runs on the requested client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from labkit.experiments.bench.filling import fill_client
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.restart_sizes import Sizes
from labkit.experiments.bench.snapshot_speedup import snapshot_speedup
from labkit.experiments.bench.takeover import takeovers
from labkit.experiments.demo import Progress
from labkit.experiments.results import versions
from labkit.experiments.scratch import scratch_run
from labkit.run.worker import calm_gc

SERVICES = ["catalog"]


def restart(
    name: str,
    client: str,
    sizes: Sizes,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Run both parts."""
    calm_gc()
    about = {
        "client": client,
        "fill_client": fill_client(client),
        "sizes": msgspec.to_builtins(sizes),
        "streams": sizes.streams,
    }
    with measuring(name, report, "restart", **about) as found:
        with scratch_run(name, client=client, services=SERVICES) as lab:
            found["versions"] = versions(
                lab.server_versions(), "kafka-python", fill_client(lab.settings.client)
            )
            report(f"run {lab.run}: one stream of {sizes.events + sizes.events_after:,} events")
            found |= snapshot_speedup(lab, sizes, progress)
        with (
            scratch_run(name, client=client, services=SERVICES) as short,
            scratch_run(name, client=client, services=SERVICES) as long,
        ):
            report(f"runs {short.run} and {long.run}: {sizes.streams:,} streams each")
            found |= takeovers(short, long, sizes, progress)
    found["same_state"] = found["snapshots"]["same_state"] and found["restarts"]["same_state"]
    return found
