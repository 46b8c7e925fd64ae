"""C11 of the fulfilment: each order's goods were shipped or given back, once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from labkit.service import Case
from labkit.services.orders.messages import PlaceOrder


def begun(cases: Mapping[str, Case]) -> set[str]:
    """The orders whose clients were told that they are placed."""
    return {o.command.stream for o in cases["orders"].accepted(PlaceOrder)}


def audit(cases: Mapping[str, Case]) -> Iterator[str]:
    """Reserved goods were shipped or released once, as the order says."""
    yield from _goods(cases["orders"], cases["inventory"], begun(cases))


def _goods(placed: Case, stocked: Case, begun: set[str]) -> Iterator[str]:
    done: dict[str, Counter[str]] = defaultdict(Counter)
    for commit in stocked.chain:
        for event in commit.events:
            if (order := getattr(event, "order_id", None)) in begun:
                done[order][type(event).__name__] += 1
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    for commit in placed.chain:
        for event in commit.events:
            ends[commit.stream][type(event).__name__] += 1
    for order in sorted(begun):
        goods, end = done[order], ends[order]
        reserved, shipped = goods["StockReserved"], goods["StockShipped"]
        released = goods["StockReleased"]
        if reserved > 1 or shipped + released != reserved:
            yield f"order {order!r}: reserved {reserved}, shipped {shipped}, released {released}"
        if end["OrderCancelled"] > 1 or end["OrderShipped"] != shipped:
            yield f"order {order!r} went through {dict(end)}, its goods through {dict(goods)}"
