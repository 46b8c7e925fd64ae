"""Stream analysis on Quix Streams: four pipelines over topics.

::

    raw ──> validate ──> orders   (key: order) ──> settle <── payments
                    ├──> sales    (key: product) ──> revenue, top ──> late
                    └──> rejects

``sales.py`` has the rules as plain functions, ``pipelines.py`` the recipes. Each pipeline is
exactly-once. Its results, state and offsets are one Kafka transaction. Its documents in MongoDB
have ids that are derived from the records, so a pipeline that restarts after a crash replaces the
documents of the crashed one. The state lives in a folder of one run of the pipeline, and Quix'
changelog topics restore it.
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
from labkit.log.partition import peek
from labkit.ports.broker import Broker, Record
from labkit.ports.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

from labkit.streams.backlog import unread
from labkit.streams.pipelines import PIPELINES
from labkit.streams.wiring import COLLECTIONS, TOPICS, Wiring

with warnings.catch_warnings(record=True):  # an import of authlib warns about itself
    from quixstreams import Application

# librdkafka logs errors that it retries; a fatal error raises an exception anyway.
logging.getLogger("quixstreams.kafka").setLevel(logging.ERROR)

#: A pipeline has failed if it receives nothing for this long although records are left.
PATIENCE_SECONDS = 60.0
#: A reader that receives nothing for this long is blocked by an open transaction.
STUCK_SECONDS = 2.0

GUARANTEE: Literal["exactly-once", "at-least-once"] = "exactly-once"
#: As for the other clients: the session of a dead pipeline expires, and its successor, which has
#: the same transactional id, aborts its open transaction.
CONSUMER = {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_500}
PRODUCER = {"transaction.timeout.ms": 10_000}
COMMIT_SECONDS, COMMIT_EVERY = 1.0, 1_000


class Streams:
    """Stream analysis over the topics of one run.

    Args:
        bootstrap: the host:port of Kafka.
        prefix: the prefix of topics, groups and transactional ids.
        broker, store: those of the run.
        partitions: the number of partitions of each topic; a join needs equal numbers.
        folder: for the state of a running pipeline.
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
        """The folder that holds the states of the running pipelines."""
        return self._folder

    def prepare(self) -> None:
        """Create the missing topics and collections."""
        self._broker.create({self.topic_name(name): self._partitions for name in TOPICS})
        for name in COLLECTIONS:
            key = "window" if name in ("revenue", "top", "late") else "_id"
            self._store.index(f"streams.{name}", [(key, 1)])

    def send(self, name: str, records: Iterable[tuple[str, bytes]]) -> None:
        """Write raw records (key, value) to a topic, and wait for the acknowledgements."""
        sender = self._broker.sender()
        try:
            for key, value in records:
                sender.send(self.topic_name(name), key.encode(), value)
            sender.flush(60)
        finally:
            sender.close()

    def records(self, name: str) -> list[Record]:
        """The committed records of a topic, in the order of partition and offset."""
        with closing(self._broker.source(self.topic_name(name))) as source:
            return peek(source, STUCK_SECONDS)[0]

    def run(self, name: str, each: Callable[[], None] = lambda: None) -> int:
        """Run a pipeline until it has read all records of its start; return their number.

        It runs in the main thread, and SIGINT or SIGTERM stops it early. It calls ``each`` after
        every record. Raises ``TimedOut`` if it ends before it has read all records.
        """
        if (pipeline := PIPELINES.get(name)) is None:
            raise UsageError(f"no pipeline {name!r}; there are {', '.join(PIPELINES)}")
        left = unread(self._broker, self.topic_name(name), map(self.topic_name, pipeline.reads))
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
            raise TimedOut(
                f"pipeline {name!r} ended before it had read all records: run it again; "
                f"left: {sorted(left)}"
            )
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

    @contextmanager
    def _state_folder(self) -> Iterator[Path]:
        """A new folder for one run; ``drop`` of the lab removes the folder of a killed run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another run still uses it
                self._folder.rmdir()


@contextmanager
def _signals() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM, which Quix replaces."""
    before: Mapping[int, Any] = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def dying(after: int) -> Callable[[], None]:
    """For ``Streams.run``: SIGKILL this process after ``after`` records."""
    left = after

    def each() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return each
