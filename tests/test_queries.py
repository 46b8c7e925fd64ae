"""What the views answer, and the wait for a token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from labkit.domain.catalog import ChangePrice, ListProduct, RegisterCustomer
from labkit.domain.orders import CancelOrder, PayOrder, PlaceOrder
from labkit.errors import TimedOut
from labkit.lab import Lab
from labkit.messages import Token


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory") as made:
        yield made


def place(order: str, customer: str, day: str, cents: int, quantity: int = 1) -> PlaceOrder:
    return PlaceOrder(order, customer, day, quantity, cents)


@pytest.fixture
def shop(lab: Lab) -> Lab:
    """Orders that lie in several partitions."""
    lab.start()
    for n in range(12):
        customer = "ann" if n % 3 else "bob"
        lab.bus.execute(place(f"o{n}", customer, f"1997-0{n % 2 + 1}-{n + 1:02}", 100 * n, n + 1))
    lab.bus.execute(CancelOrder("o3"))
    lab.bus.execute(PayOrder("o4", 400))
    return lab


def test_one_order(shop: Lab) -> None:
    order = shop.queries.order("o4")
    assert order is not None
    assert (order["customer"], order["cents"], order["payment"]) == ("ann", 400, "paid")
    assert shop.queries.order("never") is None
    assert shop.queries.orders_seen() == 12


def test_the_trace_of_an_order_adds_up(shop: Lab) -> None:
    order = shop.queries.order("o4")
    assert order is not None
    stages = ["intended", "sent", "polled", "decided", "fetched", "applied"]
    instants = [order["trace"][stage] for stage in stages]
    assert instants == sorted(instants)
    assert instants[0] > 0


def test_the_orders_of_a_customer_by_day(shop: Lab) -> None:
    found = shop.queries.orders_of("bob")
    assert [d["_id"] for d in found] == ["o0", "o6", "o3", "o9"]
    assert [d["_id"] for d in shop.queries.orders_of("bob", limit=2)] == ["o0", "o6"]
    assert shop.queries.orders_of("nobody") == []


def test_sums_over_partitions(shop: Lab) -> None:
    assert len(shop.store.find("orders.view.customers", {"customer": "ann"})) > 1
    assert shop.queries.customers() == [
        {"_id": "ann", "orders": 8, "quantity": 56, "cents": 4_800},
        {"_id": "bob", "orders": 3, "quantity": 18, "cents": 1_500},
    ]
    assert [d["_id"] for d in shop.queries.customers(limit=1)] == ["ann"]
    assert shop.queries.revenue_by_month() == [
        {"_id": "1997-01", "orders": 6, "cents": 3_000},
        {"_id": "1997-02", "orders": 5, "cents": 3_300},
    ]


def test_products(lab: Lab) -> None:
    lab.start()
    lab.bus.execute(ListProduct("lp", "Record", 999))
    lab.bus.execute(ListProduct("cd", "Disc", 1_499))
    lab.bus.execute(ChangePrice("cd", 1_299))
    lab.bus.execute(RegisterCustomer("ann", "Ann"))
    assert [(d["id"], d["cents"]) for d in lab.queries.products()] == [("cd", 1_299), ("lp", 999)]


# --- the one wait


def test_waiting_ends_when_every_token_is_seen(lab: Lab) -> None:
    tokens = [lab.bus.send(place(f"o{n}", "ann", "1997-01-31", n)).token() for n in range(20)]
    with pytest.raises(TimedOut, match=r"view of 'orders' did not reach command \d+"):
        lab.queries.until(tokens, 0.02)
    lab.handler.step(0)
    lab.handler.flush()  # the handler's own checkpoint says nothing about the view
    with pytest.raises(TimedOut, match="is its projector running"):
        lab.queries.until(tokens, 0.02)
    lab.projector.step(0)
    lab.queries.until(tokens, 0.02)
    assert lab.queries.orders_seen() == 20
    lab.queries.until([], 0)


def test_a_refused_command_is_seen_too(lab: Lab) -> None:
    """Nothing shows in the view, and yet the wait must end."""
    token = lab.bus.send(PayOrder("never", 1)).token()
    lab.handler.step(0)
    lab.projector.step(0)
    lab.queries.until([token], 0.02)


def test_each_context_is_waited_for_by_itself(lab: Lab) -> None:
    order = lab.bus.send(place("o1", "ann", "1997-01-31", 1)).token()
    product = lab.bus.send(ListProduct("cd", "Disc", 1)).token()
    lab.handler.step(0)
    lab.projector.step(0)
    lab.queries.until([order], 0.02)
    with pytest.raises(TimedOut, match="view of 'catalog'"):
        lab.queries.until([order, product], 0.02)
    lab.by_hand("handler", "catalog").step(0)
    lab.by_hand("projector", "catalog").step(0)
    lab.queries.until([order, product], 0.02)


def test_a_token_of_a_partition_that_nobody_read_is_missing(lab: Lab) -> None:
    lab.handler.step(0)
    lab.projector.step(0)
    with pytest.raises(TimedOut, match="command 0 of partition 3"):
        lab.queries.until([Token("orders", 3, 0)], 0.02)


def test_waiting_ends_soon_after_the_view_is_there(lab: Lab) -> None:
    token = lab.bus.send(place("o1", "ann", "1997-01-31", 1)).token()
    lab.handler.step(0)
    projector = lab.projector
    timer = threading.Timer(0.05, projector.step, [0])
    timer.start()
    started = time.monotonic()
    lab.queries.until([token], 10)
    assert lab.queries.order("o1") is not None
    assert time.monotonic() - started >= 0.04, "it did wait"
    timer.join()
