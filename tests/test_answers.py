"""What a query handler holds, and when it lets go."""

from __future__ import annotations

import msgspec
import pytest

from labkit.adapters.memory_store import MemoryStore
from labkit.ports.store import Change, Noticed
from labkit.query.answer_cache import AnswerCache
from labkit.read.queries import Asked, Queries
from labkit.services.orders import CustomerTotals, OrderById, OrdersById, OrdersOf, Revenue
from tests.built_in import SERVICES

LAB = Queries(MemoryStore(), SERVICES)


def order(id: str) -> Asked:
    return LAB.asked(OrderById(id))


def raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(text))


def put(answers: AnswerCache, made: Asked) -> None:
    places = {
        (collection, id)
        for collection, ids in made.watched.items()
        for id in (ids if ids is not None else [None])
    }
    answers.put(made.query, raw("x"), frozenset(places))


def holding(*plans: Asked, size: int = 10) -> AnswerCache:
    answers = AnswerCache(size)
    for made in plans:
        put(answers, made)
    return answers


def noticed(*places: tuple[str, str]) -> Noticed:
    return Noticed(frozenset(Change(*place) for place in places))


def held(answers: AnswerCache, *plans: Asked) -> list[bool]:
    return [answers.get(made.query) is not None for made in plans]


ORDERS = "orders.view.orders"


def test_what_is_held_is_given() -> None:
    answers = holding(order("o1"))
    found = answers.get(order("o1").query)
    assert found is not None
    assert found == raw("x")
    assert answers.get(order("o2").query) is None


def test_two_ways_to_write_the_same_are_one() -> None:
    few = [LAB.named("LowStock", {"at_most": n}) for n in (3, "3")]
    assert held(holding(few[0]), few[1]) == [True]
    paid, unpaid = (LAB.asked(OrdersOf("a", status=s)) for s in ("paid", "unpaid"))
    assert held(holding(paid), unpaid) == [False]
    months = [LAB.asked(Revenue(month)) for month in ("1997-01", "1997-02", None)]
    assert held(holding(months[0]), *months) == [True, False, False]


def test_a_change_drops_what_was_read_from_it() -> None:
    page = LAB.asked(OrdersOf("a"))
    plans = [order("o1"), order("o2"), page, LAB.asked(CustomerTotals("a"))]
    answers = holding(*plans)
    answers.notice(noticed((ORDERS, "o1")))
    assert held(answers, *plans) == [False, True, False, True]
    answers.notice(noticed(("orders.view.customers", "a:0")))
    assert held(answers, *plans) == [False, True, False, False]


@pytest.mark.parametrize(
    "all_of_it",
    [Noticed(lost=True), noticed(("orders.checkpoints", "orders.view"))],
    ids=["a lost token", "another generation"],
)
def test_all_is_dropped_when_it_must_be(all_of_it: Noticed) -> None:
    plans = [order("o1"), LAB.asked(Revenue())]
    answers = holding(*plans)
    answers.notice(all_of_it)
    assert held(answers, *plans) == [False, False]
    assert len(answers) == 0


def test_a_collection_that_is_gone_takes_its_answers_along() -> None:
    plans = [order("o1"), order("o2"), LAB.asked(Revenue())]
    answers = holding(*plans)
    answers.notice(noticed((ORDERS, "")))
    assert held(answers, *plans) == [False, False, True]


def test_those_that_were_used_last_stay() -> None:
    answers = holding(order("o1"), order("o2"), size=2)
    answers.get(order("o1").query)
    put(answers, order("o3"))
    assert held(answers, order("o1"), order("o2"), order("o3")) == [True, False, True]
    assert len(answers) == 2


def test_nothing_is_left_of_what_was_dropped() -> None:
    answers = holding(order("o1"), order("o1"), LAB.asked(OrdersById("o1,o2")))
    assert len(answers) == 2
    answers.notice(noticed((ORDERS, "o1")))
    readers = answers._readers
    assert (answers._held, readers._places, readers._readers) == ({}, {}, {})
