"""What clients send to the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from labkit.messages import Command
from labkit.service import Workload
from labkit.services.catalog.messages import ChangePrice, ListProduct, RegisterCustomer


def mixed(random: Random) -> Iterator[Command]:
    """New customers and products, and price changes; some products do not exist."""
    number = 0
    while True:
        number += 1
        match random.choices(("customer", "product", "price"), (2, 1, 7))[0]:
            case "customer":
                yield RegisterCustomer(f"c{number}", f"customer {number}")
            case "product":
                yield ListProduct(f"p{number}", f"product {number}", random.randrange(100, 5_000))
            case _:
                product = f"p{random.randrange(1, number + 1)}"
                yield ChangePrice(product, random.randrange(100, 5_000))


def prices(random: Random, *, lap: int | None = None) -> Iterator[Command]:
    """A product that changes its price: for ever, or the next product follows after ``lap``
    commands."""
    for number in count():
        yield ListProduct(f"p{number}", "a pen", 0)
        for cents in count(1) if lap is None else range(1, lap):
            yield ChangePrice(f"p{number}", cents)


WORKLOADS = {"mixed": Workload(mixed), "prices": Workload(prices)}
