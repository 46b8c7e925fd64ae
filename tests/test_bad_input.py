"""Bad input on real servers: refused with the reason, or parked; and it stops nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaProducer

from labkit import stack
from labkit.lab import Lab
from labkit.messages import MAX_COMMAND_BYTES, Answer, Token
from labkit.ports.ids import new_id
from labkit.services.orders import PlaceOrder
from labkit.write.decisions import DAY_MS

pytestmark = pytest.mark.servers

PARTITIONS = 2
NOW_MS = time.time_ns() // 1_000_000
TOPIC = "orders.commands"

#: What a case does to the envelope and to the fields of a command, and the reason it is given.
Case = tuple[dict[str, Any], dict[str, Any], str]

REFUSED: dict[str, Case] = {
    "2**63": ({}, {"cents": 2**63}, f"cents must be between 0 and {10**12}, got {2**63}"),
    "2**70": ({}, {"quantity": 2**70}, f"quantity must be between 1 and {10**6}, got {2**70}"),
    "4,300 digits": ({}, {"cents": 10**4_299}, "cents must be between"),
    "less than nothing": ({}, {"cents": -1}, "got -1"),
    "no such day": ({}, {"day": "1997-02-30"}, "day must be a date like 1997-01-31"),
    "nobody": ({}, {"customer_id": ""}, "customer_id is needed"),
    "due days ago": ({"deliver_at": NOW_MS - 3 * DAY_MS}, {}, "was 3 days ago"),
    "due in 1970": ({"deliver_at": 0}, {}, "deliver_at 0 was"),
    "due too late": ({"deliver_at": NOW_MS + 400 * DAY_MS}, {}, "at most 366 are allowed"),
    "due never": ({"deliver_at": 2**63 - 1}, {}, "at most 366 are allowed"),
    "a version ahead": ({"expected_version": 7}, {}, "expected version 7, it is 0"),
}
PARKED: dict[str, Case] = {
    "version 2**63": ({"expected_version": 2**63}, {}, "<= 9223372036854775807"),
    "NaN": ({}, {"cents": float("nan")}, "JSON is malformed"),
    "infinity": ({}, {"cents": float("inf")}, "JSON is malformed"),
    "a fraction": ({}, {"cents": 1.5}, "got `float` - at `$.body.cents`"),
    "a text": ({}, {"cents": "100"}, "got `str` - at `$.body.cents`"),
    "an empty id": ({"id": ""}, {}, "length >= 1 - at `$.id`"),
    "a long id": ({"id": "i" * 201}, {}, "length <= 200 - at `$.id`"),
    "an unknown type": ({}, {"type": "Teleport"}, "'Teleport' - at `$.body.type`"),
    "an unknown field": ({}, {"colour": "red"}, "unknown field `colour`"),
    "another's stream": ({}, {"order_id": "another"}, "it is for stream 'another'"),
    "due tomorrow": ({"deliver_at": "tomorrow"}, {}, "got `str` - at `$.deliver_at`"),
    "due before 1970": ({"deliver_at": -1}, {}, ">= 0 - at `$.deliver_at`"),
    "due at 2**63": ({"deliver_at": 2**63}, {}, "- at `$.deliver_at`"),
    "no body": ({"body": None}, {}, "got `null` - at `$.body`"),
    "1 MB": ({}, {"customer_id": "c" * MAX_COMMAND_BYTES}, "at most 1000000 fit"),
    "2 MB": ({}, {"customer_id": "c" * 2 * MAX_COMMAND_BYTES}, "at most 1000000 fit"),
}


@pytest.fixture(scope="module")
def lab(servers: stack.Servers) -> Iterator[Lab]:
    with Lab(services=["orders"], start=False, partitions=PARTITIONS) as made:
        made.start()
        made.bus.listen("orders")
        yield made
        made.drop()


@pytest.fixture(scope="module")
def producer(lab: Lab) -> Iterator[KafkaProducer]:
    """A client of somebody else, who knows nothing of the rules of the bus."""
    assert lab.servers is not None
    made = KafkaProducer(bootstrap_servers=lab.servers.bootstrap, max_request_size=8 << 20)
    yield made
    made.close()


def wire(order: str, envelope: dict[str, Any], **fields: Any) -> bytes:
    """A command to place an order, with what the case does to its envelope and its fields."""
    body = {
        "type": "PlaceOrder",
        "order_id": order,
        "customer_id": "ann",
        "day": "1997-01-31",
        "quantity": 1,
        "cents": 100,
    }
    return json.dumps({"id": new_id(), "body": body | fields} | envelope).encode()


def send(lab: Lab, producer: KafkaProducer, key: str, value: bytes) -> tuple[Answer, int]:
    """The answer to a raw record, and its partition."""
    sent = producer.send(lab.topic_name(TOPIC), key=key.encode(), value=value).get(timeout=30)
    return lab.bus.answer(Token("orders", sent.partition, sent.offset)), sent.partition


def good_one_beside(lab: Lab, partition: int) -> Answer:
    """A good command to another stream of that partition, sent afterwards."""
    source = lab.broker.source(lab.topic_name(TOPIC))
    try:
        ids = (new_id() for _ in range(1_000))
        order = next(id for id in ids if source.partitions_for([id.encode()])[0] == partition)
    finally:
        source.close()
    return lab.bus.execute(PlaceOrder(order, "bob", "1997-01-31", 1, 5))


def until_listed(lab: Lab, stream: str, seconds: float = 30.0) -> str:
    """The reason why a stream is parked, once its handler has saved that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = lab.dead_letters()
        if not (rows := found[found["stream"] == stream]).empty:
            return str(rows["reason"].iloc[0])
        time.sleep(0.1)
    pytest.fail(f"{stream!r} never became a dead letter")


@pytest.mark.parametrize(("envelope", "fields", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_rules_forbid_is_refused(
    lab: Lab, producer: KafkaProducer, envelope: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    order = new_id()
    answer, partition = send(lab, producer, order, wire(order, envelope, **fields))
    assert (answer.outcome, answer.version) == ("refused", 0)
    assert reason in answer.reason
    assert good_one_beside(lab, partition).accepted
    assert send(lab, producer, order, wire(order, {}))[0].accepted, "the stream itself is unharmed"


@pytest.mark.parametrize(("envelope", "fields", "reason"), PARKED.values(), ids=PARKED)
def test_what_is_no_command_is_parked(
    lab: Lab, producer: KafkaProducer, envelope: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    order = new_id()
    answer, partition = send(lab, producer, order, wire(order, envelope, **fields))
    assert (answer.outcome, answer.version) == ("parked", 0)
    assert reason in answer.reason
    assert good_one_beside(lab, partition).accepted
    assert until_listed(lab, order) == answer.reason
    assert send(lab, producer, order, wire(order, {}))[0].outcome == "parked", "it waits behind"


def test_an_empty_stream_id_is_parked_beside_all_streams(lab: Lab, producer: KafkaProducer) -> None:
    answer, partition = send(lab, producer, "", wire("", {}))
    assert answer.outcome == "parked"
    assert answer.reason == "it is for stream ''"
    assert good_one_beside(lab, partition).accepted


def test_a_year_ahead_waits_and_holds_nobody_up(lab: Lab, producer: KafkaProducer) -> None:
    order = new_id()
    value = wire(order, {"deliver_at": NOW_MS + 365 * DAY_MS})
    answer, partition = send(lab, producer, order, value)
    assert answer.outcome == "scheduled"
    assert good_one_beside(lab, partition).accepted
    assert send(lab, producer, order, wire(order, {}))[0].accepted, "not even its own stream"


def test_an_instant_that_has_just_passed_is_now(lab: Lab, producer: KafkaProducer) -> None:
    """A command that was on its way for too long is not lost for that."""
    order = new_id()
    value = wire(order, {"deliver_at": NOW_MS - 60_000})
    assert send(lab, producer, order, value)[0].accepted


def test_one_command_id_fits_one_body(lab: Lab, producer: KafkaProducer) -> None:
    order = new_id()
    first, partition = send(lab, producer, order, wire(order, {"id": "c1"}))
    assert first.accepted
    other, _ = send(lab, producer, order, wire(order, {"id": "c1"}, cents=1))
    assert (other.outcome, other.version) == ("refused", 1)
    assert other.reason == "command id 'c1' was used for another command"
    assert send(lab, producer, order, wire(order, {"id": "c1"}))[0] == first, "it is remembered"
    assert good_one_beside(lab, partition).accepted
