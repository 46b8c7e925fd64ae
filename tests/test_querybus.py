"""Questions through the topics: asked, transformed, answered, followed; nobody is held up."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from labkit import stack
from labkit.adapters.memory import MemoryLog
from labkit.errors import Fenced, StackError, TimedOut, UsageError
from labkit.lab import Lab
from labkit.messages import Token, encode
from labkit.ports.clock import Clock
from labkit.ports.failpoints import Failpoint
from labkit.ports.store import Change, Noticed
from labkit.ports.world import World
from labkit.query import bus as query_bus
from labkit.query import handler as query_handler
from labkit.query.bus import Feed, QueryBus
from labkit.query.handler import QueryHandler
from labkit.query.wire import Result
from labkit.read.freshness import LINEARIZABLE, Fresh, Version
from labkit.read.pages import Page
from labkit.read.standard import All, ById
from labkit.read.view_reads import ViewReads
from labkit.services.bank import AccountById, Balances, Deposit, OpenAccount, Statement
from labkit.services.inventory import StockOf
from labkit.services.orders import OrderById, OrdersById, OrdersOf, PayOrder, PlaceOrder, Revenue
from labkit.teaching import project, work


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Started: whoever asks, steps all parts."""
    with Lab(backend="memory", services=["orders", "bank"], partitions=2) as made:
        made.start(queries=1)
        yield made


@pytest.fixture
def still() -> Iterator[Lab]:
    """Not started: each part is stepped by hand."""
    with Lab(backend="memory", services=["orders", "bank"], partitions=2) as made:
        yield made


def handler(lab: Lab, service: str = "bank") -> QueryHandler:
    part = lab.by_hand("query", service)
    assert isinstance(part, QueryHandler)
    return part


def deposit(lab: Lab, account: str, cents: int, *, seen: bool = True) -> Token:
    """By hand, into the log, and into the view."""
    token = lab.bus.send(Deposit(account, cents)).token()
    lab.by_hand("handler", "bank").step(0)
    if seen:
        lab.by_hand("projector", "bank").step(0)
    return token


@pytest.fixture
def money(still: Lab) -> Lab:
    """An account with nothing in it."""
    still.bus.send(OpenAccount("a", "ann"))
    deposit(still, "a", 1)
    return still


class Still(Clock):
    """Time passes when somebody sleeps, and else hardly."""

    def __init__(self) -> None:
        self.at = 10**18

    def now(self) -> int:
        self.at += 1_000
        return self.at

    def wall(self) -> int:
        return self.now() // 1_000_000

    def sleep(self, seconds: float) -> None:
        self.at += int(seconds * 1e9)


@pytest.fixture
def timed() -> Iterator[Lab]:
    """As ``money``, but time passes as the test says, on a machine of any speed."""
    world = World(clock=Still())
    with Lab(backend="memory", services=["orders", "bank"], partitions=2, world=world) as made:
        made.bus.send(OpenAccount("a", "ann"))
        deposit(made, "a", 1)
        yield made


def later(lab: Lab, seconds: float) -> None:
    lab.parts.world.clock.sleep(seconds)


def version(number: int, seconds: float = 10.0) -> Fresh:
    return Fresh("version", (Version("bank", "a", number),), seconds)


# --- ask


def test_a_question_gets_the_answer_of_the_views(lab: Lab) -> None:
    for number, day in enumerate(["1997-01-02", "1997-01-01", "1997-01-03"]):
        lab.bus.execute(PlaceOrder(f"o{number}", "ann", day, 1, 100 * number + 100))
    lab.bus.execute(PayOrder("o0", 100))
    ask = lab.query_bus.ask
    assert ask(OrderById("o1"), fresh=LINEARIZABLE) == lab.ask(OrderById("o1"))
    page = ask(OrdersOf("ann", status="UNPAID", sort="-amount"))
    assert isinstance(page, Page)
    assert [row["_id"] for row in page.rows] == ["o2", "o1"]
    assert ask(OrdersOf("ann", sort="-date", limit="1")).cursor  # type: ignore[arg-type]
    for both in ("o0,nobody", ["o0", "nobody"]):
        assert ask(OrdersById(both)) == {"o0": lab.ask(OrderById("o0"))}
    assert ask(OrderById("nobody")) is None
    assert [row["cents"] for row in ask(Revenue("1997-01"))] == [600]
    assert ask(Revenue("1997-02")) == []
    assert [row["_id"] for row in ask(Revenue())] == ["1997-01"]
    assert ask(ById("orders.orders", "o1")) == lab.ask(OrderById("o1"))
    assert [row["_id"] for row in ask(All("orders.orders", limit=2)).rows] == ["o0", "o1"]


def test_conditions_that_nobody_understands_come_back_as_usage_errors(lab: Lab) -> None:
    with pytest.raises(UsageError, match=r"status must be one of .* got 'owl'"):
        lab.query_bus.ask(OrdersOf(customer="ann", status="owl"))
    with pytest.raises(UsageError, match="order must be oldest or newest, got 'owl'"):
        lab.query_bus.ask(Statement("a", order="owl"))


def test_what_no_handler_could_read_is_refused_at_once(lab: Lab) -> None:
    bus = lab.query_bus
    with pytest.raises(UsageError, match="no service of this run has the query StockOf; known: A"):
        bus.ask(StockOf(product="cd"))
    with pytest.raises(UsageError, match=r"no view 'owl' in this run; known: bank\.accounts, bank"):
        bus.ask(ById("owl", "a"))
    with pytest.raises(UsageError, match=r"OrderById: Expected `str`, got `object`.*\$\.order"):
        bus.ask(OrderById(order=object()))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Expected `array` of length <= 1000"):
        bus.ask(OrdersById(["x"] * 1_001))
    with pytest.raises(UsageError, match=r"AccountById has 1000.* bytes, at most 1000000 fit"):
        bus.ask(AccountById("x" * 1_000_000))
    with pytest.raises(UsageError, match="no JSON"):
        bus.ask(AccountById("\ud800"))
    assert lab.topic("orders.queries").empty
    assert lab.topic("bank.queries").empty
    with pytest.raises(UsageError, match="lease must be above 0 and at most 600 s, got 0"):
        bus.subscribe(OrderById(order="o1"), lease=0)


def test_a_time_out_says_what_it_waited_for(still: Lab) -> None:
    no_answer = pytest.raises(
        TimedOut,
        match=r"to OrderById\(order='o1'\) within 0.05 s; is a query handler of 'orders' running\? "
        r"lab\.start\(queries=1\) or `labkit run query --service orders --run RUN` starts one",
    )
    with no_answer:
        still.query_bus.ask(OrderById(order="o1"), timeout=0.05)
    with no_answer:  # not silence for ever
        next(iter(still.query_bus.subscribe(OrderById(order="o1"), lease=0.05)))


def test_many_under_way_each_gets_its_own(lab: Lab) -> None:
    for number in range(20):
        lab.bus.execute(OpenAccount(f"a{number}", "ann"))
    sent = [lab.query_bus.send(AccountById(account=f"a{number}")) for number in range(20)]
    for number, question in reversed(list(enumerate(sent))):
        assert lab.query_bus.answer(question)["_id"] == f"a{number}"


def test_an_answer_of_another_kind_is_an_error(money: Lab) -> None:
    bus = money.query_bus
    question = bus.send(Balances())
    sender = money.broker.sender()
    value = encode(Result(question.id, True, [1]))
    sender.send(money.topic_name("bank.results"), b"k", value, bus._replies["bank"])
    with pytest.raises(StackError, match="of another kind"):
        bus.answer(question)


def test_two_requesters_hear_their_own_only(money: Lab) -> None:
    one, two = money.query_bus, money.parts.make_query_bus(money.queries, lambda: None)
    mine, yours = one.send(AccountById("a")), two.send(AccountById("nobody"))
    handler(money).step(0)
    assert two.answer(yours) is None
    assert one.answer(mine)["_id"] == "a"


def test_an_answer_that_comes_too_late_is_dropped(money: Lab) -> None:
    bus = money.query_bus
    late = bus.send(AccountById(account="a"), timeout=0.01)
    with pytest.raises(TimedOut):
        bus.answer(late)
    handler(money).step(0)
    assert bus.hear(0) == []
    assert bus.dropped == 1


# --- what is no query


def put(lab: Lab, value: bytes, partition: int = 0) -> None:
    sender = lab.broker.sender()
    sender.send(lab.topic_name("bank.queries"), b"k", value, partition)
    sender.flush(10)


def test_what_is_no_query_stops_nobody(money: Lab) -> None:
    question = money.query_bus.send(AccountById(account="a"))
    reply = money.query_bus._replies["bank"]
    for value in (
        b"\xff",
        b"[]",
        b"{}",
        b'{"id":"x","reply":99,"name":"AccountById"}',
        b"[" * 10_000,
    ):
        put(money, value)
    put(money, json.dumps({"id": "x", "reply": 99}).encode())
    part = handler(money)
    while part.step(0):
        pass
    assert part.ignored == 6
    assert money.query_bus.answer(question)["_id"] == "a"
    assert reply in (0, 1)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"name": 7}, "Expected `str`, got `int`"),
        ({"name": "AccountById", "fresh": {"strategy": "owl"}}, "owl"),
        ({"name": "AccountById", "fresh": {"strategy": "token"}}, "takes a Token"),
        ({"name": "AccountById", "purpose": "owl"}, "owl"),
        ({"name": "AccountById", "lease": 1e9}, "<= 600"),
        ({"name": "owl"}, "no query 'owl'; known: AccountById, All, "),
        ({"name": "OrderById", "params": {"order": "o1"}}, "is a query of 'orders'"),
        ({"name": "AccountById", "params": {"owl": 1}}, "no condition 'owl'; it takes account"),
        ({"name": "ById", "params": {"view": "owl", "id": "a"}}, "no view 'owl' in this run"),
        ({"name": "AccountById", "params": {"account": ["a"]}}, "Expected `str`, got `array`"),
        (
            {"name": "AccountById", "params": {"account": "a"}}
            | {"fresh": {"strategy": "version", "goals": [{"service": "owl"}]}},
            "stream",
        ),
        (
            {"name": "AccountById", "params": {"account": "a"}}
            | {"fresh": {"strategy": "token", "goals": [["owl", 0, 0]]}},
            "no views of 'owl' to wait for; this run has orders, bank",
        ),
    ],
)
def test_what_tells_its_id_is_refused_with_a_reason(
    money: Lab, odd: dict[str, Any], says: str
) -> None:
    bus = money.query_bus
    bus.listen("bank")
    bus._open["x"] = 1e9
    put(money, json.dumps({"id": "x", "reply": bus._replies["bank"]} | odd).encode())
    handler(money).step(0)
    (result,) = bus.hear(0)
    assert not result.ok
    assert result.error == "UsageError"
    assert says in result.text


def test_a_query_that_meets_a_bug_stops_nobody(money: Lab, monkeypatch: Any) -> None:
    def stumble(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(Statement, "read", stumble)
    bus = money.query_bus
    bad, good = bus.send(Statement(account="a")), bus.send(AccountById(account="a"))
    handler(money).step(0)
    with pytest.raises(StackError, match="the handler has a bug: ZeroDivisionError"):
        bus.answer(bad)
    assert bus.answer(good)["_id"] == "a"


def test_an_answer_that_does_not_fit_is_refused(money: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr(query_handler, "MAX_RESULT_BYTES", 10)
    question = money.query_bus.send(AccountById(account="a"))
    handler(money).step(0)
    with pytest.raises(UsageError, match="at most 10 fit: ask for less, or in pages"):
        money.query_bus.answer(question)


# --- freshness and time-outs


def test_who_waits_holds_up_nobody(money: Lab) -> None:
    bus, part = money.query_bus, handler(money)
    waits = bus.send(AccountById(account="a"), fresh=version(3))
    ready = bus.send(AccountById(account="a"))
    part.step(0)
    assert bus.answer(ready)["balance"] == 1
    assert bus.heard(waits) is None
    deposit(money, "a", 10)
    part.step(0)
    assert bus.answer(waits)["balance"] == 11


def test_linearizable_waits_for_what_was_there_and_not_for_what_comes(money: Lab) -> None:
    bus, part = money.query_bus, handler(money)
    deposit(money, "a", 10, seen=False)
    waits = bus.send(AccountById(account="a"), fresh=LINEARIZABLE)
    part.step(0)
    assert bus.heard(waits) is None
    money.by_hand("projector", "bank").step(0)
    deposit(money, "a", 100, seen=False)  # later, and not waited for
    part.step(0)
    assert bus.answer(waits)["balance"] == 11


def test_a_wait_ends_and_says_for_what(timed: Lab) -> None:
    bus, part = timed.query_bus, handler(timed)
    waits = bus.send(AccountById(account="a"), fresh=version(9, 0.02))
    part.step(0)
    later(timed, 0.03)
    part.step(0)
    with pytest.raises(TimedOut, match=r"version 9 of 'a' within 0.02 s, it is at 2"):
        bus.answer(waits)


def test_a_query_that_nobody_waits_for_is_not_read(timed: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr(ViewReads, "load", lambda *_: pytest.fail("it was read"))
    bus = timed.query_bus
    late = bus.send(AccountById(account="a"), timeout=0.001)
    later(timed, 0.01)
    assert handler(timed).step(0) == 1
    (result,) = bus.hear(0)
    assert result.id == late.id
    assert result.text.startswith("query 'AccountById' came to its handler after its deadline; ask")


def test_a_renewal_that_comes_too_late_is_no_error(timed: Lab) -> None:
    """A handler that was away finds several of them; the newest counts."""
    feed = timed.query_bus.subscribe(AccountById(account="a"), lease=0.05)
    later(timed, 0.06)
    feed.renew()
    assert handler(timed).step(0) == 1
    update = feed.poll()
    assert update is not None
    assert update.answer["balance"] == 1
    feed.close()


# --- a handler that dies


def test_an_answer_that_comes_twice_is_taken_once(money: Lab) -> None:
    bus = money.query_bus
    question = bus.send(AccountById(account="a"))
    money.crash("query", Failpoint.HANDLER_PRODUCED, "bank")  # answered, and not noted
    assert bus.answer(question)["balance"] == 1
    assert handler(money).step(0) == 1
    assert bus.hear(0) == []
    assert bus.dropped == 1
    assert handler(money).step(0) == 0


def test_offsets_that_a_rebalance_refused_are_noted_with_the_next_batch(
    money: Lab, monkeypatch: Any
) -> None:
    bus, part = money.query_bus, handler(money)
    commit, refused = MemoryLog.commit, [True]

    def busy(log: MemoryLog, *batch: Any) -> dict[int, int]:
        if refused and refused.pop():
            raise Fenced("the partitions are being dealt out")
        return commit(log, *batch)

    monkeypatch.setattr(MemoryLog, "commit", busy)
    question = bus.send(AccountById(account="a"))
    assert part.step(0) == 1
    assert bus.answer(question)["balance"] == 1
    assert money.lag("query", "bank") == 1
    assert part.step(0) == 0, "it goes on, and does not answer again"
    assert money.lag("query", "bank") == 0


def test_who_waits_in_a_dead_handler_waits_in_the_next_one(money: Lab) -> None:
    bus = money.query_bus
    waits, ready = (
        bus.send(AccountById(account="a"), fresh=fresh) for fresh in (version(3), LINEARIZABLE)
    )
    first = handler(money)
    first.step(0)
    assert bus.answer(ready)["balance"] == 1
    money._by_hand.forget("query", "bank")
    deposit(money, "a", 10)
    assert handler(money) is not first
    handler(money).step(0)
    assert bus.answer(waits)["balance"] == 11


# --- subscriptions


def balance(feed: Feed) -> int | None:
    update = feed.poll()
    return None if update is None else update.answer["balance"]


def test_first_the_answer_then_its_updates(money: Lab) -> None:
    part = handler(money)
    feed = money.query_bus.subscribe(AccountById(account="a"))
    part.step(0)
    assert (balance(feed), balance(feed)) == (1, None)
    for cents in (10, 100):
        deposit(money, "a", cents)
        part.step(0)
    assert [balance(feed), balance(feed), balance(feed)] == [11, 111, None]
    feed.close()
    part.step(0)
    deposit(money, "a", 1_000)
    assert part.step(0) == 0


def test_what_others_do_is_no_update(money: Lab) -> None:
    part = handler(money)
    feed = money.query_bus.subscribe(AccountById(account="a"))
    assert part.step(0) == 1
    money.bus.send(OpenAccount("b", "bob"))
    deposit(money, "b", 5)
    assert part.step(0) == 0
    assert (balance(feed), balance(feed)) == (1, None)


def test_an_answer_that_is_the_same_is_not_sent_again(money: Lab) -> None:
    part = handler(money)
    money.query_bus.subscribe(AccountById(account="a"))
    assert part.step(0) == 1
    money.store.claim("bank.checkpoints", "bank.view")  # perhaps another generation
    assert part.step(0) == 0


def test_a_change_is_looked_through_once_however_many_follow(money: Lab) -> None:
    class Counted(frozenset[Change]):
        passes = 0

        def __iter__(self) -> Iterator[Change]:
            Counted.passes += 1
            return super().__iter__()

    part = handler(money)
    feeds = [money.query_bus.subscribe(AccountById(account=f"{n}")) for n in range(30)]
    feeds.append(money.query_bus.subscribe(AccountById(account="a")))
    assert part.step(0) == 31
    honest, changes = part._changes.poll, part._changes  # type: ignore[union-attr]

    def poll(timeout: float) -> Noticed:
        found = honest(timeout)
        return Noticed(Counted(found.changes), found.lost)

    changes.poll = poll  # type: ignore[union-attr, method-assign]
    deposit(money, "a", 10)
    assert part.step(0) == 1
    assert 0 < Counted.passes < 5
    assert balance(feeds[-1]) == 1
    assert balance(feeds[-1]) == 11


def test_the_first_answer_is_as_fresh_as_asked(money: Lab) -> None:
    part = handler(money)
    feed = money.query_bus.subscribe(AccountById(account="a"), fresh=version(3))
    part.step(0)
    assert balance(feed) is None
    deposit(money, "a", 10)
    part.step(0)
    part.step(0)
    assert balance(feed) == 11


def test_a_subscription_without_a_renewal_ends(timed: Lab) -> None:
    part = handler(timed)
    feed = timed.query_bus.subscribe(AccountById(account="a"), lease=0.05)
    assert part.step(0) == 1
    later(timed, 0.03)
    assert balance(feed) == 1
    feed.poll()  # renews it
    part.step(0)
    later(timed, 0.03)
    part.step(0)
    assert len(part._followed) == 1
    later(timed, 0.05)
    part.step(0)
    assert not part._followed


def test_the_next_handler_takes_over_at_a_renewal(timed: Lab) -> None:
    feed = timed.query_bus.subscribe(AccountById(account="a"), lease=0.3)
    handler(timed).step(0)
    assert balance(feed) == 1
    timed._by_hand.forget("query", "bank")
    deposit(timed, "a", 10)
    assert handler(timed).step(0) == 0, "it does not know of it yet"
    later(timed, 0.1)
    assert balance(feed) is None  # renews it
    handler(timed).step(0)
    assert (balance(feed), balance(feed)) == (11, None)


def test_an_answer_of_a_handler_that_was_replaced_is_dropped(money: Lab) -> None:
    feed = money.query_bus.subscribe(AccountById(account="a"))
    for round, cents in ((1, 1), (2, 3), (1, 2), (2, 3), (2, 4)):
        feed.take(Result(feed.question.id, True, {"balance": cents}, round=round))
    assert [balance(feed) for _ in range(4)] == [1, 3, 4, None]


def test_conditions_that_nobody_understands_are_told(money: Lab) -> None:
    feed = money.query_bus.subscribe(Statement("a", order="owl"))
    handler(money).step(0)
    with pytest.raises(UsageError, match="order must be oldest or newest, got 'owl'"):
        feed.poll()


def test_too_many_subscriptions_are_refused(money: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr(query_handler, "MAX_SUBSCRIPTIONS", 1)
    part = handler(money)
    money.query_bus.subscribe(AccountById(account="a"))
    part.step(0)
    feed = money.query_bus.subscribe(AccountById(account="b"))
    part.step(0)
    with pytest.raises(UsageError, match="has 1 subscriptions already"):
        feed.poll()


def test_questions_and_answers_that_nobody_takes_are_bounded(money: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr(query_bus, "MOST_OPEN", 4)
    bus, query = money.query_bus, AccountById(account="a")
    asked = [bus.send(query) for _ in range(2)]
    handler(money).step(0)
    assert len(bus.hear(0.0)) == 2, "nobody takes these answers"
    bus.send(query)
    over = bus.send(query, timeout=1e-9)
    bus.send(query)
    assert over.id not in bus._open, "the answer comes too late, and makes room"
    with pytest.raises(UsageError, match="2 queries are under way and 2 answers were not taken"):
        bus.send(query)
    bus.answer(asked[0])
    bus.forget(asked[1].id)
    bus.send(query)
    assert len(bus._open) + len(bus._heard) == 3


def test_a_feed_that_is_seldom_read_keeps_the_newest(money: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr(query_bus, "MOST_RESULTS", 3)
    feed = money.query_bus.subscribe(AccountById(account="a"))
    for cents in range(1_000):
        feed.take(Result(feed.question.id, True, {"balance": cents}, round=1))
    assert len(feed._results) == 3
    assert [balance(feed) for _ in range(4)] == [997, 998, 999, None]


def test_queries_that_wait_for_fresh_views_are_bounded(money: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr(query_handler, "MAX_WAITING", 2)
    part, bus = handler(money), money.query_bus
    fresh = Fresh("version", (Version("bank", "a", 99),), 30.0)
    waiting = [bus.send(AccountById(account="a"), fresh=fresh) for _ in range(2)]
    part.step(0)
    late = bus.send(AccountById(account="a"), fresh=fresh)
    at_once = bus.send(AccountById(account="a"))
    part.step(0)
    with pytest.raises(TimedOut, match="2 queries wait for fresher views at this handler already"):
        bus.answer(late)
    assert bus.answer(at_once) is not None
    assert len(part._waiting) == len(waiting)


def test_a_subscription_read_here(lab: Lab) -> None:
    lab.bus.execute(OpenAccount("a", "ann"))
    fresh = Fresh("version", (Version("bank", "a", 1),))
    with closing(lab.subscribe(AccountById(account="a"), fresh=fresh)) as updates:
        first = updates.poll()
        assert first is not None
        assert first.answer["balance"] == 0
        lab.bus.execute(Deposit("a", 7))
        second = updates.poll(5)
        assert second is not None
        assert (second.number, second.answer["balance"]) == (2, 7)


def test_only_the_first_answer_waits_for_freshness(money: Lab) -> None:
    fresh = Fresh("linearizable", timeout=0.05)
    with closing(money.subscribe(AccountById(account="a"), fresh=fresh)) as updates:
        assert updates.poll() is not None
        deposit(money, "a", 10)
        deposit(money, "a", 100, seen=False)
        update = updates.poll()
        assert update is not None
        assert update.answer["balance"] == 11


# --- the cache


def asked(lab: Lab, **more: Any) -> tuple[int, bool]:
    """The balance, and whether it was held."""
    question = lab.query_bus.send(AccountById("a"), **more)
    handler(lab).step(0)
    (result,) = lab.query_bus.hear(0)
    assert result.id == question.id
    return result.value["balance"], result.cached


@pytest.fixture
def cached() -> Iterator[Lab]:
    with Lab(backend="memory", services=["bank"], partitions=2, cache=10) as made:
        made.bus.send(OpenAccount("a", "ann"))
        deposit(made, "a", 1)
        yield made


def test_a_held_answer_is_given_until_its_document_changes(cached: Lab) -> None:
    assert [asked(cached), asked(cached)] == [(1, False), (1, True)]
    deposit(cached, "a", 10)
    assert [asked(cached), asked(cached)] == [(11, False), (11, True)]
    cached.bus.send(OpenAccount("b", "bob"))
    deposit(cached, "b", 10)
    assert asked(cached) == (11, True), "what others do is nothing to it"


def test_who_asks_for_freshness_is_read(cached: Lab) -> None:
    assert [asked(cached), asked(cached)] == [(1, False), (1, True)]
    assert asked(cached, fresh=version(2)) == (1, False)
    assert asked(cached, fresh=LINEARIZABLE) == (1, False)


def test_a_switch_of_the_view_drops_all(cached: Lab) -> None:
    assert [asked(cached), asked(cached)] == [(1, False), (1, True)]
    cached.store.claim("bank.checkpoints", "bank.view")
    assert asked(cached) == (1, False)


def test_a_lost_token_drops_all(cached: Lab) -> None:
    assert [asked(cached), asked(cached)] == [(1, False), (1, True)]
    handler(cached)._changes.forget()  # type: ignore[union-attr]
    assert asked(cached) == (1, False)


def test_without_a_cache_each_is_read(money: Lab) -> None:
    assert [asked(money), asked(money)] == [(1, False), (1, False)]


# --- on real servers


@pytest.mark.servers
def test_a_question_a_dead_handler_and_a_subscription_on_real_servers(
    servers: stack.Servers,
) -> None:
    with Lab(services=["bank"], partitions=2, cache=100) as lab:
        try:
            lab.start(queries=1)
            lab.bus.execute(OpenAccount("a", "ann"))
            bus: QueryBus = lab.query_bus
            assert bus.ask(AccountById(account="a"), fresh=LINEARIZABLE)["balance"] == 0
            with closing(bus.subscribe(AccountById(account="a"), lease=3)) as feed:
                given = [following(feed)]
                for _ in range(5):
                    lab.bus.execute(Deposit("a", 1))
                while given[-1] < 5:
                    given.append(following(feed))
                assert given == sorted(set(given)), "none twice, none goes back"
                (worker,) = [w for w in lab.workers() if w.role == "query"]
                os.kill(worker.pid, signal.SIGKILL)
                lab.bus.execute(Deposit("a", 1))
                assert bus.ask(AccountById(account="a"), fresh=LINEARIZABLE)["balance"] == 6
                assert following(feed) == 6, "the next life takes over at a renewal"
            bus.flush()
            deadline = time.monotonic() + 20
            while lab.lag("query", "bank") and time.monotonic() < deadline:
                time.sleep(0.05)
            assert lab.lag("query", "bank") == 0
        finally:
            lab.drop()


def following(feed: Feed) -> int:
    update = feed.poll(30)
    assert update is not None
    balance = update.answer["balance"]
    assert isinstance(balance, int)
    return balance


@pytest.mark.servers
def test_the_first_question_by_hand_on_real_servers(servers: stack.Servers) -> None:
    """kafka-python joins its group twice; the first commit may fall into the second time."""
    with Lab(services=["bank"]) as lab:
        for account in "abcde":
            lab.bus.send(OpenAccount(account, "ann")).token()
        work(lab, "bank")
        project(lab, "bank")
        question = lab.query_bus.send(AccountById(account="a"))
        lab.query_bus.flush()
        assert [len(lab.topic(f"bank.{kind}")) for kind in ("queries", "results")] == [1, 0]
        assert handler(lab).step(10) == 1
        assert lab.query_bus.answer(question)["owner"] == "ann"
        lab.drop()
