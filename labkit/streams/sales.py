"""The rules of stream analysis: valid orders, totals of windows, settled payments.

These are plain functions over records in log order; ``pipelines.py`` applies the same rules to
topics with Quix Streams. Times are Unix milliseconds from the records (event time). Amounts are
whole cents, so sums are exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Struct, structs

from labkit.messages import Id

SECOND = 1_000
MINUTE = 60 * SECOND
#: 2000-01-01 and 2100-01-01; a time outside means that the clock of the till is wrong.
EARLIEST, LATEST = 946_684_800_000, 4_102_444_800_000
MOST_PIECES = 100
MOST_CENTS = 10_000_000

Instant = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """A sale at a till; ``cents`` is the total amount."""

    id: Id
    product: Id
    at: Instant
    quantity: int
    cents: int


class Payment(Struct, frozen=True, forbid_unknown_fields=True):
    """A payment for an order."""

    order: Id
    at: Instant
    cents: int


class Reject(Struct, frozen=True):
    """A record that is malformed or breaks a rule; ``raw`` shows its bytes as text."""

    reason: str
    raw: str


# --- validation

_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Order, Payment)
}


def judge(raw: bytes | None, kind: type[Any] = Order) -> Any:
    """Decode an ``Order`` (or another ``kind``), or return a ``Reject`` with the reason."""
    shown = (raw or b"").decode("utf-8", "backslashreplace")
    try:
        found = _decoders[kind].decode(raw or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Reject(f"not {_named(kind)}: {error}", shown)
    reason = broken_rule(found)
    return Reject(reason, shown) if reason else found


def broken_rule(found: Order | Payment) -> str:
    """A message about the first broken rule, or an empty string."""
    if not EARLIEST <= found.at < LATEST:
        return f"at {found.at} is not between the years 2000 and 2100"
    if isinstance(found, Order) and not 1 <= found.quantity <= MOST_PIECES:
        return f"quantity must be 1 to {MOST_PIECES}, got {found.quantity}"
    # An order may be free (a gift), but a payment of 0 is invalid.
    least = 0 if isinstance(found, Order) else 1
    if not least <= found.cents <= MOST_CENTS:
        return f"cents must be {least} to {MOST_CENTS}, got {found.cents}"
    return ""


def _named(kind: type[Any]) -> str:
    return "an order" if kind is Order else "a payment"


# --- windows


class Window(Struct, frozen=True):
    """Windows of ``width`` that start every ``step``, in milliseconds.

    ``grace`` is how long a window accepts late records. A tumbling window has a step equal to its
    width; a hopping window has a shorter step.
    """

    width: int
    step: int
    grace: int

    def starts(self, at: int) -> list[int]:
        """The starts of all windows that contain a time: one if tumbling, several if hopping."""
        last = at - at % self.step
        return list(range(last, at - self.width, -self.step))[::-1]


REVENUE = Window(width=MINUTE, step=MINUTE, grace=2 * MINUTE)
TOP = Window(width=10 * MINUTE, step=5 * MINUTE, grace=2 * MINUTE)


class Total(Struct):
    """The totals of one product in one window."""

    orders: int = 0
    quantity: int = 0
    cents: int = 0


class Late(Struct, frozen=True):
    """An order that arrived ``by`` milliseconds after a window of its product had closed."""

    window: int
    order: str
    product: str
    cents: int
    by: int


def add_up(
    orders: Iterable[Order], window: Window
) -> tuple[dict[tuple[int, str], Total], list[Late]]:
    """The totals by (start of the window, product), and the late orders.

    ``orders`` are in log order. Each product has its own clock: the latest event time so far. A
    window closes when that clock passes its end by the grace.
    """
    totals: dict[tuple[int, str], Total] = {}
    late: list[Late] = []
    clocks: dict[str, int] = {}
    for order in orders:
        clock = clocks[order.product] = max(order.at, clocks.get(order.product, 0))
        closed = clock - window.grace
        for start in window.starts(order.at):
            if start + window.width <= closed:
                by = closed - order.at
                late.append(Late(start, order.id, order.product, order.cents, by))
                continue
            total = totals.setdefault((start, order.product), Total())
            total.orders += 1
            total.quantity += order.quantity
            total.cents += order.cents
    return totals, late


# --- payments

#: A payment is on time up to this long after its order.
PAY_WITHIN = 15 * MINUTE


class Settlement(Struct, frozen=True):
    """The known facts about an order and its payments; ``None`` has not arrived yet."""

    order: str
    due: int | None = None
    ordered: int | None = None
    paid: int | None = None
    at: int | None = None

    @property
    def status(self) -> str:
        """``no order``, ``unpaid``, ``wrong amount``, ``paid late`` or ``paid``."""
        if self.due is None or self.ordered is None:
            return "no order"
        if self.paid is None or self.at is None:
            return "unpaid"
        if self.paid != self.due:
            return "wrong amount"
        return "paid late" if self.at - self.ordered > PAY_WITHIN else "paid"


def settle(known: Settlement | None, came: Order | Payment) -> Settlement:
    """Add an order or a payment; the result does not depend on their order of arrival."""
    if isinstance(came, Order):
        known = known or Settlement(came.id)
        return structs.replace(known, due=came.cents, ordered=came.at)
    known = known or Settlement(came.order)
    at = max(came.at, known.at or 0)
    return structs.replace(known, paid=came.cents + (known.paid or 0), at=at)


def settle_all(came: Iterable[Order | Payment]) -> dict[str, Settlement]:
    """The settlement of each order, by its id."""
    found: dict[str, Settlement] = {}
    for one in came:
        order = one.id if isinstance(one, Order) else one.order
        found[order] = settle(found.get(order), one)
    return found
