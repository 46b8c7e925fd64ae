"""The rules of the catalog."""

from __future__ import annotations

import pytest

from labkit.messages import Command, Event
from labkit.services import catalog
from labkit.services.bounds import MAX_CENTS
from labkit.services.catalog import (
    CatalogEntry,
    ChangePrice,
    CustomerRegistered,
    ListProduct,
    PriceChanged,
    ProductListed,
    RegisterCustomer,
)
from labkit.testing import fold, specification
from tests.built_in import SERVICES

CATALOG = SERVICES["catalog"]
given = specification(CATALOG)

LISTED = ProductListed("cd", "A compact disc", 1_499)
REGISTERED = CustomerRegistered("ann", "Ann")


def test_a_customer_is_registered_once() -> None:
    given().when(RegisterCustomer("ann", "Ann")).then(REGISTERED)
    given(REGISTERED).when(RegisterCustomer("ann", "Anna")).then_refused("'customer-ann' exists")


def test_a_product_is_listed_once() -> None:
    given().when(ListProduct("cd", "A compact disc", 1_499)).then(LISTED)
    given(LISTED).when(ListProduct("cd", "Other", 1)).then_refused("'product-cd' exists")


def test_a_price_changes_as_often_as_you_like() -> None:
    dearer = PriceChanged("cd", "A compact disc", 1_999)
    given(LISTED).when(ChangePrice("cd", 1_999)).then(dearer)
    given(LISTED, dearer).when(ChangePrice("cd", 1_499)).then(
        PriceChanged("cd", "A compact disc", 1_499)
    )
    given(LISTED, dearer).when(ChangePrice("cd", 1_999)).then_refused("costs 1999 cents already")


def test_what_is_not_listed_has_no_price() -> None:
    given().when(ChangePrice("cd", 1)).then_refused("'cd' is not listed")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (RegisterCustomer("", "Ann"), "an empty one"),
        (RegisterCustomer("ann", ""), "an empty one"),
        (ListProduct("", "A", 1), "an empty one"),
        (ListProduct("cd", "", 1), "an empty one"),
        (ListProduct("cd", "A", -1), f"between 0 and {MAX_CENTS}, got -1"),
        (ListProduct("cd", "A", MAX_CENTS + 1), f"got {MAX_CENTS + 1}"),
    ],
)
def test_what_makes_no_sense(command: Command, reason: str) -> None:
    given().when(command).then_refused(reason)


@pytest.mark.parametrize("cents", [-1, MAX_CENTS + 1])
def test_a_price_that_makes_no_sense(cents: int) -> None:
    given(LISTED).when(ChangePrice("cd", cents)).then_refused(f"got {cents}")


def test_customers_and_products_never_share_a_stream() -> None:
    assert RegisterCustomer("x", "X").stream != ListProduct("x", "X", 1).stream
    assert ChangePrice("x", 1).stream == ListProduct("x", "X", 1).stream


def test_the_fold() -> None:
    assert fold(CATALOG, REGISTERED) == CatalogEntry("Ann")
    price = PriceChanged("cd", "A compact disc", 1)
    assert fold(CATALOG, LISTED, price) == CatalogEntry("A compact disc", 1)
    with pytest.raises(AssertionError, match="before ProductListed"):
        catalog.evolve(None, price)
    with pytest.raises(TypeError, match="not a catalog event"):
        catalog.evolve(None, Event())
