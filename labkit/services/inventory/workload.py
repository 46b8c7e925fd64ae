"""What clients send to the inventory."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from labkit.messages import Command
from labkit.service import Workload
from labkit.services.inventory.messages import (
    AdjustStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    ShipStock,
)

HOT, COLD = 8, 200


def opening(random: Random) -> Iterator[Command]:
    for number in range(HOT):
        yield ReceiveStock(f"hot-p{number}", 1_000_000)
    for number in range(COLD):
        yield ReceiveStock(f"p{number}", 2_000)


def busy(random: Random) -> Iterator[Command]:
    """Goods are received, reserved, released, shipped and counted, half of them hot; one in 40
    commands breaks a rule."""
    held: list[tuple[str, str]] = []
    number = 0
    while True:
        number += 1
        product = f"hot-p{random.randrange(HOT)}" if random.random() < 0.5 else _cold(random)
        pieces = random.randrange(1, 12)
        kinds = ("reserve", "settle", "receive", "adjust", "bad")
        match random.choices(kinds, (14, 12, 10, 4, 1))[0]:
            case "reserve":
                held.append((product, f"r{number}"))
                yield ReserveStock(product, f"r{number}", pieces)
            case "settle" if held:
                place = held.pop(random.randrange(len(held)))
                end = random.choice((ReleaseStock, ShipStock))
                yield end(*place)
            case "adjust":
                yield AdjustStock(product, random.choice((-1, 1)), "counted")
            case "bad":
                bad = (ReserveStock(product, f"bad{number}", 0), AdjustStock(product, 5, ""))
                yield random.choice(bad)
            case _:
                yield ReceiveStock(product, pieces)


def _cold(random: Random) -> str:
    return f"p{random.randrange(COLD)}"


WORKLOAD = Workload(busy, opening)
