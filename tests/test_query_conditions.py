"""What people write as conditions, and what the views are asked."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.adapters.memory_store import MemoryStore
from labkit.errors import UsageError
from labkit.read.queries import Queries
from labkit.service import Page, Query
from labkit.service.declared import Empty, samples
from labkit.services.bank import Statement
from labkit.services.orders import OrdersById, OrdersOf
from tests.built_in import PROJECTIONS, SERVICES

QUERIES = {
    kind.__name__: kind for service in SERVICES.values() for kind in service.queries.values()
}
LAB = Queries(MemoryStore(), SERVICES)


class Noted(Empty):
    """Empty views that note how a page was asked for."""

    def page(self, view: Any, **asked: Any) -> Page:
        self.asked = asked
        return super().page(view, **asked)


def asked(name: str, conditions: dict[str, Any]) -> dict[str, Any]:
    """The page that a query asks for."""
    views = Noted()
    LAB.named(name, conditions).query.read(views)
    return views.asked


@pytest.mark.parametrize("kind", QUERIES.values(), ids=QUERIES)
def test_what_an_answer_is_read_from_are_collections_of_its_services(kind: type[Query]) -> None:
    """And the query handler of its service follows them all."""
    for query in samples(kind):
        found = LAB._asked(query)
        known = {c for service in found.services for c in PROJECTIONS[service].indexes}
        assert found.watched
        assert set(found.watched) <= known
        assert set(found.watched) <= set(LAB.watched_by(found.service))


def test_a_name_is_that_of_the_class_or_the_address() -> None:
    for name in ("OrdersOf", "orders-of"):
        assert LAB.named(name, {"customer": "ann"}).query == OrdersOf("ann")


def test_a_word_about_money_is_a_payment() -> None:
    def chosen(**conditions: str) -> dict[str, Any]:
        found = asked("OrdersOf", {"customer": "ann", **conditions})
        return {name: found.get(name) for name in ("status", "payment")}

    assert chosen(status=" PAID ") == {"status": None, "payment": "paid"}
    assert chosen(status="paid", payment="PAID") == chosen(status="paid")
    assert chosen(status="Shipped", payment="paid") == {"status": "shipped", "payment": "paid"}


@pytest.mark.parametrize(
    ("sort", "field"),
    [("day", "day"), ("-date", "-day"), ("Amount", "cents"), ("-price", "-cents")],
)
def test_a_sort_has_a_name_and_a_direction(sort: str, field: str) -> None:
    assert asked("OrdersOf", {"customer": "ann", "sort": sort})["sort"] == field


def test_numbers_may_come_as_text() -> None:
    found = asked("LowStock", {"at_most": "3", "limit": "7"})
    assert (found["at_most"], found["limit"]) == ({"on_hand": 3}, 7)


def test_ids_may_come_in_one_text() -> None:
    for given in ("o2, o1,,o2 ", ["o2", "o1"]):
        watched = LAB.asked(OrdersById(given)).watched
        assert watched == {"orders.view.orders": {"o1", "o2"}}


@pytest.mark.parametrize(
    ("order", "sort"),
    [("newest first", "-version"), ("NEWEST", "-version"), ("oldest_first", "version")],
)
def test_a_statement_has_an_order(order: str, sort: str) -> None:
    assert asked("Statement", {"account": "a", "order": order})["sort"] == sort


@pytest.mark.parametrize(
    ("name", "conditions", "says"),
    [
        ("owl", {}, ["owl", "known: AccountById, All"]),
        ("OrderById", {}, ["OrderById", "missing required field `order`"]),
        ("OrderById", {"order": 7}, ["Expected `str`, got `int`", "$.order", "got {'order': 7}"]),
        ("OrderById", {"order": "o1", "owl": 1}, ["no condition 'owl'", "it takes order"]),
        ("Products", {"owl": 1}, ["no condition 'owl'", "it takes no conditions"]),
        ("OrdersOf", {"customer": "a", "limit": 0}, [">= 1", "$.limit", "got {'limit': 0}"]),
        ("OrdersOf", {"customer": "a", "limit": 1_001}, ["<= 1000", "$.limit"]),
        ("OrdersById", {"orders": [f"o{n}" for n in range(1_001)]}, ["<= 1000", "$.orders"]),
        ("Revenue", {"month": "1997-13"}, ["1997-13", "$.month"]),
        ("LowStock", {"at_most": -1}, [">= 0", "$.at_most"]),
        ("ById", {"view": "orders.owls", "id": "o1"}, ["'orders.owls'", "orders.customers"]),
    ],
)
def test_a_condition_that_cannot_be_is_refused(
    name: str, conditions: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UsageError) as refused:
        LAB.named(name, conditions)
    for part in says:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (OrdersOf("a", status="owl"), ["'owl'", "placed", "refunded"]),
        (OrdersOf("a", payment="shipped"), ["'shipped'", "unpaid, paid"]),
        (OrdersOf("a", status="paid", payment="unpaid"), ["'paid'"]),
        (OrdersOf("a", sort="--day"), ["'--day'", "-amount"]),
        (OrdersById(",".join(f"o{n}" for n in range(1_001))), ["at most 1000", "1001"]),
        (Statement("a", order="sideways"), ["'sideways'", "oldest or newest"]),
    ],
)
def test_a_word_that_a_query_does_not_know_is_refused(query: Query, says: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        LAB.ask(query)
    for part in says:
        assert part in str(refused.value)
