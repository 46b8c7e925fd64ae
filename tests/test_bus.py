"""The command bus: where a command goes, and how its answer is found in the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from labkit.errors import TimedOut, UsageError
from labkit.lab import Lab
from labkit.messages import (
    MAX_COMMAND_BYTES,
    Answer,
    Command,
    Envelope,
    ReleaseParked,
    Token,
    encode,
)
from labkit.service import route
from labkit.services.bank import Deposit, OpenAccount
from labkit.services.catalog import ListProduct
from labkit.services.orders import PayOrder, PlaceOrder, ShipOrder
from labkit.write import bus as bus_module
from labkit.write.bus import CommandBus
from tests.built_in import SERVICES

PLACE = PlaceOrder("o1", "ann", "1997-01-31", 1, 5)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory") as made:
        yield made


def test_a_command_goes_to_the_topic_of_its_context(lab: Lab) -> None:
    order = lab.bus.send(PLACE, id="a").token()
    product = lab.bus.send(ListProduct("cd", "CD", 1), id="b").token()
    assert (order.service, product.service) == ("orders", "catalog")
    (row,) = lab.topic("orders.commands").to_dict("records")
    assert (row["partition"], row["offset"], row["key"]) == (order.partition, order.offset, "o1")
    assert row["value"]["id"] == "a"
    assert len(lab.topic("catalog.commands")) == 1


def test_a_command_of_nobody_is_refused_before_it_is_sent(lab: Lab) -> None:
    with pytest.raises(UsageError, match="no service takes Command"):
        lab.bus.send(Command())
    assert set(route(SERVICES.values())) >= {PlaceOrder}


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a version before the first": (
        Deposit("a", 5),
        {"expected_version": -1},
        "expected_version=-1",
    ),
    "a version of 2**63": (Deposit("a", 5), {"expected_version": 2**63}, f"{2**63}"),
    "a fraction": (Deposit("a", 29.99), {}, "cents must be int, got 29.99: no handler takes"),  # type: ignore[arg-type]
    "NaN": (Deposit("a", float("nan")), {}, "cents=nan"),  # type: ignore[arg-type]
    "a text": (Deposit("a", "5"), {}, "cents must be int, got '5': no handler"),  # type: ignore[arg-type]
    "a number for a stream": (Deposit(7, 5), {}, "account_id must be str, got 7: no"),  # type: ignore[arg-type]
    "what has no JSON": (Deposit("a", object()), {}, "cents=<object"),  # type: ignore[arg-type]
    "5,000 digits": (Deposit("a", 10**5_000), {}, "4300 digits"),
    "half a character": (Deposit("a\ud800", 5), {}, r"'a\ud800'"),
    "half a character, as id": (Deposit("a", 5), {"id": "\ud800"}, r"id='\ud800'"),
    "no id": (Deposit("a", 5), {"id": ""}, "id=''"),
    "a long id": (Deposit("a", 5), {"id": "i" * 201}, "length <= 200 - at `$.id`"),
    "a number for an id": (Deposit("a", 5), {"id": 7}, "id=7"),
    "a long correlation": (Deposit("a", 5), {"correlation": "c" * 201}, "at `$.correlation`"),
    "no stream": (Deposit("", 5), {}, "stream must have 1 to 200 characters"),
    "a long stream": (Deposit("k" * 201, 5), {}, "got 201: 'kkk"),
    "a hidden stream": (Deposit("\0a", 5), {}, r"got 2: '\x00a'"),
    "no release of a stream": (ReleaseParked(""), {"service": "bank"}, "got 0: ''"),
    "another's command": (Deposit("a", 5), {"service": "orders"}, "Deposit"),
    "1 MB": (OpenAccount("a", "o" * MAX_COMMAND_BYTES), {}, "at most 1000000 fit"),
}


@pytest.mark.parametrize(("command", "options", "named"), BAD.values(), ids=BAD)
def test_what_no_handler_takes_is_not_sent_and_harms_no_stream(
    command: Command, options: dict[str, Any], named: str
) -> None:
    with Lab(backend="memory", services=["orders", "bank"]) as lab:
        lab.start()
        assert lab.bus.execute(OpenAccount("a", "ann")).accepted
        with pytest.raises(UsageError) as told:
            lab.bus.send(command, **options)
        assert named in str(told.value)
        assert len(str(told.value)) < 600
        assert len(lab.topic("bank.commands")) == 1
        assert lab.topic("orders.commands").empty
        assert lab.bus.execute(Deposit("a", 5), id="good") == Answer("accepted", 2)


@pytest.mark.parametrize("stream", ["k" * 200, "ö" * 200, "a b", "\t"])
def test_what_can_be_a_stream_is_sent_and_answered_by_a_rule(stream: str) -> None:
    with Lab(backend="memory", services=["bank"]) as lab:
        lab.start()
        assert lab.bus.execute(OpenAccount(stream, "ann")).final


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


def test_an_answer_needs_no_listening_beforehand(lab: Lab) -> None:
    tokens = [
        lab.bus.send(PlaceOrder(f"o{n}", "ann", "1997-01-31", 1, 5)).token() for n in range(20)
    ]
    lab.handler.step(5)
    for token in reversed(tokens):
        assert lab.bus.answer(token, timeout=5).accepted
    with pytest.raises(UsageError, match=r"no service 'zoo'; known: .*orders"):
        lab.bus.answer(Token("zoo", 0, 0))
    with pytest.raises(UsageError, match="no service 'zoo'"):
        lab.bus.hear("zoo", 0)
    with pytest.raises(UsageError, match=r"a token, such as sent.token\(\) gives, got 'o1'"):
        lab.bus.answer("o1")  # type: ignore[arg-type]


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


@pytest.mark.parametrize("correlation", ["", "x" * 50])
def test_a_prepared_command_is_sent_as_the_same_bytes(lab: Lab, correlation: str) -> None:
    """But for the instant at which it was sent, which is that of the later call."""
    prepared = lab.bus.prepare(PLACE, id="a", correlation=correlation)
    before = lab.bus._clock.now()
    lab.bus.send_prepared(prepared, 1_000)
    lab.bus.send(PLACE, id="a", correlation=correlation, intended=1_000)
    first, second = lab.topic("orders.commands").to_dict("records")
    assert before <= first["value"].pop("sent") <= second["value"].pop("sent")
    assert (first["key"], first["partition"]) == (second["key"], second["partition"])
    assert list(first["value"].items()) == list(second["value"].items())
    assert first["value"]["intended"] == 1_000


def test_what_no_handler_takes_cannot_be_prepared(lab: Lab) -> None:
    """It is as long as it will be with its two instants."""
    with pytest.raises(UsageError, match="no handler takes"):
        lab.bus.prepare(structs.replace(PLACE, cents=0.5), id="a")
    spare = len(encode(Envelope("a", PLACE, intended=2**63 - 1, sent=2**63 - 1)))
    fits = structs.replace(PLACE, order_id="o" * (MAX_COMMAND_BYTES - spare + 2))
    with pytest.raises(UsageError, match="stream must have"):
        lab.bus.prepare(fits, id="a")
    with pytest.raises(UsageError, match=f"at most {MAX_COMMAND_BYTES} fit"):
        lab.bus.prepare(structs.replace(fits, order_id=f"{fits.order_id}o"), id="a")
