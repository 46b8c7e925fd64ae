"""What the Kafka clients have in common: limits, the settings of a topic, the partitioner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import errors
from kafka.partitioner.default import murmur2

from labkit.errors import Fenced, OutcomeUnknown
from labkit.ports import Batch, Record

#: A dead worker's open transaction ends by itself after this time; a delivery gives up before.
TRANSACTION_MS = 10_000
DELIVERY_MS = 8_000
SESSION_MS = 6_000
POLL_INTERVAL_MS = 60_000
CLOSE_SECONDS = 2.0

#: kafka-python computes the checksum of each byte in Python. Of the JSON of a batch zstd leaves a
#: tenth, at a speed that gzip, which every client has, is far from.
COMPRESSION = "zstd"
#: A command has at most 1 MB; its commit repeats some of it and must fit as well.
MAX_RECORD_BYTES = 8 << 20
#: A lab never forgets, whatever the broker's defaults are.
TOPIC_CONFIG = {
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    "max.message.bytes": str(MAX_RECORD_BYTES),
}

_NO_COORDINATOR_YET = (
    errors.CoordinatorNotAvailableError,
    errors.CoordinatorLoadInProgressError,
    errors.NotCoordinatorError,
)


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's default partitioner puts a key."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def offsets_of(
    batch: Batch, commits: Iterable[Record], standing: Mapping[int, int]
) -> dict[int, int]:
    """What a transaction commits for each partition: of one without records, where it stands."""
    found = dict(batch.positions)
    for partition in {r.partition for r in commits} - set(found):
        if partition not in standing:
            raise Fenced(f"partition {partition} has gone to another owner")
        found[partition] = standing[partition]
    return found


def once_there(call: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What a call about a group returns, once the broker has made the topic of the offsets."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except _NO_COORDINATOR_YET:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def bounded(call: Callable[..., None], *args: Any, seconds: float = TRANSACTION_MS / 1000) -> None:
    """Run a call that has no time-out of its own; after ``seconds`` its outcome is unknown."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call(*args)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise OutcomeUnknown(f"no answer to {call.__name__} within {seconds:g} s")
    if failed:
        raise failed[0]
