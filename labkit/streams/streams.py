"""Stream analysis on Quix Streams: four pipelines over topics, each one short recipe.

::

    raw ──> validate ──> orders   (key: order) ──> settle <── payments
                    ├──> sales    (key: product) ──> revenue, top ──> late
                    └──> rejects

What the recipes ask is in ``sales.py``, as plain functions. Each pipeline is exactly-once: its
results, its state and its offsets are one Kafka transaction, and its documents in MongoDB have ids
that follow from the records, so whatever a dead life wrote is written again, and never beside it.
State lives in a folder of one run of the pipeline and comes back from Quix' changelog topics.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit.errors import TimedOut, UsageError
from labkit.log.partition import peek, read_partition
from labkit.ports.broker import Broker, Record, Source
from labkit.ports.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

from labkit.streams.pipelines import (
    COLLECTIONS,
    PIPELINES,
    TOPICS,
    Wiring,
)

with warnings.catch_warnings(record=True):  # authlib, deep below, has one for its own authors
    from quixstreams import Application


# What librdkafka tries again by itself is no news; what fails is an exception all the same.
logging.getLogger("quixstreams.kafka").setLevel(logging.ERROR)


#: A pipeline to which nothing comes for so long, though there is more, has failed.
PATIENCE_SECONDS = 60.0


#: A reader that got nothing for so long is stuck behind a transaction that is open.
STUCK_SECONDS = 2.0


GUARANTEE: Literal["exactly-once", "at-least-once"] = "exactly-once"
#: As the other clients have them: a dead pipeline is known after its session, and what it left
#: open ends with the next life, which has the same transactional id.
CONSUMER = {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_500}
PRODUCER = {"transaction.timeout.ms": 10_000}
COMMIT_SECONDS, COMMIT_EVERY = 1.0, 1_000


class Streams:
    """Stream analysis over the topics of one run.

    Args:
        bootstrap: of the Kafka.
        prefix: of the topics, the groups and the transactional ids: the run's names.
        broker, store: of the run.
        partitions: of each topic; what is joined must have the same number.
        folder: for the state of a pipeline as long as it runs.
    """

    def __init__(
        self,
        bootstrap: str,
        prefix: str,
        broker: Broker,
        store: Store,
        partitions: int,
        folder: Path,
    ) -> None:
        self._bootstrap, self._prefix, self._folder = bootstrap, prefix, folder
        self._broker, self._store, self._partitions = broker, store, partitions

    def topic_name(self, name: str) -> str:
        """``raw`` -> ``<lab>.<run>.streams.raw``."""
        return self._prefix + name

    @property
    def folder(self) -> Path:
        """Where the states of the pipelines that run now are."""
        return self._folder

    def prepare(self) -> None:
        """Create the topics and collections that are not there yet."""
        self._broker.create({self.topic_name(name): self._partitions for name in TOPICS})
        for name in COLLECTIONS:
            key = "window" if name in ("revenue", "top", "late") else "_id"
            self._store.index(f"streams.{name}", [(key, 1)])

    def send(self, name: str, records: Iterable[tuple[str, bytes]]) -> None:
        """Write raw records (key, value) to a topic, acknowledged."""
        sender = self._broker.sender()
        try:
            for key, value in records:
                sender.send(self.topic_name(name), key.encode(), value)
            sender.flush(60)
        finally:
            sender.close()

    def records(self, name: str) -> list[Record]:
        """What a careful reader sees of a topic, in the order of partition and offset."""
        with closing(self._broker.source(self.topic_name(name))) as source:
            return peek(source, STUCK_SECONDS)[0]

    def run(self, name: str, each: Callable[[], None] = lambda: None) -> int:
        """Run a pipeline until it has read all that was there at its start; how many records.

        It runs in the main thread, whose SIGINT and SIGTERM end it early. ``each`` is called after
        each record. Raises ``TimedOut`` where it ends before it has read all.
        """
        if (pipeline := PIPELINES.get(name)) is None:
            raise UsageError(f"no pipeline {name!r}; there are {', '.join(PIPELINES)}")
        left = self._unread(name, pipeline.reads)
        if not left:
            return 0
        done = 0

        def processed(topic: str, partition: int, offset: int) -> None:
            nonlocal done
            done += 1
            each()
            if offset >= left.get((topic, partition), offset + 1):
                del left[topic, partition]
                if not left:
                    app.stop()

        with self._state_folder() as folder, _signals():
            app = self._application(name, folder, processed)
            pipeline.recipe(Wiring(app, self.topic_name, self._store))
            app.run(timeout=PATIENCE_SECONDS, collect=False)
        if left:
            raise TimedOut(f"pipeline {name!r} ended before it had read all; left: {sorted(left)}")
        return done

    def _application(self, name: str, folder: Path, processed: Any) -> Application:
        return Application(
            self._bootstrap,
            consumer_group=self.topic_name(name),
            auto_offset_reset="earliest",
            processing_guarantee=GUARANTEE,
            commit_interval=COMMIT_SECONDS,
            commit_every=COMMIT_EVERY,
            consumer_extra_config=dict(CONSUMER),
            producer_extra_config={**PRODUCER, "transactional.id": self.topic_name(name)},
            consumer_poll_timeout=0.1,
            state_dir=folder,
            on_message_processed=processed,
            loglevel=None,
        )

    def _unread(self, name: str, topics: Iterable[str]) -> dict[tuple[str, int], int]:
        """The last record of each partition in which the group has not read it yet."""
        found: dict[tuple[str, int], int] = {}
        for topic in map(self.topic_name, topics):
            committed = self._broker.committed(topic, self.topic_name(name), settled=True)
            with closing(self._broker.source(topic)) as source:
                for partition, end in source.ends().items():
                    last = _last(source, partition, end)
                    if last >= max(committed.get(partition, 0), 0):
                        found[topic, partition] = last
        return found

    @contextmanager
    def _state_folder(self) -> Iterator[Path]:
        """Two lives never share one, and each leaves none; what a killed one left, drop takes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another life is in it
                self._folder.rmdir()


def _last(source: Source, partition: int, end: int) -> int:
    """The offset of the last record that a careful reader sees, or -1.

    The end of a topic is no record where transactions end in markers, so this looks back, farther
    each time.
    """
    back, start = 64, end
    while start > 0:
        start, back = max(0, end - back), back * 8
        last = -1
        for records in read_partition(source, partition, start, end=end):
            last = records[-1].offset
        if last >= 0:
            return last
    return -1


@contextmanager
def _signals() -> Iterator[None]:
    """Quix takes SIGINT and SIGTERM for itself; afterwards they are again what they were."""
    before: Mapping[int, Any] = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def dying(after: int) -> Callable[[], None]:
    """For ``Streams.run``: SIGKILL this process when it has processed so many records."""
    left = after

    def each() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return each
