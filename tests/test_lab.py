"""The lab as a notebook holds it; in memory, where that is enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.errors import Fenced, TimedOut, Unreachable, UsageError
from labkit.lab import Lab
from labkit.ports.failpoints import ALL, Crash, Failpoint, armed
from labkit.read.freshness import LINEARIZABLE
from labkit.services.orders import OrderById, PayOrder, PlaceOrder
from labkit.stack import native
from labkit.write.decisions import MAX_REASON


def place(order_id: str = "o") -> PlaceOrder:
    return PlaceOrder(order_id, "ada", "2026-01-31", quantity=1, cents=100)


def test_a_part_whose_step_raised_is_not_used_again() -> None:
    """A stale cache would decide on a state that is not there any more."""
    with Lab(backend="memory") as lab:
        lab.bus.listen("orders")
        lab.bus.send(place())
        broken = lab.handler
        with armed(Failpoint.HANDLER_COMMITTED), pytest.raises(Crash):
            broken.step(0)
        with pytest.raises(Fenced, match="make a new one"):
            broken.step(0)
        sent = lab.bus.send(PayOrder("o", 100))
        assert lab.handler is not broken
        lab.handler.step(0)
        assert lab.bus.answer(sent.token()).version == 2
        while lab.projector.step(0):
            pass
        assert lab.ignored_commits() == 0


def test_a_broken_projector_is_replaced_too() -> None:
    with Lab(backend="memory") as lab:
        lab.bus.send(place())
        lab.handler.step(0)
        broken = lab.projector
        with armed(Failpoint.PROJECTOR_APPLIED), pytest.raises(Crash):
            broken.step(0)
        with pytest.raises(Fenced, match="make a new one"):
            broken.step(0)
        assert lab.projector.step(0) == 1
        assert lab.ask(OrderById("o"))


def test_the_mongodb_log_has_a_twin_in_memory() -> None:
    with Lab(backend="memory", services=["orders"], log="mongodb") as lab:
        lab.start()
        assert lab.bus.execute(place("o"), id="c").version == 1
        assert lab.ask(OrderById("o"), fresh=LINEARIZABLE)
        assert lab.instances_of("relay") == ("orders",)
        topic = lab.topic_name("orders.events")
        written, published = (b.source(topic).ends() for b in (lab.log_broker, lab.broker))
        assert written == published
        assert sum(written.values()) == 1


# This lab has one log, so no relay; processes have a lab of their own in test_sagas.py.
@pytest.mark.parametrize("point", [p for p in ALL if not p.startswith(("relay.", "process."))])
def test_crash_in_memory_reaches_every_failpoint(point: Failpoint) -> None:
    role = "handler" if point.startswith("handler") else "projector"
    with Lab(backend="memory") as lab:
        lab.bus.send(place("first"))
        lab.handler.step(0)
        lab.handler.flush()
        lab.projector.step(0)
        lab.bus.send(place("second"))
        if role == "projector":
            lab.handler.step(0)
        assert lab.crash(role, point).at == point
        lab.handler.step(0)
        lab.projector.step(0)
        assert lab.ask(OrderById("second"))


def test_a_crash_that_does_not_come_leaves_the_lab_usable() -> None:
    with Lab(backend="memory") as lab:
        with pytest.raises(TimedOut, match=r"handler\.decided"):
            lab.crash("handler", Failpoint.HANDLER_DECIDED)
        lab.bus.send(place())
        assert len(lab.handler.step(0)) == 1


def test_until_steps_the_parts_in_memory() -> None:
    with Lab(backend="memory") as lab:
        lab.start()
        lab.queries.until([lab.bus.send(place()).token()], timeout=5)
        assert lab.ask(OrderById("o"))


def test_a_film_shows_the_newest_message_and_a_log_shows_its_stream() -> None:
    with Lab(backend="memory") as lab:
        lab.start()
        lab.bus.execute(place(), id="same")
        lab.bus.execute(place(), id="same")
        assert lab.film("o").trace.events == ("OrderPlaced.v2",)
        lab.bus.execute(PayOrder("o", 100))
        trace = lab.film("o").trace
        assert (trace.command, trace.events, trace.version) == ("PayOrder", ("OrderPaid",), 2)
        assert list(trace.instants.values()) == sorted(trace.instants.values())
        assert [c.outcome for c in lab.log().stream("o")] == ["accepted", "repeated", "accepted"]
        with pytest.raises(UsageError, match="nobody"):
            lab.film("nobody")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"backend": "cloud"}, "cloud"),
        ({"client": "pigeon"}, "pigeon"),
        ({"partitions": 0}, "0"),
        ({"services": ["zoo"]}, "zoo"),
        ({"delivery": "maybe"}, "maybe"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"partitions": "4"}, "partitions must be a number, got '4'"),
        ({"partitions": 1.5}, "partitions must be a number, got 1.5"),
        ({"linger": None}, "linger must be a number, got None"),
        ({"services": "orders"}, r"services must be a list, got 'orders': write .*=\['orders'\]"),
        ({"services": 3}, "services must be a list, got 3"),
        ({"services": [PlaceOrder]}, "given as an object, by its name or as .*, got <class"),
        ({"processes": "transfer"}, "processes must be a list, got 'transfer'"),
        ({"name": "memory", "backend": "kafka"}, r"is Lab\(backend='memory'\) meant"),
        ({"linger": -1.0}, "linger"),
        ({"every": float("nan")}, "every"),
        ({"write_concern": "2"}, "write_concern must be one of majority, 1, got '2'"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_unknown_value_is_named(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Lab(**{"backend": "memory", **arguments})  # type: ignore[arg-type]


SLIPS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a negative number": (
        lambda lab: lab.start(-1),
        "handler workers .* must be 0 or more, got -1",
    ),
    "a word": (lambda lab: lab.start(queries="one"), "query workers .* got 'one'"),
    "an id": (lambda lab: lab.ask("o"), "a query is an object of a Query class, .* got 'o'"),
    "a class": (lambda lab: lab.ask(OrderById), "a query is an object .* got <class"),
    "over Kafka": (lambda lab: lab.query_bus.ask("o"), "a query is an object .* got 'o'"),
    "followed": (lambda lab: lab.subscribe("o"), "a query is an object .* got 'o'"),
    "fresh": (lambda lab: lab.ask(OrderById("o"), fresh="now"), "must be LINEARIZABLE or .* 'now'"),
    "fresh over Kafka": (
        lambda lab: lab.query_bus.ask(OrderById("o"), fresh="now"),
        "must be LINEARIZABLE or .* 'now'",
    ),
    "a text": (lambda lab: lab.bus.execute("PlaceOrder"), "no service takes 'PlaceOrder'"),
    "a service for a topic": (
        lambda lab: lab.topic("orders"),
        "no topic 'orders', but .*orders.ev",
    ),
    "a role": (
        lambda lab: lab.lag("handlr", "orders"),
        "no handlr of 'orders', but handler of ord",
    ),
    "a failpoint": (
        lambda lab: lab.crash("handler", "end"),
        "failpoint must be one of .* got 'end'",
    ),
    "a module": (lambda lab: lab.module("mail", "zoo"), "no service 'zoo', but orders"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_named(slip: str) -> None:
    call, says = SLIPS[slip]
    with Lab(backend="memory") as lab:
        lab.start()
        topics = lab.broker.topics()
        with pytest.raises(UsageError, match=says):
            call(lab)
        assert [t for t in lab.broker.topics() if t not in topics and "zoo" in t] == []


def test_a_look_starts_no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.setattr(native, "start", lambda *_: pytest.fail("it started servers"))
    with pytest.raises(Unreachable, match="labkit up"):
        Lab("lab", run="r1", start=False)


@pytest.mark.parametrize("field", ["sent", "intended", "expected_version"])
def test_an_integer_that_mongodb_cannot_hold_parks_its_stream_alone(field: str) -> None:
    with Lab(backend="memory") as lab:
        lab.start()
        lab.bus.listen("orders")
        envelope = {"id": "x", "body": {"type": "ShipOrder", "order_id": "bad"}, field: 2**63}
        sender = lab.broker.sender()
        sender.send(lab.topic_name("orders.commands"), b"bad", json.dumps(envelope).encode())
        assert lab.bus.execute(place("good")).accepted
        outcomes = {c.stream: c.outcome for c in lab.log().commits()}
        assert outcomes == {"bad": "parked", "good": "accepted"}
        assert lab.ignored_commits() == 0


def test_a_long_reason_is_cut_since_it_is_remembered() -> None:
    with Lab(backend="memory") as lab:
        lab.start()
        day = "x" * 100_000
        answer = lab.bus.execute(PlaceOrder("o", "ada", day, quantity=1, cents=1))
        assert answer.outcome == "refused"
        assert len(answer.reason) == MAX_REASON


def test_a_command_id_is_short() -> None:
    with Lab(backend="memory") as lab:
        lab.start()
        for id in ("", "x" * 201):
            with pytest.raises(UsageError, match=r"no handler takes .* of length .* - at `\$\.id`"):
                lab.bus.execute(place(), id=id)


def test_the_api_of_a_notebook_needs_no_proxy_and_keeps_no_process_alive() -> None:
    """What a failed cell leaves open must not keep its process from ending."""
    code = """
from labkit import Lab
from labkit.teaching.http import Http
lab = Lab(backend="memory", services=["orders"])
lab.start()
reply = Http(lab).get("/health/live")
print(reply.status)
raise ZeroDivisionError("a cell fails")
"""
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | proxies | {"no_proxy": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["200"], done.stderr
    assert done.stderr.strip().endswith("ZeroDivisionError: a cell fails")
