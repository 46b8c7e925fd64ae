"""The pipelines of stream analysis on Quix Streams."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, structs

from labkit.ports.store import Document
from labkit.streams.missed import Missed
from labkit.streams.sales import (
    REVENUE,
    TOP,
    Order,
    Payment,
    Reject,
    Settlement,
    judge,
    settle,
)
from labkit.streams.wiring import Wiring

with warnings.catch_warnings(record=True):  # an import of authlib warns about itself
    from quixstreams.dataframe.windows import Count, Sum

if TYPE_CHECKING:
    from quixstreams import State
    from quixstreams.dataframe import StreamingDataFrame


def validate(at: Wiring) -> None:
    """Turn raw bytes into orders and sales with their event time; invalid ones become rejects.

    The key decides which records meet. So each order goes to two topics: keyed by its id, to meet
    its payment, and keyed by its product, to be summed.
    """
    judged = at.read("raw", "bytes").apply(judge)
    orders = judged.filter(lambda found: isinstance(found, Order)).apply(structs.asdict)
    orders = orders.set_timestamp(lambda order, *_: order["at"])
    at.write(orders, "orders", key="id")
    at.write(orders, "sales", key="product")
    at.write(_rejected(judged), "rejects")


def revenue(at: Wiring) -> None:
    """Tumbling windows: the sales of each minute, by product; a reader sums the products."""
    sales, missed = at.read("sales", keys="str"), Missed("revenue")
    window = sales.tumbling_window(REVENUE.width, REVENUE.grace, "revenue", on_late=missed.note)
    _add_up(at, sales, window, missed)


def top(at: Wiring) -> None:
    """Hopping windows: the best sellers of ten minutes, every five minutes."""
    sales, missed = at.read("sales", keys="str"), Missed("top")
    window = sales.hopping_window(TOP.width, TOP.step, TOP.grace, "top", on_late=missed.note)
    _add_up(at, sales, window, missed)


def settlement(at: Wiring) -> None:
    """Join orders and payments by a state that holds what has arrived of either.

    Quix' interval join finds a payment only if its order was *read* before it. This state accepts
    both orders of arrival, so the result depends only on the content of the topics.
    """
    judged = at.read("payments", "bytes").apply(
        lambda raw, key, *_: _under_its_key(judge(raw, Payment), key), metadata=True
    )
    at.write(_rejected(judged), "rejects")
    payments = judged.filter(lambda found: isinstance(found, Payment)).apply(structs.asdict)
    both = at.read("orders").concat(payments)
    at.write(both.apply(_settled, stateful=True), "settled")


def _rejected(judged: StreamingDataFrame) -> StreamingDataFrame:
    """The rejects; the id of each is its topic, partition and offset."""
    return judged.filter(lambda found: isinstance(found, Reject)).apply(_placed)


def _placed(reject: Reject) -> Document:
    from quixstreams import message_context

    at = message_context()
    topic = at.topic.rpartition(".")[2]
    return {"id": f"{topic}:{at.partition}:{at.offset}", **structs.asdict(reject)}


def _under_its_key(found: Any, key: bytes | None) -> Any:
    """Reject a payment whose key is not its order: it would never meet that order."""
    if isinstance(found, Payment) and found.order.encode() != key:
        shown = (key or b"").decode("utf-8", "backslashreplace")
        return Reject(f"the key is {shown!r}, the order {found.order!r}", str(found))
    return found


def _add_up(at: Wiring, sales: StreamingDataFrame, window: Any, missed: Missed) -> None:
    """Write each new total of a window; the newest record of an id is valid."""
    sums = window.agg(orders=Count(), quantity=Sum("quantity"), cents=Sum("cents")).current()
    at.write(sums.apply(_total, metadata=True), missed.window)
    # This runs after the window, in the same step and transaction.
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
