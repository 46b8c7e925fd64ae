"""What the buyers are told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labkit.service import Told
from labkit.services.inventory.messages import StockAdjusted, StockReserved

#: Buyers are told of a product when so few pieces are left.
FEW = 10


def notices(event: Any) -> Iterable[Told]:
    """A shelf gets low; not again before it was filled."""
    match event:
        case StockReserved():
            before = event.on_hand + event.quantity
        case StockAdjusted():
            before = event.on_hand - event.quantity
        case _:
            return
    if event.on_hand <= FEW < before:
        yield "buyers", f"only {event.on_hand} pieces of {event.product_id} are left"
