"""What the customer is told by mail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labkit.service import Told
from labkit.services.orders.messages import (
    OrderCancelled,
    OrderPlaced,
    OrderReturned,
    OrderShipped,
)


def notices(event: Any) -> Iterable[Told]:
    """An order has arrived, is on its way, or money goes back."""
    match event:
        case OrderPlaced():
            yield "mail", f"{event.customer_id}: your order {event.order_id} has arrived"
        case OrderShipped():
            yield "mail", f"{event.customer_id}: your order {event.order_id} is on its way"
        case OrderCancelled() | OrderReturned() if event.refund:
            yield "mail", f"{event.customer_id}: {event.refund / 100:.2f} are paid back to you"
