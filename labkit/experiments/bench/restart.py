"""The gain from snapshots and checkpoints: the state of a long stream, and a handler's restart.

Two ratios (``snapshot_speedup.py`` and ``takeover.py``), each measured in one process, alternating,
after one round that does not count (connections, metadata, the servers' caches). In all arms the
servers have recent data in their caches; nothing is read from a cold disk. The commands are those
of a workload that the rules accept; it must have long streams (``long_streams.py``). A real handler
fills the topics, with confluent-kafka where it is installed, which is three times as fast; the
measured code runs on the requested client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from labkit.experiments.bench.long_streams import even_streams, one_stream
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.restart_sizes import Sizes
from labkit.experiments.bench.snapshot_speedup import snapshot_speedup
from labkit.experiments.bench.subject import about, subject
from labkit.experiments.bench.takeover import takeovers
from labkit.experiments.demo import Progress
from labkit.experiments.processes import fast_client
from labkit.experiments.results import archive, versions
from labkit.experiments.scratch import scratch_run
from labkit.run.worker import calm_gc
from labkit.service import Service


def restart(
    name: str,
    client: str,
    sizes: Sizes,
    progress: Progress,
    report: Callable[[str], None],
    service: str | Service | None = None,
) -> dict[str, Any]:
    """Run both parts.

    Raises ``UsageError`` for a service that cannot be measured, or whose streams are too short.
    """
    measured = subject("restart", service)
    calm_gc()
    long = one_stream(measured, sizes.events + sizes.events_after)
    even = even_streams(measured, sizes.streams, sizes.times_longer + 1)
    services = [measured.service]
    more = {
        "client": client,
        "fill_client": fast_client(),
        "sizes": msgspec.to_builtins(sizes),
        "streams": sizes.streams,
        "seed": None,  # nothing is drawn
        "settings": about(measured),
    }
    with measuring(name, report, "restart", **more) as found:
        with scratch_run(name, client=client, services=services) as lab:
            found["versions"] = versions(lab.server_versions(), "kafka-python", fast_client())
            report(f"run {lab.run}: one stream of {sizes.events + sizes.events_after:,} events")
            found |= snapshot_speedup(lab, measured.service, long, sizes, progress)
        with (
            scratch_run(name, client=client, services=services) as short,
            scratch_run(name, client=client, services=services) as longer,
        ):
            report(f"runs {short.run} and {longer.run}: {sizes.streams:,} streams each")
            found |= takeovers(short, longer, measured.service, even, sizes, progress)
    found["same_state"] = found["snapshots"]["same_state"] and found["restarts"]["same_state"]
    found["folder"] = str(archive("bench-restart", found))
    return found
