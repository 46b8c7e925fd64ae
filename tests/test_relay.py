"""The relay: what the MongoDB log has committed stands in Kafka once, in order, at its offset."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pymongo import MongoClient

from labkit import stack
from labkit.errors import Fenced, UsageError
from labkit.lab import Lab
from labkit.log.partition import peek
from labkit.log.relay import Relay
from labkit.ports.broker import Broker, Record
from labkit.ports.failpoints import Crash, Failpoint, armed
from labkit.run.worker import Worker
from labkit.services.orders import OrderById, PlaceOrder
from tests.test_runtime import until

COMMANDS = 12


def place(number: int) -> PlaceOrder:
    return PlaceOrder(f"o{number}", "ada", "2026-01-31", quantity=1, cents=100)


@pytest.fixture
def lab(servers: stack.Servers) -> Iterator[Lab]:
    made = Lab(services=["orders"], log="mongodb", partitions=3, start=False)
    try:
        yield made
    finally:
        made.drop()


def decide(lab: Lab, first: int, count: int) -> None:
    """So many commands more, and their commits."""
    for number in range(first, first + count):
        lab.bus.send(place(number))
    lab.bus.flush()
    while count > 0:
        count -= len(lab.handler.step())


def relay(lab: Lab) -> Relay:
    made = lab.by_hand("relay")
    assert isinstance(made, Relay)
    return made


def publish(part: Relay, count: int) -> None:
    while count > 0:
        published = part.step(10)
        assert published, "nothing came"
        count -= published
    assert count == 0


def holds(lab: Lab, broker: Broker) -> list[Record]:
    source = broker.source(lab.topic_name("orders.events"))
    try:
        return peek(source, 1.0)[0]
    finally:
        source.close()


def same(lab: Lab, count: int) -> None:
    """Kafka and the log hold the same records at the same places."""
    published, written = holds(lab, lab.broker), holds(lab, lab.log_broker)
    assert len(published) == len(written) == count
    assert published == written


@pytest.mark.servers
def test_it_publishes_in_order_at_the_same_offsets(lab: Lab) -> None:
    decide(lab, 0, COMMANDS)
    publish(relay(lab), COMMANDS)  # what was there before it came
    decide(lab, COMMANDS, COMMANDS)
    publish(relay(lab), COMMANDS)  # what the change stream brings
    assert lab.by_hand("relay").step(0) == 0
    same(lab, 2 * COMMANDS)
    assert {record.partition for record in holds(lab, lab.broker)} == {0, 1, 2}


@pytest.mark.servers
@pytest.mark.parametrize("before", [0, 2], ids=["no token yet", "an older token"])
def test_a_crash_before_the_token_is_saved_publishes_nothing_twice(lab: Lab, before: int) -> None:
    part = relay(lab)
    for number in range(before):  # the second one comes from the change stream
        decide(lab, number, 1)
        publish(part, 1)
    decide(lab, before, COMMANDS)
    with armed(Failpoint.RELAY_SENT), pytest.raises(Crash):
        publish(part, COMMANDS)
    with pytest.raises(Fenced, match="make a new one"):
        part.step(0)
    assert relay(lab) is not part
    left = before + COMMANDS + 1 - len(holds(lab, lab.broker))
    decide(lab, before + COMMANDS, 1)
    while left > 0:  # what was published is passed over
        left -= relay(lab).step(1)
    same(lab, before + COMMANDS + 1)


def token(lab: Lab) -> tuple[MongoClient[dict[str, object]], dict[str, object]]:
    assert lab.servers is not None
    client: MongoClient[dict[str, object]] = MongoClient(lab.servers.mongo_uri)
    found = client[f"{lab.name}_{lab.run}"]["log.relays"].find_one({})
    assert found is not None
    return client, found


@pytest.mark.servers
def test_a_token_that_the_server_has_forgotten_costs_nothing(lab: Lab) -> None:
    decide(lab, 0, COMMANDS)
    publish(relay(lab), COMMANDS)
    decide(lab, COMMANDS, 1)
    publish(relay(lab), 1)
    lab._close_parts()
    client, saved = token(lab)
    data = saved["token"]["_data"]  # type: ignore[index]
    # A token begins with its type and a timestamp: make that one of 1970.
    old = {"token": {"_data": data[:2] + "00000001" + data[10:]}}
    client[f"{lab.name}_{lab.run}"]["log.relays"].update_one({}, {"$set": old})
    client.close()
    decide(lab, COMMANDS + 1, COMMANDS)
    publish(relay(lab), COMMANDS)
    same(lab, 2 * COMMANDS + 1)


@pytest.mark.servers
def test_a_topic_that_was_made_anew_is_filled_from_the_log(lab: Lab) -> None:
    decide(lab, 0, COMMANDS)
    publish(relay(lab), COMMANDS)
    decide(lab, COMMANDS, 1)
    publish(relay(lab), 1)  # from now on there is a token
    lab._close_parts()
    topic = lab.topic_name("orders.events")
    lab.broker.drop([topic])
    until("it is gone", lambda: topic not in lab.broker.topics())
    lab.broker.create({topic: 3})
    publish(relay(lab), COMMANDS + 1)
    decide(lab, COMMANDS + 1, 1)
    publish(relay(lab), 1)
    same(lab, COMMANDS + 2)


@pytest.mark.servers
def test_a_newer_relay_stops_the_older_one_before_it_sends(lab: Lab) -> None:
    decide(lab, 0, 1)
    older = relay(lab)
    publish(older, 1)
    newer = lab.parts.make(Worker("relay", "orders", 1))
    decide(lab, 1, COMMANDS)
    with pytest.raises(Fenced, match="another relay"):
        older.step(10)
    publish(newer, COMMANDS)
    newer.close()
    same(lab, 1 + COMMANDS)


@pytest.mark.servers
@pytest.mark.parametrize("copies", [1, 2], ids=["as long as the log", "longer than the log"])
def test_another_writer_in_kafka_is_told_and_nothing_is_left_out(lab: Lab, copies: int) -> None:
    """A record too many shifts all that follow: the next one would seem to be there already."""
    decide(lab, 0, 1)
    publish(relay(lab), 1)
    lab._close_parts()
    (record,) = holds(lab, lab.broker)
    sender = lab.broker.sender()
    for _ in range(copies):
        sender.send(lab.topic_name("orders.events"), record.key, record.value, record.partition)
    sender.flush(20)
    sender.close()
    lab.bus.send(place(0))  # a repetition: its commit lies in the same partition
    lab.bus.flush()
    while not lab.handler.step():
        pass
    with pytest.raises(Fenced, match="another writer"):
        relay(lab)


@pytest.mark.servers
def test_another_writer_is_seen_in_the_acknowledgement(lab: Lab) -> None:
    decide(lab, 0, 1)
    part = relay(lab)
    publish(part, 1)
    (record,) = holds(lab, lab.broker)
    sender = lab.broker.sender()
    sender.send(lab.topic_name("orders.events"), record.key, b"{}", record.partition).result(20)
    sender.close()
    lab.bus.send(place(0))
    lab.bus.flush()
    while not lab.handler.step():
        pass
    with pytest.raises(Fenced, match="another writer"):
        part.step(10)


@pytest.mark.servers
def test_a_lab_on_the_mongodb_log_from_end_to_end(lab: Lab) -> None:
    lab.start(handlers=2)
    assert {worker.role for worker in lab.workers()} == {"handler", "relay", "projector"}
    lab.bus.listen("orders")
    tokens = [lab.bus.send(place(number)).token() for number in range(COMMANDS)]
    again = lab.bus.send(place(0), expected_version=0).token()
    assert all(lab.bus.answer(token).accepted for token in tokens)
    assert lab.bus.answer(again).outcome == "refused"
    lab.queries.until([*tokens, again], timeout=30)
    for number in range(COMMANDS):
        order = lab.ask(OrderById(f"o{number}"))
        assert order is not None
        assert (order["version"], order["customer"]) == (1, "ada")
    assert [lab.lag(role, "orders") for role in ("handler", "relay", "projector")] == [0, 0, 0]
    assert lab.ignored_commits() == 0
    lab.stop()
    same(lab, COMMANDS + 1)


def test_a_relay_is_for_the_mongodb_log() -> None:
    with (
        Lab(backend="memory", services=["orders"]) as lab,
        pytest.raises(UsageError, match="Kafka"),
    ):
        lab.by_hand("relay")
