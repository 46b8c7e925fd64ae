"""The catalog: customers and products, each a stream of its own."""

from __future__ import annotations

from msgspec import structs

from labkit.errors import Refused
from labkit.messages import Decisions, Event, State
from labkit.services.catalog.messages import (
    ChangePrice,
    CustomerRegistered,
    ListProduct,
    PriceChanged,
    ProductListed,
    RegisterCustomer,
)


class CatalogEntry(State, frozen=True):
    """A customer (without a price) or a product."""

    name: str
    cents: int | None = None


# --- decide


def register(entry: CatalogEntry | None, c: RegisterCustomer) -> tuple[Event, ...]:
    """Once a customer."""
    _check_new(entry, c.stream)
    return (CustomerRegistered(c.customer_id, c.name),)


def list_product(entry: CatalogEntry | None, c: ListProduct) -> tuple[Event, ...]:
    """Once a product."""
    _check_new(entry, c.stream)
    return (ProductListed(c.product_id, c.name, c.cents),)


def change_price(entry: CatalogEntry | None, c: ChangePrice) -> tuple[Event, ...]:
    """Only of a listed product, only to another price."""
    if entry is None:
        raise Refused(f"product {c.product_id!r} is not listed")
    if c.cents == entry.cents:
        raise Refused(f"product {c.product_id!r} costs {c.cents} cents already")
    return (PriceChanged(c.product_id, entry.name, c.cents),)


def _check_new(entry: CatalogEntry | None, stream: str) -> None:
    if entry is not None:
        raise Refused(f"{stream!r} exists")


DECIDE: Decisions = {
    RegisterCustomer: register,
    ListProduct: list_product,
    ChangePrice: change_price,
}

# --- evolve


def evolve(entry: CatalogEntry | None, event: Event) -> CatalogEntry:
    """Fold one event into the state."""
    match event:
        case CustomerRegistered():
            return CatalogEntry(event.name)
        case ProductListed():
            return CatalogEntry(event.name, event.cents)
        case PriceChanged():
            assert entry is not None, f"{event} before ProductListed"
            return structs.replace(entry, cents=event.cents)
    raise TypeError(f"not a catalog event: {event!r}")
