"""What the Kafka clients share: limits, topic settings, the partitioner, bounded calls."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from labkit.errors import Fenced, OutcomeUnknown
from labkit.ports.broker import Batch, Record

with warnings.catch_warnings():  # kafka-python has some 200, which a learner's pytest would show
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import errors
    from kafka.partitioner.default import murmur2

T = TypeVar("T")
#: The broker aborts an open transaction of a dead worker after this time. A delivery fails earlier.
TRANSACTION_MS = 10_000
#: One look at committed offsets takes at most this long; if they are unsettled, ask again.
SETTLE_MS = 500
DELIVERY_MS = 8_000
#: After this time a group takes a silent member for dead: with the start of a new process, the
#: longest part of a take-over. Heartbeats (three in this time) come from threads of the clients, so
#: a long step ends no session. With 27 runnable processes on 2 cores, none of 8 busy workers ended.
SESSION_MS = 3_000
#: The least session of a broker (``group.min.session.timeout.ms``) that does not tell it.
LEAST_SESSION_MS = 6_000
POLL_INTERVAL_MS = 60_000
CLOSE_SECONDS = 2.0

#: zstd compresses the JSON of a batch to a tenth, much faster than gzip.
COMPRESSION = "zstd"
#: A command has at most 1 MB. Its commit repeats parts of the command and must fit too.
MAX_RECORD_BYTES = 8 << 20
#: A lab keeps all records, whatever the defaults of the broker are.
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
    """The partition that Kafka's default partitioner chooses for a key."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def spread(keys: Sequence[bytes], partitions: int) -> list[int]:
    """``partition_of`` for many keys; numpy takes a tenth of the time."""
    found = np.empty(len(keys), np.int64)
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    for length in np.unique(lengths).tolist():
        alike = np.flatnonzero(lengths == length)
        data = np.frombuffer(b"".join([keys[n] for n in alike.tolist()]), np.uint8)
        hashes = _murmur2(data.reshape(len(alike), length))
        found[alike] = (hashes & 0x7FFFFFFF) % partitions
    return found.tolist()


def _murmur2(keys: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """MurmurHash2 as in Kafka's Java client; each row is a key, all of one length."""
    count, length = keys.shape
    m, r13, r15, r24 = (np.uint32(n) for n in (0x5BD1E995, 13, 15, 24))
    h = np.full(count, 0x9747B28C ^ length, np.uint32)
    whole = length & ~3
    for k in np.ascontiguousarray(keys[:, :whole]).view("<u4").T:
        k = k * m
        h = h * m ^ (k ^ k >> r24) * m
    if whole < length:
        for n, byte in enumerate(keys[:, whole:].T):
            h ^= byte.astype(np.uint32) << np.uint32(8 * n)
        h *= m
    h = (h ^ h >> r13) * m
    return h ^ h >> r15


def offsets_of(
    batch: Batch, commits: Iterable[Record], standing: Mapping[int, int]
) -> dict[int, int]:
    """The offsets to commit; for a partition without records in the batch, its ``standing`` one."""
    found = dict(batch.positions)
    for partition in {r.partition for r in commits} - set(found):
        if partition not in standing:
            raise Fenced(f"partition {partition} has another owner")
        found[partition] = standing[partition]
    return found


def once_there(call: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Retry a call about a group until the broker has created its offsets topic."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except _NO_COORDINATOR_YET:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def bounded(call: Callable[..., T], *args: Any, seconds: float = TRANSACTION_MS / 1000) -> T:
    """Give a timeout to a call that has none; raise ``OutcomeUnknown`` after ``seconds``.

    The call runs in a daemon thread, which may hang until the process ends.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call(*args))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError:
        if done.done():  # the call itself raised TimeoutError
            raise
        raise OutcomeUnknown(
            f"{call.__name__.strip('_')}: no answer within {seconds:g} s"
        ) from None
