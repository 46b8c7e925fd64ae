"""The commands and events of the catalog."""

from __future__ import annotations

from labkit.errors import Refused
from labkit.messages import Command, Event
from labkit.services.bounds import (
    MAX_CENTS,
    Cents,
    CustomerId,
    Name,
    ProductId,
    check_id,
    check_within,
)

# --- commands


class RegisterCustomer(Command, frozen=True):
    """Make a customer known."""

    customer_id: CustomerId
    name: Name

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

    product_id: ProductId
    name: Name
    cents: Cents

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

    product_id: ProductId
    cents: Cents

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


EVENTS = CustomerRegistered | ProductListed | PriceChanged
