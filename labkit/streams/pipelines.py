"""The pipelines of stream analysis on Quix Streams."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct, structs

from labkit.ports.store import Document, Store, Writes
from labkit.streams.sales import (
    REVENUE,
    TOP,
    Late,
    Order,
    Payment,
    Reject,
    Settlement,
    judge,
    settle,
)

with warnings.catch_warnings(record=True):  # authlib, deep below, has one for its own authors
    from quixstreams import Application
    from quixstreams.dataframe.windows import Count, Sum
    from quixstreams.sinks import BatchingSink, SinkBatch

# What librdkafka tries again by itself is no news; what fails is an exception all the same.
logging.getLogger("quixstreams.kafka").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from quixstreams import State
    from quixstreams.dataframe import StreamingDataFrame
    from quixstreams.models import Topic


#: The topics of stream analysis; ``raw`` and ``payments`` are written by others.
TOPICS = ("raw", "payments", "orders", "sales", "rejects", "revenue", "top", "late", "settled")


#: The topics whose records are kept as documents, too: the newest of each id.
COLLECTIONS = ("rejects", "revenue", "top", "late", "settled")


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
