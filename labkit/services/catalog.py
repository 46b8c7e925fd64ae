"""The catalog: customers and products, each a stream of its own."""

from __future__ import annotations

from msgspec import Struct, structs

from labkit.errors import Refused
from labkit.messages import Command, Decisions, Event
from labkit.services.bounds import MAX_CENTS, check_id, check_within


class Entry(Struct, frozen=True, gc=False):
    """A customer (without a price) or a product."""

    name: str
    cents: int | None = None


# --- commands


class RegisterCustomer(Command, frozen=True):
    """Make a customer known."""

    customer_id: str
    name: str

    @property
    def stream(self) -> str:
        """One stream a customer."""
        return f"customer-{self.customer_id}"

    def validate(self) -> None:
        """An id and a name."""
        check_id("customer_id", self.customer_id)
        _check_name(self.name)


class ListProduct(Command, frozen=True):
    """Offer a product at a price in cents."""

    product_id: str
    name: str
    cents: int

    @property
    def stream(self) -> str:
        """One stream a product."""
        return f"product-{self.product_id}"

    def validate(self) -> None:
        """An id, a name and a price; free of charge is fine."""
        check_id("product_id", self.product_id)
        _check_name(self.name)
        check_within("cents", self.cents, 0, MAX_CENTS)


class ChangePrice(Command, frozen=True):
    """Give a product a new price; orders that stand keep theirs."""

    product_id: str
    cents: int

    @property
    def stream(self) -> str:
        """The product's stream."""
        return f"product-{self.product_id}"

    def validate(self) -> None:
        """A price; free of charge is fine."""
        check_within("cents", self.cents, 0, MAX_CENTS)


def _check_name(name: str) -> None:
    if not name:
        raise Refused("a name is needed, got an empty one")


# --- events


class CustomerRegistered(Event, frozen=True):
    """The customer is known."""

    customer_id: str
    name: str


class ProductListed(Event, frozen=True):
    """The product can be ordered."""

    product_id: str
    name: str
    cents: int


class PriceChanged(Event, frozen=True):
    """The product has a new price."""

    product_id: str
    name: str
    cents: int


COMMANDS = RegisterCustomer | ListProduct | ChangePrice
EVENTS = CustomerRegistered | ProductListed | PriceChanged

# --- decide


def register(entry: Entry | None, c: RegisterCustomer) -> tuple[Event, ...]:
    """Once a customer."""
    _check_new(entry, c.stream)
    return (CustomerRegistered(c.customer_id, c.name),)


def list_product(entry: Entry | None, c: ListProduct) -> tuple[Event, ...]:
    """Once a product."""
    _check_new(entry, c.stream)
    return (ProductListed(c.product_id, c.name, c.cents),)


def change_price(entry: Entry | None, c: ChangePrice) -> tuple[Event, ...]:
    """Only of a listed product, only to another price."""
    if entry is None:
        raise Refused(f"product {c.product_id!r} is not listed")
    if c.cents == entry.cents:
        raise Refused(f"product {c.product_id!r} costs {c.cents} cents already")
    return (PriceChanged(c.product_id, entry.name, c.cents),)


def _check_new(entry: Entry | None, stream: str) -> None:
    if entry is not None:
        raise Refused(f"{stream!r} exists")


DECIDE: Decisions = {
    RegisterCustomer: register,
    ListProduct: list_product,
    ChangePrice: change_price,
}

# --- evolve


def evolve(entry: Entry | None, event: Event) -> Entry:
    """Fold one event into the state."""
    match event:
        case CustomerRegistered():
            return Entry(event.name)
        case ProductListed():
            return Entry(event.name, event.cents)
        case PriceChanged():
            assert entry is not None, f"{event} before ProductListed"
            return structs.replace(entry, cents=event.cents)
    raise TypeError(f"not a catalog event: {event!r}")
