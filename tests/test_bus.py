"""The command bus: where a command goes, and how its answer is found in the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labkit import bus as bus_module
from labkit.bus import CommandBus
from labkit.domain.catalog import ListProduct
from labkit.domain.orders import PayOrder, PlaceOrder, ShipOrder
from labkit.errors import TimedOut, UsageError
from labkit.handlers import CONTEXTS, ROUTES, route
from labkit.lab import Lab
from labkit.messages import Answer, Command, Token

PLACE = PlaceOrder("o1", "ann", "1997-01-31", 1, 5)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory") as made:
        yield made


def test_a_command_goes_to_the_topic_of_its_context(lab: Lab) -> None:
    order = lab.bus.send(PLACE, id="a").token()
    product = lab.bus.send(ListProduct("cd", "CD", 1), id="b").token()
    assert (order.context, product.context) == ("orders", "catalog")
    (row,) = lab.topic("orders.commands").to_dict("records")
    assert (row["partition"], row["offset"], row["key"]) == (order.partition, order.offset, "o1")
    assert row["value"]["id"] == "a"
    assert len(lab.topic("catalog.commands")) == 1


def test_a_command_of_nobody_is_refused_before_it_is_sent(lab: Lab) -> None:
    with pytest.raises(UsageError, match="no context takes Command"):
        lab.bus.send(Command())
    assert set(ROUTES) == set(route(CONTEXTS.values()))


def test_every_command_has_an_id_and_the_instants_of_its_way(lab: Lab) -> None:
    first, second = lab.bus.send(PLACE), lab.bus.send(PLACE)
    assert first.id != second.id
    lab.bus.send(PLACE, intended=7)
    rows = [row["value"] for row in lab.topic("orders.commands").to_dict("records")]
    assert rows[0]["intended"] == rows[0]["sent"] > 0
    assert rows[2]["intended"] == 7 < rows[2]["sent"]


def test_execute_gives_the_answer(lab: Lab) -> None:
    lab.start()
    assert lab.bus.execute(PLACE) == Answer("accepted", 1)
    assert lab.bus.execute(PLACE) == Answer("refused", 1, "order 'o1' exists")
    assert lab.bus.execute(PayOrder("o1", 5), expected_version=1) == Answer("accepted", 2)
    late = lab.bus.execute(ShipOrder("o1"), expected_version=1)
    assert (late.outcome, late.reason) == ("refused", "expected version 1, it is 2")


def test_a_repeat_gets_the_first_answer(lab: Lab) -> None:
    lab.start()
    early = lab.bus.execute(PayOrder("o1", 5), id="early")
    lab.bus.execute(PLACE, id="a")
    assert lab.bus.execute(PayOrder("o1", 5), id="early") == early
    assert not early.accepted
    assert lab.bus.execute(PLACE, id="a") == Answer("accepted", 1)


def test_no_answer_in_time_says_what_to_do(lab: Lab) -> None:
    with pytest.raises(TimedOut, match=r"no answer to Token.*handler of 'orders' running.*is safe"):
        lab.bus.execute(PLACE, timeout=0.05)
    lab.start()
    with pytest.raises(TimedOut):
        lab.bus.answer(Token("orders", 0, 99), timeout=0.05)


def test_an_answer_may_be_asked_for_late_and_twice(lab: Lab) -> None:
    lab.bus.listen("orders")
    tokens = [
        lab.bus.send(PlaceOrder(f"o{n}", "ann", "1997-01-31", 1, n)).token() for n in range(20)
    ]
    lab.handler.step(0)
    for token in [*reversed(tokens), *tokens]:
        assert lab.bus.answer(token, 0.1) == Answer("accepted", 1)


def test_the_bus_hears_from_where_it_listened(lab: Lab) -> None:
    before = lab.bus.send(PLACE).token()
    lab.handler.step(0)
    lab.bus.listen("orders")
    lab.bus.listen("orders")
    with pytest.raises(TimedOut):
        lab.bus.answer(before, 0.05)
    after = lab.bus.send(PayOrder("o1", 5), id="b").token()
    lab.handler.step(0)
    (commit,) = lab.bus.hear("orders", 0)
    assert (commit.id, commit.partition, commit.offset) == ("b", after.partition, after.offset)


def test_noise_on_the_events_topic_is_passed_over(lab: Lab) -> None:
    lab.bus.listen("orders")
    topic = lab.topic_name("orders.events")
    lab.broker.sender().send(topic, b"o1", b"noise")
    token = lab.bus.send(PLACE).token()
    lab.handler.step(0)
    assert lab.bus.answer(token, 0.1).accepted


def test_what_the_bus_keeps_is_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "HEARD_WINDOW", 5)
    lab.bus.listen("orders")
    for n in range(20):
        lab.bus.send(PlaceOrder(f"o{n}", "ann", "1997-01-31", 1, n))
    lab.handler.step(0)
    assert len(lab.bus.hear("orders", 0)) == 20
    assert len(lab.bus._heard) == 5


def test_a_bus_closes_its_tails(lab: Lab) -> None:
    assert isinstance(lab.bus, CommandBus)
    lab.bus.listen("orders")
    lab.bus.flush()
    lab.close()
    lab.close()
