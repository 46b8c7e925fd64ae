"""The wire form: strict, typed, and readable by anybody."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import DecodeError
from labkit.messages import (
    Answer,
    Commit,
    Envelope,
    Token,
    encode,
)
from labkit.ports.ids import new_id
from labkit.query.wire import QueryEnvelope, ReplyTo, Result, decode_reply_to, decode_result
from labkit.read.freshness import Fresh, Version
from labkit.services import orders
from labkit.services.orders import OrderPaid, PayOrder, PlaceOrder, ShipOrder
from tests.built_in import SERVICES

CODEC = SERVICES["orders"].codec
PLACE = PlaceOrder("o1", "ann", "1997-01-31", 2, 1_499)


def test_a_command_on_the_wire_is_one_json_object() -> None:
    value = encode(Envelope("a", PLACE, expected_version=0, intended=1, sent=2))
    assert json.loads(value) == {
        "id": "a",
        "body": {
            "type": "PlaceOrder",
            "order_id": "o1",
            "customer_id": "ann",
            "day": "1997-01-31",
            "quantity": 2,
            "cents": 1_499,
            "product_id": "cd",
        },
        "expected_version": 0,
        "intended": 1,
        "sent": 2,
    }
    assert CODEC.decode_command(value) == Envelope("a", PLACE, 0, intended=1, sent=2)


def test_a_commit_on_the_wire_is_one_json_object() -> None:
    event = OrderPaid("o1", "ann", "1997-01-31", 1_499)
    commit: Commit[Any] = Commit("o1", "a", 3, 7, "accepted", 2, 2, (event,))
    value = encode(commit)
    assert json.loads(value)["events"] == [
        {
            "type": "OrderPaid",
            "order_id": "o1",
            "customer_id": "ann",
            "day": "1997-01-31",
            "cents": 1_499,
        }
    ]
    assert "repeats" not in json.loads(value), "what is empty is not written"
    assert CODEC.decode_commit(value) == commit


@given(
    st.text(min_size=1).filter(lambda t: t.isprintable()),
    st.integers(-(2**63), 2**63 - 1),
    st.text(),
)
def test_what_is_written_is_what_is_read(order: str, cents: int, reason: str) -> None:
    for body in (PayOrder(order, cents), orders.CancelOrder(order, reason)):
        envelope = Envelope(new_id(), body)
        assert CODEC.decode_command(encode(envelope)) == envelope


BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "no UTF-8": b'{"id":"\xff"}',
    "no body": b'{"id":"a"}',
    "a body without a type": b'{"id":"a","body":{"order_id":"o1"}}',
    "an unknown type": b'{"id":"a","body":{"type":"Burn","order_id":"o1"}}',
    "an unknown field": b'{"id":"a","body":{"type":"ShipOrder","order_id":"o1","x":1}}',
    "a text for a number": b'{"id":"a","body":{"type":"PayOrder","order_id":"o1","cents":"1"}}',
    "a fraction": b'{"id":"a","body":{"type":"PayOrder","order_id":"o1","cents":1.5}}',
    "true": b'{"id":"a","body":{"type":"PayOrder","order_id":"o1","cents":true}}',
    "NaN": b'{"id":"a","body":{"type":"PayOrder","order_id":"o1","cents":NaN}}',
    "too deep": b'{"id":' + b"[" * 100_000,
    "too deep in an unknown field": b'{"x":' + b"[" * 100_000,
    "of another service": b'{"id":"a","body":{"type":"ChangePrice","product_id":"x","cents":1}}',
}


@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_decode_is_one_kind_of_error(bad: str) -> None:
    for decode in (CODEC.decode_command, CODEC.decode_commit):
        with pytest.raises(DecodeError, match="not a message of this schema"):
            decode(BAD[bad])


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_that_error(value: bytes) -> None:
    for decode in (CODEC.decode_command, CODEC.decode_commit):
        try:
            decode(value)
        except DecodeError:
            pass


def test_an_event_is_no_command() -> None:
    commit: Commit[Any] = Commit("o1", "a", 0, 0, "accepted", 1, 1, (ShipOrder("o1"),))
    with pytest.raises(DecodeError):
        CODEC.decode_commit(encode(commit))


def test_a_repeat_gets_the_first_answer() -> None:
    first = Answer("refused", 1, "too late")
    commit: Commit[Any] = Commit("o1", "a", 0, 5, "repeated", 4, 3, repeats=first)
    assert CODEC.decode_commit(encode(commit)).answer == first
    again: Commit[Any] = Commit("o1", "b", 0, 6, "refused", 4, 3, reason="too late")
    assert again.answer == Answer("refused", 3, "too late")
    assert Answer("accepted", 1).accepted
    assert not first.accepted


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        PLACE.cents = 0  # type: ignore[misc]


@pytest.mark.parametrize("service", SERVICES)
def test_every_command_names_its_stream(service: str) -> None:
    for command in SERVICES[service].commands:
        assert isinstance(command.stream, property)
        example = command(*(f"f{n}" for n in range(len(command.__struct_fields__))))
        assert example.stream.endswith("f0"), "the first field says which"
    names = [t.__name__ for t in (*SERVICES[service].commands, *SERVICES[service].events)]
    assert len(set(names)) == len(names), "the name is the type on the wire"


def test_ids_and_tokens() -> None:
    assert len({new_id() for _ in range(1_000)}) == 1_000
    assert Token("orders", 1, 2) == ("orders", 1, 2)


# --- queries and results


def test_a_query_on_the_wire_is_one_json_object() -> None:
    fresh = Fresh("version", (Version("bank", "a", 3),), 2.0)
    query = QueryEnvelope("q", "AccountById", 2, {"account": "a"}, fresh, sent=5)
    value = encode(query)
    assert json.loads(value) == {
        "id": "q",
        "name": "AccountById",
        "reply": 2,
        "params": {"account": "a"},
        "fresh": {
            "strategy": "version",
            "goals": [{"service": "bank", "stream": "a", "version": 3}],
            "timeout": 2.0,
        },
        "sent": 5,
    }
    assert msgspec.json.decode(value, type=QueryEnvelope[Fresh]) == query


def test_a_result_says_what_it_is() -> None:
    result = Result("q", False, error="TimedOut", text="too late", round=2)
    assert decode_result(encode(result)) == result
    assert json.loads(encode(Result("q", True, {"a": 1}))) == {
        "id": "q",
        "ok": True,
        "value": {"a": 1},
    }


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"id":"q"}', b'{"id":"q","ok":1}', b"\xff"])
def test_what_is_no_result_raises_one_kind_of_error(value: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_result(value)


def test_a_query_of_another_schema_still_tells_where_its_refusal_goes() -> None:
    assert decode_reply_to(b'{"id":"q","reply":1,"name":7,"new":[]}') == ReplyTo("q", 1)
    for value in (b'{"id":"q"}', b'{"id":"","reply":1}', b'{"id":"q","reply":-1}', b"[" * 10_000):
        with pytest.raises(DecodeError):
            decode_reply_to(value)
