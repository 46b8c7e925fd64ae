"""The state of one long stream, folded from the start and from its newest snapshot.

The stream has 100,500 events, and its newest snapshot is 500 events before the end. Both ways read
the same topic with ``EventLog.state`` and differ only in where they begin. Each has its own reader,
since a reader that had just read 100,500 commits was seen to take half a second longer for the
short way. The stream has its partition to itself; otherwise the way from the start would take even
longer.

From the start, the time goes into fetching and decoding 100,500 commits; from the snapshot, into
one MongoDB read and some round trips to Kafka (partition ends, a seek, fetches to the end). Kafka
delivers whole batches, so a client also unpacks the part of a batch before the snapshot. The stream
is therefore written by a handler with a ``batch_size`` of 500; with 4,000 the factor varied from 34
to 160 between runs. The factor depends on the client as well: confluent-kafka reads 100,500 commits
in 0.4 s, and needs 0.2 s to detect the end of a partition.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from labkit.experiments.bench.decided import Taken
from labkit.experiments.bench.filling import fill
from labkit.experiments.bench.restart_sizes import Sizes, seconds
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import quotient
from labkit.lab import Lab
from labkit.log.event_log import EventLog
from labkit.service import Service


def snapshot_speedup(
    lab: Lab, service: Service, long: list[Taken], sizes: Sizes, progress: Progress
) -> dict[str, Any]:
    """Fill the stream and measure both ways, alternating; the first round does not count.

    ``long`` holds the commands to the stream.
    """
    total, stream = len(long), long[-1].stream
    began = time.monotonic()
    fill(
        service,
        lab,
        (taken.command for taken in long),
        total,
        lambda done: progress("events", done, total),
        snapshot_every=sizes.snapshot_every,
        batch_size=sizes.batch_size,
    )
    filled = time.monotonic() - began
    readers = {snapshots: _reader(lab, service) for snapshots in (True, False)}
    times: dict[bool, list[float]] = {True: [], False: []}
    states: list[Any] = []
    rounds = 1 + sizes.rounds
    for number in range(rounds):
        for snapshots in (True, False) if number % 2 else (False, True):
            began = time.perf_counter()
            states.append(readers[snapshots].state(stream, snapshots=snapshots))
            times[snapshots].append(time.perf_counter() - began)
        progress("states", number + 1, rounds)
    for reader in readers.values():
        reader.close()
    fast, slow = times[True][1:], times[False][1:]
    taken = lab.store.count(service.snapshots)
    return {
        "snapshot_speedup": round(quotient(statistics.median(slow), statistics.median(fast)), 1),
        "snapshots": {
            "events": long[-1].version,
            "taken": taken,
            "fill_s": round(filled, 1),
            "from_snapshot_s": seconds(fast),
            "from_start_s": seconds(slow),
            "first_round_s": {
                "from_snapshot": round(times[True][0], 4),
                "from_start": round(times[False][0], 4),
            },
            "same_state": taken == _due(long, sizes.snapshot_every)
            and all(state == long[-1].state for state in states),
        },
    }


def _due(long: list[Taken], every: int) -> int:
    """The number of commits that reach or pass a multiple of ``every`` versions."""
    return sum(t.version // every > (t.version - len(t.events)) // every for t in long)


def _reader(lab: Lab, service: Service) -> EventLog:
    source = lab.broker.source(lab.topic_name(f"{service.name}.events"))
    return EventLog(service, source, lab.store)
