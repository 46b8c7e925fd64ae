"""What business modules are told: an event in, and what each module hears of it. Pure.

A module is another part of the business that wants to know and has no say: the mail to customers,
the buyers who fill the shelves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from labkit.messages import Event
from labkit.services.inventory import StockAdjusted, StockEvent, StockReserved
from labkit.services.orders import OrderCancelled, OrderPlaced, OrderReturned, OrderShipped

#: Buyers hear of a product once so few pieces are left on the shelf.
FEW = 10

#: What a module hears: its name, and a text.
Told = tuple[str, str]


def of_orders(event: Event) -> Iterable[Told]:
    """To the customer, by mail."""
    match event:
        case OrderPlaced():
            yield "mail", f"{event.customer_id}: your order {event.order_id} has arrived"
        case OrderShipped():
            yield "mail", f"{event.customer_id}: your order {event.order_id} is on its way"
        case OrderCancelled() | OrderReturned() if event.refund:
            yield "mail", f"{event.customer_id}: {event.refund / 100:.2f} are paid back to you"


def of_inventory(event: Event) -> Iterable[Told]:
    """To the buyers, when a shelf gets low: not again before it was filled."""
    match event:
        case StockReserved():
            before = event.on_hand + event.quantity
        case StockAdjusted():
            before = event.on_hand - event.quantity
        case _:
            return
    assert isinstance(event, StockEvent)
    if event.on_hand <= FEW < before:
        yield "buyers", f"only {event.on_hand} pieces of {event.product_id} are left"


#: By service; the others have nothing to tell.
NOTICES: dict[str, Callable[[Event], Iterable[Told]]] = {
    "orders": of_orders,
    "inventory": of_inventory,
}
