"""What clients send to orders."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from labkit.messages import Command
from labkit.service import Workload
from labkit.services import cdnow
from labkit.services.orders.messages import CancelOrder, PayOrder, PlaceOrder

DAYS = ("1997-03-05", "1998-06-30", "1998-07-01", "1999-02-11")
#: The client pays and cancels only the newest of its unpaid orders.
MOST_UNPAID = 2_000


def placed(bought: cdnow.Purchase, order_id: str, lap: int = 0) -> PlaceOrder:
    """A purchase of the CDNOW file as a command; each lap has its own customers."""
    customer = f"{bought.customer}-{lap}" if lap else bought.customer
    return PlaceOrder(order_id, customer, bought.day, bought.quantity, bought.cents)


def new(random: Random, *, lap: int | None = None, payload: int = 0) -> Iterator[Command]:
    """New orders: the purchases of the CDNOW file by day, again after ``lap`` of them.

    With a payload every second command cancels the order before it, with a reason of ``payload``
    bytes: an order itself has no field of that length.
    """
    for number, (time, bought) in enumerate(cdnow.forever(lap)):
        yield placed(bought, f"o{number}", time)
        if payload:
            yield CancelOrder(f"o{number}", "x" * payload)


def busy(random: Random) -> Iterator[Command]:
    """Orders are placed, paid and cancelled; one in 25 commands breaks a rule."""
    unpaid: list[tuple[str, int]] = []
    number = 0
    while True:
        number += 1
        kind = random.choices(("place", "pay", "cancel", "bad"), (8, 7, 1, 0.6))[0]
        if kind == "bad":
            day, customer = random.choice((("1997-02-30", "c1"), (DAYS[0], "")))
            yield PlaceOrder(f"bad{number}", customer, day, 1, 100)
        elif kind == "place" or not unpaid:
            pieces, cents = random.randrange(1, 12), random.randrange(1, 5_000)
            order, day = f"o{number}", random.choice(DAYS)
            discount = cents // 10 if day >= "1998-07-01" and pieces >= 10 else 0
            unpaid.append((order, cents - discount))
            del unpaid[:-MOST_UNPAID]
            # A product that was never received: a process has to cancel the order.
            product = _product(random) if random.random() < 0.95 else "sold out"
            yield PlaceOrder(order, f"c{random.randrange(500)}", day, pieces, cents, product)
        else:
            order, due = unpaid.pop(random.randrange(len(unpaid)))
            if kind == "pay":
                yield PayOrder(order, due)
            else:
                yield CancelOrder(order, "changed my mind")


def _product(random: Random) -> str:
    """A product that the busy workload of the inventory receives."""
    if random.random() < 0.5:
        return f"hot-p{random.randrange(8)}"
    return f"p{random.randrange(200)}"


WORKLOADS = {"new": Workload(new), "busy": Workload(busy)}
