"""What people write, and what the views are asked."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from labkit.services.conditions import QUERIES, plan, watched_by
from labkit.services.services import CONTEXTS
from labkit.services.views import PROJECTIONS

from labkit.errors import UsageError
from labkit.read.queries import Queries

#: One way to ask each.
PARAMS: dict[str, dict[str, Any]] = {
    "order": {"order": "o1"},
    "orders": {"orders": ["o1", "o2"]},
    "orders_of": {"customer": "ann"},
    "customer": {"customer": "ann"},
    "customers": {},
    "revenue": {},
    "order_with_stock": {"order": "o1"},
    "products": {},
    "stock": {"product": "cd"},
    "low_stock": {},
    "account": {"account": "a1"},
    "balances": {},
    "statement": {"account": "a1"},
}


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_asks_a_method_that_takes_its_arguments(name: str) -> None:
    made = plan(name, PARAMS[name])
    takes = inspect.signature(getattr(Queries, made.method)).parameters
    assert set(made.arguments) | {"fresh"} <= set(takes)


@pytest.mark.parametrize("name", QUERIES)
def test_what_an_answer_is_read_from_are_collections_of_its_contexts(name: str) -> None:
    """And the query handler of its service follows them all."""
    row = QUERIES[name]
    watched = plan(name, PARAMS[name]).watched
    assert row.service in CONTEXTS
    known = {c for service in (row.service, *row.beside) for c in PROJECTIONS[service].indexes}
    assert set(watched) <= known
    assert set(watched) <= set(watched_by(row.service))


def test_a_word_about_money_is_a_payment() -> None:
    asked = plan("orders_of", {"customer": "ann", "status": " PAID "}).arguments
    assert (asked["status"], asked["payment"]) == ("", "paid")
    assert plan(
        "orders_of", {"customer": "ann", "status": "paid", "payment": "PAID"}
    ).arguments == (asked)
    asked = plan("orders_of", {"customer": "ann", "status": "Shipped", "payment": "paid"}).arguments
    assert (asked["status"], asked["payment"]) == ("shipped", "paid")


@pytest.mark.parametrize(
    ("sort", "field", "descending"),
    [
        ("day", "day", False),
        ("-date", "day", True),
        ("Amount", "cents", False),
        ("-price", "cents", True),
    ],
)
def test_a_sort_has_a_name_and_a_direction(sort: str, field: str, descending: bool) -> None:
    asked = plan("orders_of", {"customer": "ann", "sort": sort}).arguments
    assert (asked["sort"], asked["descending"]) == (field, descending)


def test_numbers_may_come_as_text() -> None:
    assert plan("low_stock", {"at_most": "3", "limit": "7"}).arguments == {
        "threshold": 3,
        "limit": 7,
        "cursor": "",
    }


def test_ids_may_come_in_one_text() -> None:
    assert plan("orders", {"orders": "o2, o1,,o2 "}).arguments == {"order_ids": ["o2", "o1"]}
    assert plan("orders", {"orders": ["o2", "o1"]}).watched == {"orders.view.orders": ["o2", "o1"]}


@pytest.mark.parametrize(
    ("order", "descending"), [("newest first", True), ("NEWEST", True), ("oldest_first", False)]
)
def test_a_statement_has_an_order(order: str, descending: bool) -> None:
    asked = plan("statement", {"account": "a", "order": order}).arguments
    assert asked["descending"] is descending


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("owl", {}, ["owl", "known: order, orders"]),
        ("order", {}, ["order", "missing required field `order`"]),
        ("order", {"order": ""}, ["order", "length >= 1"]),
        ("order", {"order": 7}, ["Expected `str`, got `int`", "$.order"]),
        ("order", {"order": "o1", "owl": 1}, ["no condition 'owl'", "it takes order"]),
        ("products", {"owl": 1}, ["no condition 'owl'", "it takes no conditions"]),
        ("orders_of", {"customer": "a", "status": "owl"}, ["'owl'", "placed", "refunded"]),
        ("orders_of", {"customer": "a", "payment": "shipped"}, ["'shipped'", "unpaid, paid"]),
        ("orders_of", {"customer": "a", "status": "paid", "payment": "unpaid"}, ["'paid'"]),
        ("orders_of", {"customer": "a", "sort": "--day"}, ["'--day'", "-amount"]),
        ("orders_of", {"customer": "a", "limit": 0}, [">= 1", "$.limit"]),
        ("orders_of", {"customer": "a", "limit": 1_001}, ["<= 1000", "$.limit"]),
        ("orders", {"orders": [f"o{n}" for n in range(1_001)]}, ["<= 1000", "$.orders"]),
        ("orders", {"orders": ",".join(f"o{n}" for n in range(1_001))}, ["at most 1000", "1001"]),
        ("revenue", {"month": "1997-13"}, ["1997-13", "$.month"]),
        ("low_stock", {"at_most": -1}, [">= 0", "$.at_most"]),
        ("statement", {"account": "a", "order": "sideways"}, ["'sideways'", "oldest, newest"]),
    ],
)
def test_what_nobody_understands_is_refused(
    name: str, params: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UsageError) as refused:
        plan(name, params)
    for part in says:
        assert part in str(refused.value)
