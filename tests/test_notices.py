"""Business modules are told once, whatever crashes, and hear nothing of a replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from labkit import stack
from labkit.lab import Lab
from labkit.ports.failpoints import Failpoint
from labkit.ports.store import Writes
from labkit.services.bank import AccountOpened
from labkit.services.inventory import (
    AdjustStock,
    ReceiveStock,
    ReserveStock,
    StockAdjusted,
    StockReceived,
    StockReserved,
)
from labkit.services.inventory.notices import FEW
from labkit.services.inventory.notices import notices as of_inventory
from labkit.services.orders import CancelOrder, OrderCancelled, OrderPlaced, PlaceOrder
from labkit.services.orders.notices import notices as of_orders
from tests.built_in import SERVICES

DAY = "1997-01-31"
POINTS = [
    Failpoint.PROJECTOR_CLAIMED,
    Failpoint.PROJECTOR_FETCHED,
    Failpoint.PROJECTOR_APPLIED,
    Failpoint.PROJECTOR_ADVANCED,
    Failpoint.PROCESS_SENT,
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=["orders", "inventory"]) as made:
        yield made


def place(lab: Lab, *orders: str) -> None:
    for order in orders:
        lab.bus.send(PlaceOrder(order, "ann", DAY, 1, 100)).token()
    lab.handler.step(0)


def hear(lab: Lab, name: str = "mail", service: str = "orders") -> list[str]:
    """What is in a module's inbox once it has heard all: the texts, in the order of the ids."""
    with closing(lab.module(name, service)) as module:
        for _ in range(3):
            module.step(0)
    return [d["text"] for d in lab.store.find(f"{name}.inbox", {}, [("_id", 1)])]


def published(lab: Lab) -> list[str]:
    return sorted(lab.topic("orders.notices")["value"].map(lambda value: value["id"]))


# --- what is told: pure


def test_the_customer_hears_of_what_concerns_him() -> None:
    placed = OrderPlaced("o1", "ann", DAY, 5, 2, "cd", discount=0, return_days=None)
    assert list(of_orders(placed)) == [("mail", "ann: your order o1 has arrived")]
    back = OrderCancelled("o1", "ann", DAY, 5, 1_250, "")
    assert list(of_orders(back)) == [("mail", "ann: 12.50 are paid back to you")]
    assert list(of_orders(OrderCancelled("o1", "ann", DAY, 5, 0, ""))) == []
    assert list(of_orders(AccountOpened("a1", "ann"))) == []


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (StockReserved("cd", 3, FEW, "o1"), True),
        (StockReserved("cd", 3, FEW - 2, "o1"), True),
        (StockReserved("cd", 3, FEW + 1, "o1"), False),
        (StockReserved("cd", 3, FEW - 3, "o1"), False),  # it was low before
        (StockAdjusted("cd", -3, FEW - 1, "broken"), True),
        (StockAdjusted("cd", 3, FEW, "found"), False),
        (StockReceived("cd", 3, FEW), False),
    ],
)
def test_the_buyers_hear_when_a_shelf_gets_low(event: Any, told: bool) -> None:
    text = f"only {event.on_hand} pieces of cd are left"
    assert list(of_inventory(event)) == ([("buyers", text)] if told else [])


# --- that it is told once


def test_each_module_hears_its_own(lab: Lab) -> None:
    place(lab, "o1")
    for command in (ReceiveStock("cd", 12), ReserveStock("cd", "o1", 5)):
        lab.bus.send(command).token()
    lab.by_hand("handler", "inventory").step(0)
    for service in ("orders", "inventory"):
        assert lab.by_hand("notifier", service).step(0) > 0
    assert hear(lab) == ["ann: your order o1 has arrived"]
    assert hear(lab, "buyers", "inventory") == ["only 7 pieces of cd are left"]
    assert hear(lab) == ["ann: your order o1 has arrived"], "once, however often it looks"
    assert lab.store.find("orders.notices.outbox", {}) == []


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_of_the_notifier_tells_nothing_twice_and_loses_nothing(
    lab: Lab, point: Failpoint
) -> None:
    place(lab, "o1", "o2")
    lab.crash("notifier", point)
    place(lab, "o3")
    for _ in range(3):
        lab.by_hand("notifier").step(0)
    texts = [f"ann: your order o{n} has arrived" for n in (1, 2, 3)]
    assert hear(lab) == texts
    assert set(published(lab)) == {f"o{n}:1:mail" for n in (1, 2, 3)}
    if point is Failpoint.PROCESS_SENT:
        assert len(published(lab)) == 5, "it went out twice, and the inbox took it once"


def test_a_crash_of_the_module_takes_nothing_twice(lab: Lab) -> None:
    place(lab, "o1")
    lab.by_hand("notifier").step(0)
    with closing(lab.module("mail", "orders")) as doomed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.store, "advance", lambda *_: 1 / 0)
        doomed.step(0)  # it takes over, and reads nothing yet
        with pytest.raises(ZeroDivisionError):
            doomed.step(0)
    assert lab.store.find("mail.inbox", {}) == []
    assert hear(lab) == ["ann: your order o1 has arrived"]


@pytest.mark.parametrize("forgotten", ["the checkpoint", "all but what was told"])
def test_a_replay_is_silent(lab: Lab, forgotten: str) -> None:
    place(lab, "o1", "o2")
    notifier = lab.by_hand("notifier")
    notifier.step(0)
    before = published(lab)
    lab._by_hand.forget("notifier", "orders")
    name = "orders.notices"
    ids = [f"{name}:{p}" for p in range(lab.partitions)]
    lab.store.advance(f"{name}.checkpoints", [], Writes(deletes={f"{name}.checkpoints": ids}))
    if forgotten != "the checkpoint":
        lab.store.discard([f"{name}.seen"])
    place(lab, "o3")
    for _ in range(3):
        lab.by_hand("notifier").step(0)
    assert published(lab) == sorted([*before, "o3:1:mail"])


def test_what_is_no_notice_is_passed_over_and_counted(lab: Lab) -> None:
    place(lab, "o1")
    lab.by_hand("notifier").step(0)
    with closing(lab.broker.sender()) as sender:
        sender.send(lab.topic_name("orders.notices"), b"o1", b"junk")
        sender.flush(1)
    assert hear(lab) == ["ann: your order o1 has arrived"]
    assert sum(c.ignored for c in lab.store.checkpoints("mail.checkpoints")) == 1


def test_an_order_that_is_refused_tells_nobody(lab: Lab) -> None:
    place(lab, "o1")
    place(lab, "o1")
    lab.bus.send(CancelOrder("o9")).token()
    lab.handler.step(0)
    lab.by_hand("notifier").step(0)
    assert published(lab) == ["o1:1:mail"]


@pytest.mark.servers
def test_on_real_servers_with_a_notifier_that_is_killed(servers: stack.Servers) -> None:
    with Lab(services=["inventory"]) as lab:
        lab.start(notifiers=1)
        for n in range(20):
            lab.bus.execute(ReceiveStock(f"p{n}", FEW + 5))
        lab.stop()
        lab.start(notifiers=0)
        for n in range(20):
            lab.bus.execute(AdjustStock(f"p{n}", -6, "lost"))
        lab.stop()
        died = lab.crash("notifier", Failpoint.PROCESS_SENT, "inventory")
        assert died.signal == 9
        lab.start(notifiers=2)
        with closing(lab.module("buyers", "inventory")) as module:
            heard = 0
            while heard < 20:
                heard += module.step(1.0)
            while lab.lag("notifier", "inventory"):
                module.step(0.1)
            assert module.step(1.0) == 0
        inbox = lab.store.find("buyers.inbox", {}, [("_id", 1)])
        assert [d["_id"] for d in inbox] == sorted(f"p{n}:2:buyers" for n in range(20))
        lab.drop()


def test_the_contexts_that_tell_are_known() -> None:
    with Lab(backend="memory") as lab:
        assert lab.instances_of("notifier") == ("orders",)
    assert {s.name for s in SERVICES.values() if s.notices} == {"orders", "inventory"}
