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

import msgspec
from msgspec import Struct, structs

from labkit.errors import TimedOut, UsageError
from labkit.eventlog import peek, read
from labkit.ports import Broker, Document, Record, Source, Store, Writes
from labkit.sales import REVENUE, TOP, Late, Order, Payment, Reject, Settlement, judge, settle

with warnings.catch_warnings(record=True):  # authlib, deep below, has one for its own authors
    from quixstreams import Application
    from quixstreams.dataframe.windows import Count, Sum
    from quixstreams.sinks import BatchingSink, SinkBatch

# What librdkafka tries again by itself is no news; what fails is an exception all the same.
logging.getLogger("quixstreams.kafka").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quixstreams import State
    from quixstreams.dataframe import StreamingDataFrame
    from quixstreams.models import Topic

#: The topics of stream analysis; ``raw`` and ``payments`` are written by others.
TOPICS = ("raw", "payments", "orders", "sales", "rejects", "revenue", "top", "late", "settled")
#: The topics whose records are kept as documents, too: the newest of each id.
COLLECTIONS = ("rejects", "revenue", "top", "late", "settled")

#: A pipeline to which nothing comes for so long, though there is more, has failed.
PATIENCE_SECONDS = 60.0
#: A reader that got nothing for so long is stuck behind a transaction that is open.
STUCK_SECONDS = 2.0
GUARANTEE: Literal["exactly-once", "at-least-once"] = "exactly-once"
COMMIT_SECONDS, COMMIT_EVERY = 1.0, 1_000
#: As the other clients have them: a dead pipeline is known after its session, and what it left
#: open ends with the next life, which has the same transactional id.
CONSUMER = {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_500}
PRODUCER = {"transaction.timeout.ms": 10_000}


class Documents(BatchingSink):
    """Keeps the newest record of each id, in one transaction of the store a batch.

    Quix' own MongoDB sink upserts one by one and never closes its client. Here, as there, the
    documents are written *before* the Kafka transaction: after a crash between the two they are
    written once more, with the same ids.
    """

    def __init__(self, store: Store, collection: str) -> None:
        super().__init__()
        self._store, self._collection = store, collection

    def write(self, batch: SinkBatch) -> None:
        """Insert what is new, replace what is not."""
        newest = {item.value["id"]: {"_id": item.value["id"], **item.value} for item in batch}
        known = self._store.load(self._collection, newest)
        writes = Writes(
            inserts={self._collection: [d for id, d in newest.items() if id not in known]},
            replaces={self._collection: [d for id, d in newest.items() if id in known]},
        )
        self._store.advance("streams.checkpoints", [], writes)


class Wiring:
    """What a recipe is given: the topics of its run by their short names."""

    def __init__(self, app: Application, topic_name: Callable[[str], str], store: Store) -> None:
        self._app, self._topic_name, self._store = app, topic_name, store

    def read(
        self,
        name: str,
        values: Literal["json", "bytes"] = "json",
        keys: Literal["str", "bytes"] = "bytes",
    ) -> StreamingDataFrame:
        """The records of a topic; what others have written is bytes until it is judged."""
        topic = self._topic_name(name)
        return self._app.dataframe(
            self._app.topic(topic, key_deserializer=keys, value_deserializer=values)
        )

    def write(self, frame: StreamingDataFrame, name: str, key: str = "id") -> None:
        """To a topic, keyed by a field, and where documents are kept of it, to its collection."""
        topic: Topic = self._app.topic(self._topic_name(name), key_serializer="str")
        frame = frame.to_topic(topic, lambda value: value[key])
        if name in COLLECTIONS:
            frame.sink(Documents(self._store, f"streams.{name}"))


# --- the pipelines


def validate(at: Wiring) -> None:
    """Raw bytes to orders and sales, each with its own instant; what is neither, to the rejects.

    The key decides what can be counted together. So the same order goes to two topics: by its id,
    to meet its payment, and by its product, to be added up.
    """
    judged = at.read("raw", "bytes").apply(judge)
    orders = judged.filter(lambda found: isinstance(found, Order)).apply(structs.asdict)
    orders = orders.set_timestamp(lambda order, *_: order["at"])
    at.write(orders, "orders", key="id")
    at.write(orders, "sales", key="product")
    at.write(_rejected(judged), "rejects")


def revenue(at: Wiring) -> None:
    """Tumbling windows: what was sold in each minute, by product; summed on read."""
    sales, missed = at.read("sales", keys="str"), Missed("revenue")
    window = sales.tumbling_window(REVENUE.width, REVENUE.grace, "revenue", on_late=missed.note)
    _add_up(at, sales, window, missed)


def top(at: Wiring) -> None:
    """Hopping windows: what sold best in ten minutes, looked at every five."""
    sales, missed = at.read("sales", keys="str"), Missed("top")
    window = sales.hopping_window(TOP.width, TOP.step, TOP.grace, "top", on_late=missed.note)
    _add_up(at, sales, window, missed)


def settlement(at: Wiring) -> None:
    """Orders and payments, joined by a state of our own, that holds what has come of either.

    Quix' interval join finds a payment only if its order was *read* before it; the state does not
    mind which comes first, so its result depends on what is in the topics and on nothing else.
    """
    judged = at.read("payments", "bytes").apply(
        lambda raw, key, *_: _under_its_key(judge(raw, Payment), key), metadata=True
    )
    at.write(_rejected(judged), "rejects")
    payments = judged.filter(lambda found: isinstance(found, Payment)).apply(structs.asdict)
    both = at.read("orders").concat(payments)
    at.write(both.apply(_settled, stateful=True), "settled")


def _rejected(judged: StreamingDataFrame) -> StreamingDataFrame:
    """The rejects, with their place: it is their id."""
    return judged.filter(lambda found: isinstance(found, Reject)).apply(_placed)


def _placed(reject: Reject) -> Document:
    from quixstreams import message_context

    at = message_context()
    topic = at.topic.rpartition(".")[2]
    return {"id": f"{topic}:{at.partition}:{at.offset}", **structs.asdict(reject)}


def _under_its_key(found: Any, key: bytes | None) -> Any:
    """A payment under another key would wait for its order in another partition, for ever."""
    if isinstance(found, Payment) and found.order.encode() != key:
        shown = (key or b"").decode("utf-8", "backslashreplace")
        return Reject(f"the key is {shown!r}, the order {found.order!r}", str(found))
    return found


class Missed:
    """What came too late for a window: noted by the window, taken by the branch behind it."""

    def __init__(self, window: str) -> None:
        self._window, self._noted = window, list[Late]()

    def note(
        self,
        value: Any,
        key: Any,
        timestamp_ms: int,
        late_by_ms: int,
        start: int,
        end: int,
        store_name: str,
        topic: str,
        partition: int,
        offset: int,
    ) -> bool:
        """Quix' callback; ``False``: not into its log, since it goes to a topic."""
        self._noted.append(Late(start, value["id"], value["product"], value["cents"], late_by_ms))
        return False

    def take(self, _: Any) -> list[Document]:
        """All since the last time, as documents."""
        noted, self._noted = self._noted, []
        return [
            {
                "id": f"{self._window}:{late.window}:{late.order}",
                "of": self._window,
                **structs.asdict(late),
            }
            for late in noted
        ]


def _add_up(at: Wiring, sales: StreamingDataFrame, window: Any, missed: Missed) -> None:
    """Every new total of a window is a record; the newest of each id is what holds."""
    sums = window.agg(orders=Count(), quantity=Sum("quantity"), cents=Sum("cents")).current()
    at.write(sums.apply(_total, metadata=True), missed._window)
    # After the window, in the same step and the same transaction.
    at.write(sales.apply(missed.take, expand=True), "late")


def _total(found: Any, product: str, *_: Any) -> Document:
    sums = {name: found[name] for name in ("orders", "quantity", "cents")}
    return {
        "id": f"{found['start']}:{product}",
        "window": found["start"],
        "product": product,
        **sums,
    }


def _settled(value: Any, state: State[str, Any]) -> Document:
    kind: Any = Order if "product" in value else Payment
    came: Order | Payment = msgspec.convert(value, kind)
    known = state.get("settlement")
    now = settle(msgspec.convert(known, Settlement) if known else None, came)
    state.set("settlement", structs.asdict(now))
    return {"id": now.order, "status": now.status, **structs.asdict(now)}


class Pipeline(Struct, frozen=True):
    """The topics that a pipeline reads, and its recipe."""

    reads: tuple[str, ...]
    recipe: Callable[[Wiring], None]


PIPELINES = {
    "validate": Pipeline(("raw",), validate),
    "revenue": Pipeline(("sales",), revenue),
    "top": Pipeline(("sales",), top),
    "settle": Pipeline(("orders", "payments"), settlement),
}


# --- running them


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
        for records in read(source, partition, start, end=end):
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
