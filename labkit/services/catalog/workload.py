"""What clients send to the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from labkit.messages import Command
from labkit.services.catalog.messages import ChangePrice, ListProduct, RegisterCustomer


def workload(random: Random) -> Iterator[Command]:
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
