"""What protects an API when too many come at once: each mechanism, on a clock that stands still."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from labkit.api import create_app, serve
from labkit.api.age import MOST_MARKS, Ages
from labkit.api.breaker import Breaker
from labkit.api.guard import COMMAND_SHARE, THREADS, urgency_of
from labkit.api.in_flight import InFlight
from labkit.api.problems import Problem
from labkit.api.protection import OFF, Protection
from labkit.api.rates import MOST_CLIENTS, Rates, Windows, client_of
from labkit.errors import Conflict, Overloaded, Unreachable, UsageError
from labkit.lab import Lab
from labkit.messages import Token
from labkit.ports.clock import Clock
from labkit.services.orders import PlaceOrder
from labkit.write.bus import CommandBus
from tests.test_api import WAIT, new_order, problem
from tests.test_cli import labkit_here


class Still(Clock):
    """It stands still until it is told to go on; its seconds are those of no wall clock."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def now(self) -> int:
        return round(self.at * 1e9)


@pytest.fixture
def clock() -> Still:
    return Still()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=["orders", "bank"], partitions=2) as made:
        yield made


@contextmanager
def served(lab: Lab, clock: Clock, **settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(lab, Protection(**settings), clock)) as api:
        yield api


def order(api: TestClient, name: str, **headers: str) -> Any:
    return api.post("/orders", json=new_order(order_id=name), headers=headers)


def hear(api: TestClient) -> None:
    """Let the API hear what the log says by now."""
    thread = api.app.state.backend.thread  # type: ignore[attr-defined]
    thread.call(lambda: thread._hear("orders", 0.0))


def counted(api: TestClient, name: str) -> float:
    """A counter as ``/metrics`` shows it; 0 if it does not."""
    lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else 0.0


BAD = {
    "a unit": ({"limit_client": "50/secnd"}, "limit_client must be one rate .* got '50/secnd'"),
    "no unit": ({"limit": "50"}, "limit must be one rate"),
    "two": ({"limit": "5/second; 50/minute"}, "limit must be one rate"),
    "a limit of zero": ({"limit": "0/second"}, "limit must allow 1 to 100,000 .* got '0/second'"),
    "below zero": ({"limit": "-5/second"}, "limit must be one rate .* got '-5/second'"),
    "a limit too large": ({"limit": "1000000/second"}, "limit must allow 1 to 100,000"),
    "zero seconds": ({"limit": "5 per 0 seconds"}, "limit must be one rate .* got '5 per 0"),
    "years": ({"limit": "5/year"}, "limit must be for a day at most"),
    "a window": ({"window": "open"}, "window must be one of moving, fixed, got 'open'"),
    "a breaker": ({"breaker": -1}, "breaker must be a whole number, 0"),
    "a breaker that never closes": (
        {"breaker": 5, "breaker_reset": 0},
        "breaker_reset must be more than 0 .* got 0: .* never closes",
    ),
    "an endless breaker": (
        {"breaker": 5, "breaker_reset": float("inf")},
        "breaker_reset .* got inf",
    ),
    "no breaker": ({"breaker": 5, "breaker_reset": float("nan")}, "breaker_reset .* got nan"),
    "half a command": ({"in_flight": 2.5}, "in_flight must be a whole number, .* got 2.5"),
    "a reserve of all": ({"reserve": 1.0}, "reserve must be a share .* got 1.0"),
    "an age below zero": ({"degrade": -1}, "degrade must be a number of seconds, .* got -1"),
}


@pytest.mark.parametrize(("settings", "named"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_said_before_anything_is_served(
    lab: Lab, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        create_app(lab, Protection(**settings))


def test_without_protection_nothing_is_in_the_way(lab: Lab, clock: Still) -> None:
    lab.start()
    with served(lab, clock) as api:
        for number in range(50):
            assert order(api, f"o{number}").status_code == 202
        assert "age" not in api.get("/orders/o1").headers
        spec = api.get("/openapi.json").json()["paths"]["/orders"]["post"]["responses"]
        assert "429" not in spec


# --- rate limits


@pytest.mark.parametrize("window", ["moving", "fixed"])
def test_a_limit_by_client_says_truly_when_there_is_room(
    lab: Lab, clock: Still, window: str
) -> None:
    lab.start()
    with served(lab, clock, limit_client="2 per 10 seconds", window=window) as api:
        assert order(api, "o1").status_code == 202
        clock.at += 4
        assert api.get("/orders/o1").status_code == 200
        refused = order(api, "o2", **{"Idempotency-Key": "k2"})
        problem(refused, 429, "limited")
        assert refused.headers["retry-after"] == "6"
        clock.at += 5.9
        assert order(api, "o2").status_code == 429, "not before"
        clock.at += 0.1
        assert order(api, "o2", **{"Idempotency-Key": "k2"}).status_code == 202, "and then"
        assert counted(api, 'labkit_refused_total{mechanism="limit_client"}') == 2
        assert api.get("/health/live").status_code == 200, "who watches it is not limited"


def test_another_client_has_a_limit_to_itself(lab: Lab, clock: Still) -> None:
    app = create_app(lab, Protection(limit_client="1/minute"), clock)
    with TestClient(app, client=("10.0.0.1", 1)) as one:
        assert order(one, "o1").status_code == 202
        assert order(one, "o2").status_code == 429
        other = TestClient(app, client=("10.0.0.2", 1))
        assert order(other, "o3").status_code == 202


def test_a_fixed_window_lets_twice_as_many_pass_around_its_end(clock: Still) -> None:
    passed = {}
    for window in ("moving", "fixed"):
        rates = Rates(Protection(limit="5 per 10 seconds", window=window), clock)  # type: ignore[arg-type]
        clock.at = 100.0
        rates.take("a")
        clock.at = 109.9
        before = sum(rates.take("a") is None for _ in range(9))
        clock.at = 110.0
        passed[window] = before + sum(rates.take("a") is None for _ in range(9))
    assert passed == {"moving": 4 + 1, "fixed": 4 + 5}


@pytest.mark.parametrize("window", ["moving", "fixed"])
def test_what_one_limit_turns_away_is_counted_by_none(clock: Still, window: str) -> None:
    settings = Protection(limit_client="2/minute", limit="3/minute", window=window)  # type: ignore[arg-type]
    rates = Rates(settings, clock)
    told = [rates.take(client) for client in "aaaabb"]
    assert [one and one[0] for one in told] == [None, None, *["limit_client"] * 2, None, "limit"]


def test_who_comes_is_remembered_within_bounds(clock: Still) -> None:
    windows = Windows(clock)
    for number in range(MOST_CLIENTS + 10):
        windows.acquire_entry(f"m{number}", 1, 60)
        windows.incr(f"f{number}", 60)
    assert len(windows._instants) == len(windows._counts) == windows._kept == MOST_CLIENTS
    assert windows.get_moving_window("m0", 1, 60)[1] == windows.get("f0") == 0, "the oldest went"
    assert windows.get_moving_window("m11", 1, 60)[1] == windows.get("f11") == 1


def test_a_household_is_one_client() -> None:
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:2") != client_of("2001:db8:0:1::1")
    assert client_of("10.0.0.1") != client_of("10.0.0.2")
    assert client_of("testclient") == "testclient"


# --- a circuit breaker


class Server:
    """It answers, or not."""

    def __init__(self) -> None:
        self.up, self.asked = True, 0

    def __call__(self) -> str:
        self.asked += 1
        if not self.up:
            raise Unreachable("it does not answer")
        return "answer"


@pytest.fixture
def breaker(clock: Still) -> Breaker:
    return Breaker("Kafka", 3, 10.0, clock, lambda: None)


def opened(breaker: Breaker, server: Server) -> None:
    server.up = False
    for _ in range(3):
        with pytest.raises(Unreachable):
            breaker.call(server)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(Problem) as told:
        call()
    assert told.value.kind == "unreachable"
    return told.value.headers["Retry-After"]


def test_a_breaker_opens_tries_once_and_closes(breaker: Breaker, clock: Still) -> None:
    server = Server()
    opened(breaker, server)
    clock.at += 2.5
    assert refused(lambda: breaker.call(server)) == "8"
    assert refused(breaker.check) == "8"
    assert server.asked == 3, "nobody waits for it"
    clock.at += 7.5
    breaker.check()
    with pytest.raises(Unreachable):
        breaker.call(server)
    assert refused(lambda: breaker.call(server)) == "10", "one failed try opens it again"
    clock.at += 10
    server.up = True
    assert breaker.call(server) == "answer"
    server.up = False
    for _ in range(2):
        with pytest.raises(Unreachable):
            breaker.call(server)
    assert breaker.state == "closed", "it counts anew"


def test_only_failures_in_a_row_of_this_server_open_it(breaker: Breaker) -> None:
    def other() -> None:
        error = Unreachable("MongoDB does not answer")
        error.server = "MongoDB"
        raise error

    def no() -> None:
        raise Conflict("another writer was first")

    server = Server()
    server.up = False
    for work in (server, server, no, server, server, other, other, other):
        with pytest.raises((Unreachable, Conflict)):
            breaker.call(work)
    assert breaker.state == "closed"


def test_calls_do_not_wait_for_one_another(breaker: Breaker, clock: Still) -> None:
    """As they would in ``pybreaker.CircuitBreaker.call``, which holds its lock meanwhile."""
    inside, go, found = threading.Event(), threading.Event(), list[str]()

    def slow() -> str:
        inside.set()
        assert go.wait(20)
        return "slow"

    def run(turn: str) -> None:
        inside.clear()
        go.clear()
        thread = threading.Thread(target=lambda: found.append(breaker.call(slow)))
        thread.start()
        assert inside.wait(20)
        if turn == "closed":
            assert breaker.call(Server()) == "answer"
        else:
            assert refused(lambda: breaker.call(Server())) == "10", "one tries, the others go"
        go.set()
        thread.join(20)
        assert found.pop() == "slow"

    run("closed")
    opened(breaker, Server())
    clock.at += 10
    run("half-open")
    assert breaker.state == "closed"


def test_what_began_before_it_opened_says_nothing_of_the_try(
    breaker: Breaker, clock: Still
) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert go.wait(20)

    trying = threading.Thread(target=lambda: breaker.call(slow))

    def long_ago() -> str:
        opened(breaker, Server())
        clock.at += 10
        trying.start()
        assert inside.wait(20)
        return "answer"

    assert breaker.call(long_ago) == "answer"
    assert breaker.state == "half-open", "the try is under way"
    go.set()
    trying.join(20)
    assert breaker.state == "closed"


def test_a_breaker_answers_for_a_server_that_is_gone(
    lab: Lab, clock: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.start()
    real, asked, gone = lab.store.snapshot, list[int](), [True]

    def snapshot() -> Any:
        asked.append(1)
        if gone[0]:
            raise Unreachable("MongoDB does not answer")
        return real()

    with served(lab, clock, breaker=2, breaker_reset=5) as api:
        assert order(api, "o1", **WAIT).status_code == 201
        monkeypatch.setattr(lab.store, "snapshot", snapshot)
        for _ in range(2):
            problem(api.get("/orders/o1"), 503, "unreachable")
        before = len(asked)
        answer = api.get("/orders/o1")
        problem(answer, 503, "unreachable")
        assert (answer.headers["retry-after"], len(asked)) == ("5", before)
        assert counted(api, 'labkit_refused_total{mechanism="breaker_mongodb"}') == 1
        gone[0] = False
        clock.at += 5
        assert api.get("/orders/o1").status_code == 200


def test_a_breaker_of_kafka_turns_commands_away_and_no_reads(
    lab: Lab, clock: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.start()
    real, gone = CommandBus.send, [True]

    def send(bus: CommandBus, *args: Any, **options: Any) -> Any:
        if gone[0]:
            raise Unreachable("Kafka does not answer")
        return real(bus, *args, **options)

    key = {"Idempotency-Key": "k1", **WAIT}
    with served(lab, clock, breaker=2, breaker_reset=5) as api:
        monkeypatch.setattr(CommandBus, "send", send)
        for _ in range(3):
            problem(order(api, "o1", **key), 503, "unreachable")
        assert counted(api, 'labkit_refused_total{mechanism="breaker_kafka"}') == 1
        problem(api.get("/orders/o1"), 404, "not-found")
        gone[0] = False
        clock.at += 5
        assert order(api, "o1", **key).status_code == 201
        assert order(api, "o1", **key).headers["etag"] == '"1"'
    assert [c.outcome for c in lab.log("orders").commits()] == ["accepted", "repeated"]


# --- load shedding


def test_the_queue_is_bounded_and_the_urgent_come_first(lab: Lab, clock: Still) -> None:
    low, high = {"Priority": "u=7"}, {"Priority": "u=1, i"}
    with served(lab, clock, in_flight=10, reserve=0.2) as api:  # nobody handles anything
        told = [order(api, f"l{n}", **low).status_code for n in range(6)]
        told += [order(api, f"n{n}").status_code for n in range(4)]
        told += [order(api, f"u{n}", **high).status_code for n in range(3)]
        assert told == [*[202] * 5, 503, *[202] * 3, 503, *[202] * 2, 503]
        answer = order(api, "o1")
        found = problem(answer, 503, "overloaded")
        assert "10 commands wait for their answers" in found["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        assert api.get("/orders/l1").status_code == 404, "reads go on"
        assert counted(api, 'labkit_refused_total{mechanism="in_flight"}') == 4
        lab.start()
        hear(api)
        assert order(api, "o1", **WAIT).status_code == 201, "an answer gives the place back"
        assert api.get("/orders/n1").status_code == 200
        assert api.get("/orders/n3").status_code == 404, "what was turned away is not there"
    assert len(lab.topic("orders.commands")) == 11


def test_what_is_turned_away_and_sent_again_with_its_key_is_booked_once(
    lab: Lab, clock: Still
) -> None:
    key = {"Idempotency-Key": "k1", **WAIT}
    with served(lab, clock, in_flight=1, limit="2/minute") as api:
        assert order(api, "o1").status_code == 202
        problem(order(api, "o2", **key), 503, "overloaded")
        problem(order(api, "o2", **key), 429, "limited")
        lab.start()
        hear(api)
        clock.at += 60
        for _ in range(2):
            assert order(api, "o2", **key).status_code == 201
    accepted = [c for c in lab.log("orders").commits() if c.outcome == "accepted"]
    assert sorted(c.stream for c in accepted) == ["o1", "o2"]


def test_a_command_that_was_not_sent_takes_no_place(
    lab: Lab, clock: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(lab, clock, in_flight=1) as api:
        problem(api.post("/orders", json={"cents": "x"}), 422, "invalid")
        with monkeypatch.context() as patched:
            patched.setattr(CommandBus, "send", lambda *_, **__: Server().__call__() and 1 / 0)
            with pytest.raises(ZeroDivisionError):
                order(api, "o1")
        assert order(api, "o2").status_code == 202


def test_an_urgency_is_what_a_priority_says() -> None:
    def urgency(*given: str) -> int:
        headers = [(b"priority", text.encode()) for text in given]
        return urgency_of(Request({"type": "http", "headers": headers}))

    for text in ("", "i", "u=9", "u=a", "nu=1", "u=10", "u", "u=1.5", "U=1", "x=(u=1)"):
        assert urgency(text) == 3, text
    assert urgency("u=0") == urgency("i, u=0") == urgency("i", "u=0;x=1") == 0
    assert urgency("u=1, u=6") == 6, "of two members of one name the last counts (RFC 8941)"


def test_reads_come_before_commands(lab: Lab, clock: Still) -> None:
    with served(lab, clock, in_flight=1_000) as api:
        guard = api.app.state.backend.guard  # type: ignore[attr-defined]
        guard._requests = int(COMMAND_SHARE * THREADS)
        problem(order(api, "o1"), 503, "overloaded")
        problem(api.get("/orders/o1"), 404, "not-found")
        guard._requests = THREADS
        problem(api.get("/orders/o1"), 503, "overloaded")
        guard._requests = 0
        assert order(api, "o1").status_code == 202
        assert guard._requests == 0


def test_an_answer_stands_for_those_before_it_in_its_partition(clock: Still) -> None:
    queue = InFlight(10, 0.0, clock)

    def send(partition: int, offset: int) -> None:
        slot = queue.enter(3)
        assert slot is not None
        slot.sent(Token("orders", partition, offset))
        slot.leave()

    for offset in (2, 0, 1):
        send(0, offset)
    send(1, 5)
    assert (len(queue), queue.services) == (4, {"orders"})
    queue.heard("orders", 0, 1)
    assert len(queue) == 2
    send(0, 1)
    assert len(queue) == 2, "its answer was faster"
    queue.heard("orders", 1, 9)
    queue.heard("orders", 0, 2)
    assert (len(queue), queue.services) == (0, set())


def test_who_is_turned_away_is_told_the_pace(clock: Still) -> None:
    queue = InFlight(100, 0.0, clock)
    for offset in range(100):
        slot = queue.enter(3)
        assert slot is not None
        slot.sent(Token("orders", 0, offset))
    assert queue.enter(3) is None
    assert queue.retry_after(3) == 60, "nothing moves"
    clock.at += 4
    queue.heard("orders", 0, 7)  # two a second
    assert queue.retry_after(7) == (92 - 50 + 1) // 2 + 1
    assert queue.retry_after(3) == 1


# --- degradation


def test_a_query_does_not_wait_for_a_view_that_is_far_behind(lab: Lab, clock: Still) -> None:
    handler, projector = lab.by_hand("handler", "orders"), lab.by_hand("projector", "orders")
    with served(lab, clock, degrade=2) as api:
        order(api, "o1")
        handler.step(0)
        projector.step(0)
        fresh = api.get("/orders/o1", params={"freshness": "linearizable"})
        assert (fresh.headers["age"], "labkit-freshness" in fresh.headers) == ("0", False)
        paid = api.post("/orders/o1/payment", json={"cents": 500}).json()
        clock.at += 7.5
        ask = {"token": paid["token"], "timeout": 0}
        stale = api.get("/orders/o1", params=ask)
        assert (stale.status_code, stale.json()["payment"]) == (200, "unpaid")
        assert (stale.headers["age"], stale.headers["labkit-freshness"]) == ("8", "eventual")
        strict = api.get("/orders/o1", params=ask, headers={"Prefer": "handling=strict"})
        problem(strict, 504, "timed-out")
        other = order(api, "o2").json()
        unseen = api.get("/orders/o2", params={"token": other["token"], "timeout": 0})
        problem(unseen, 404, "not-found")
        assert unseen.headers["age"] == "8"
        assert api.get("/accounts/a1").headers["age"] == "0", "it is of another view"
        handler.step(0)
        projector.step(0)
        clock.at += 0.1
        fresh = api.get("/orders/o1", params=ask)
        assert (fresh.json()["payment"], fresh.headers["age"]) == ("paid", "0")
        assert counted(api, 'labkit_degraded_total{what="query"}') == 2


def test_an_answer_that_was_waited_for_says_how_old_it_is_then(lab: Lab, clock: Still) -> None:
    with served(lab, clock, degrade=2) as api:
        placed = order(api, "o1").json()
        clock.at += 7.5
        lab.start()  # in memory, who waits lets the parts work
        ask, strict = {"token": placed["token"]}, {"Prefer": "handling=strict"}
        found = api.get("/orders/o1", params=ask, headers=strict)
        assert (found.status_code, found.headers["age"]) == (200, "0")


def test_a_command_does_not_wait_behind_a_long_queue(lab: Lab, clock: Still) -> None:
    with served(lab, clock, degrade=2) as api:
        order(api, "o1")
        clock.at += 3
        answer = order(api, "o2", Prefer="wait=30")
        assert answer.status_code == 202
        assert "preference-applied" not in answer.headers
        strict = order(api, "o3", Prefer="wait=1, handling=strict")
        assert strict.headers["preference-applied"] == "wait=1"
        assert counted(api, 'labkit_degraded_total{what="command"}') == 1


def test_a_command_that_is_safe_is_told_so_whatever_mongodb_does(
    lab: Lab, clock: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(ages: Ages, service: str, anew: bool = False) -> float:
        raise Unreachable("MongoDB does not answer")

    monkeypatch.setattr(Ages, "of", gone)
    with served(lab, clock, degrade=2) as api:
        assert order(api, "o1", Prefer="wait=30").status_code == 202


def test_the_age_of_a_view_is_never_told_too_low(clock: Still) -> None:
    reached = {0: -1}
    ages = Ages(lambda service: reached, clock)
    for offset in range(3 * MOST_MARKS):
        ages.mark("orders", 0, offset)
        clock.at += 1
    assert ages.of("orders") == 3 * MOST_MARKS
    reached[0] = 9
    clock.at += 1
    assert ages.of("orders") == 3 * MOST_MARKS - 10 + 1
    reached[0] = MOST_MARKS + 5  # beyond what is remembered one by one
    clock.at += 1
    assert ages.of("orders") >= clock.at - (1_000 + MOST_MARKS + 6)
    reached[0] = 3 * MOST_MARKS - 1
    clock.at += 1
    assert ages.of("orders") == 0


# --- the bus


class Slow:
    """A sender whose broker acknowledges when it is told to."""

    def __init__(self) -> None:
        self.sent: list[Slow] = []
        self.acknowledged = False

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> Slow:
        self.sent.append(Slow())
        return self.sent[-1]

    def settled(self) -> bool:
        return self.acknowledged

    def result(self, timeout: float) -> tuple[int, int]:
        return 0, 0

    def flush(self, timeout: float) -> None: ...

    def close(self) -> None: ...


def test_a_bus_refuses_what_the_broker_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab(backend="memory", services=["orders"], in_flight=2) as lab:
        slow = Slow()
        monkeypatch.setattr(lab.bus, "_sender", slow)

        def send(name: str) -> None:
            lab.bus.send(PlaceOrder(name, "ann", "1997-01-31", 1, 5))

        send("o1")
        send("o2")
        with pytest.raises(Overloaded, match=r"2 commands wait for the broker .* in_flight=2 is"):
            send("o3")
        assert len(slow.sent) == 2, "it was not sent"
        slow.sent[1].acknowledged = True  # of another partition: the first still waits
        send("o3")
        with pytest.raises(Overloaded):
            send("o4")
    with pytest.raises(UsageError, match="in_flight must be at least 0, got -1"):
        Lab(backend="memory", in_flight=-1)


def test_a_bus_that_refuses_is_a_503_over_http(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(create_app(lab)) as api:
        monkeypatch.setattr(lab.bus, "_most", 1)
        monkeypatch.setattr(lab.bus, "_unacknowledged", type(lab.bus._unacknowledged)([Slow()]))
        answer = order(api, "o1")
        found = problem(answer, 503, "overloaded")
        assert "in_flight=1" in found["detail"]
        assert answer.headers["retry-after"]


def test_the_command_line_sets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Protection] = []
    monkeypatch.setattr(serve, "api", lambda *arguments: given.append(arguments[-1]))
    options = {"--limit-client": "50/second", "--limit": "1000/minute", "--window": "fixed"}
    options |= {"--breaker": "5", "--breaker-reset": "3", "--in-flight": "500"}
    options |= {"--reserve": "0.1", "--degrade": "2.5"}
    for arguments in ([], [part for option in options.items() for part in option]):
        done = labkit_here("api", "--port", "0", *arguments)
        assert done.returncode == 0, done.stderr
    assert given == [
        OFF,
        Protection(
            limit_client="50/second",
            limit="1000/minute",
            window="fixed",
            breaker=5,
            breaker_reset=3,
            in_flight=500,
            reserve=0.1,
            degrade=2.5,
        ),
    ]
