"""What the views answer, and the wait for a token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from labkit.errors import TimedOut, UsageError
from labkit.lab import Lab
from labkit.messages import Token
from labkit.read.freshness import LINEARIZABLE
from labkit.read.pages import Page
from labkit.services.bank import AccountById, Balances, Deposit, OpenAccount, Statement, Withdraw
from labkit.services.catalog import ChangePrice, ListProduct, Products, RegisterCustomer
from labkit.services.inventory import (
    LowStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    ShipStock,
    StockOf,
)
from labkit.services.orders import (
    BestCustomers,
    CancelOrder,
    CustomerTotals,
    OrderById,
    OrdersOf,
    OrdersSeen,
    OrderWithStock,
    PayOrder,
    PlaceOrder,
    Revenue,
)


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
    order = shop.queries.ask(OrderById("o4"))
    assert order is not None
    assert (order["customer"], order["cents"], order["payment"]) == ("ann", 400, "paid")
    assert shop.queries.ask(OrderById("never")) is None
    assert shop.queries.ask(OrdersSeen()) == 12


def test_the_trace_of_an_order_adds_up(shop: Lab) -> None:
    order = shop.queries.ask(OrderById("o4"))
    assert order is not None
    stages = ["intended", "sent", "polled", "decided", "fetched", "applied"]
    instants = [order["trace"][stage] for stage in stages]
    assert instants == sorted(instants)
    assert instants[0] > 0


def ids(page: Page) -> list[str]:
    return [row["_id"] for row in page.rows]


def test_the_orders_of_a_customer_by_day_and_by_cents(shop: Lab) -> None:
    assert ids(shop.ask(OrdersOf("bob"))) == ["o0", "o6", "o3", "o9"]
    assert ids(shop.ask(OrdersOf("bob", sort="cents"))) == ["o0", "o3", "o6", "o9"]
    assert ids(shop.ask(OrdersOf("bob", sort="-day"))) == ["o9", "o3", "o6", "o0"]
    assert shop.ask(OrdersOf("nobody")) == Page([])
    with pytest.raises(UsageError, match=r"sort must be one of day, date, cents, .* got 'name'"):
        shop.ask(OrdersOf("bob", sort="name"))


def test_the_orders_of_a_customer_filtered(shop: Lab) -> None:
    assert ids(shop.ask(OrdersOf("bob", status="cancelled"))) == ["o3"]
    assert ids(shop.ask(OrdersOf("ann", payment="paid"))) == ["o4"]
    assert ids(shop.ask(OrdersOf("ann", status="placed", payment="paid"))) == ["o4"]
    assert ids(shop.ask(OrdersOf("bob", status="cancelled", payment="paid"))) == []
    page = shop.ask(OrdersOf("bob", status="placed", limit=2))
    assert ids(page) == ["o0", "o6"]
    more = OrdersOf("bob", status="placed", limit=2, cursor=page.cursor)
    assert ids(shop.ask(more)) == ["o9"]


def test_one_customer(shop: Lab) -> None:
    bob = {"_id": "bob", "orders": 3, "quantity": 18, "cents": 1_500}
    assert shop.queries.ask(CustomerTotals("bob")) == bob
    assert shop.queries.ask(CustomerTotals("nobody")) is None


def test_sums_over_partitions(shop: Lab) -> None:
    assert len(shop.store.find("orders.view.customers", {"customer": "ann"})) > 1
    assert shop.queries.ask(BestCustomers()) == [
        {"_id": "ann", "orders": 8, "quantity": 56, "cents": 4_800},
        {"_id": "bob", "orders": 3, "quantity": 18, "cents": 1_500},
    ]
    assert [d["_id"] for d in shop.queries.ask(BestCustomers(limit=1))] == ["ann"]
    assert shop.queries.ask(Revenue()) == [
        {"_id": "1997-01", "orders": 6, "cents": 3_000},
        {"_id": "1997-02", "orders": 5, "cents": 3_300},
    ]


def test_products(lab: Lab) -> None:
    lab.start()
    lab.bus.execute(ListProduct("lp", "Record", 999))
    lab.bus.execute(ListProduct("cd", "Disc", 1_499))
    lab.bus.execute(ChangePrice("cd", 1_299))
    lab.bus.execute(RegisterCustomer("ann", "Ann"))
    assert [(d["id"], d["cents"]) for d in lab.ask(Products())] == [("cd", 1_299), ("lp", 999)]


@pytest.fixture
def services() -> Iterator[Lab]:
    with Lab(backend="memory", services=["orders", "inventory", "bank"]) as made:
        made.start()
        yield made


def test_stock_and_low_stock(services: Lab) -> None:
    for product, pieces in (("lp", 5), ("cd", 3), ("mc", 3), ("ep", 4)):
        services.bus.execute(ReceiveStock(product, pieces))
    services.bus.execute(ReserveStock("lp", "o1", 4))
    queries = services.queries
    stock = queries.ask(StockOf("lp"), fresh=LINEARIZABLE)
    assert stock is not None
    assert (stock["on_hand"], stock["reserved"], stock["received"]) == (1, 4, 5)
    assert queries.ask(StockOf("never")) is None
    assert ids(queries.ask(LowStock(3))) == ["lp", "cd", "mc"], "what is held is not free"
    page = queries.ask(LowStock(3, limit=2))
    assert ids(page) == ["lp", "cd"]
    assert ids(queries.ask(LowStock(3, limit=2, cursor=page.cursor))) == ["mc"]
    assert ids(queries.ask(LowStock(0))) == []


def test_balances_and_a_statement(services: Lab) -> None:
    for account in ("b", "a", "c"):
        services.bus.execute(OpenAccount(account, "ann"))
    for cents in (500, 30, 7):
        services.bus.execute(Deposit("a", cents))
    services.bus.execute(Withdraw("a", 37))
    queries = services.queries
    account = queries.ask(AccountById("a"), fresh=LINEARIZABLE)
    assert account is not None
    assert account["balance"] == 500
    assert queries.ask(AccountById("never")) is None
    page = queries.ask(Balances(limit=2))
    assert [(d["_id"], d["balance"]) for d in page.rows] == [("a", 500), ("b", 0)]
    assert ids(queries.ask(Balances(limit=2, cursor=page.cursor))) == ["c"]
    lines = queries.ask(Statement("a", limit=3))
    assert [(d["version"], d["kind"], d["balance"]) for d in lines.rows] == [
        (2, "deposited", 500),
        (3, "deposited", 530),
        (4, "deposited", 537),
    ]
    rest = queries.ask(Statement("a", limit=3, cursor=lines.cursor))
    assert [(d["version"], d["kind"], d["balance"]) for d in rest.rows] == [(5, "withdrawn", 500)]
    assert rest.cursor == ""
    newest = queries.ask(Statement("a", limit=1, order="newest"))
    assert [d["version"] for d in newest.rows] == [5]
    assert queries.ask(Statement("b")) == Page([])


def test_an_order_with_its_stock_and_payment(services: Lab) -> None:
    bus, queries = services.bus, services.queries
    bus.execute(ReceiveStock("cd", 10))
    bus.execute(place("o1", "ann", "1997-01-31", 100, 3))
    whole = queries.ask(OrderWithStock("o1"), fresh=LINEARIZABLE)
    assert whole is not None
    assert (whole["order"]["payment"], whole["held"]) == ("unpaid", [])
    assert whole["stock"]["on_hand"] == 10
    bus.execute(PayOrder("o1", 100))
    bus.execute(ReserveStock("cd", "o1", 3))
    whole = queries.ask(OrderWithStock("o1"), fresh=LINEARIZABLE)
    assert whole is not None
    assert (whole["order"]["payment"], whole["stock"]["on_hand"]) == ("paid", 7)
    held = [(h["product"], h["quantity"], h["status"], h["version"]) for h in whole["held"]]
    assert held == [("cd", 3, "reserved", 2)]
    bus.execute(ReleaseStock("cd", "o1"))
    bus.execute(ReserveStock("cd", "o1", 2))
    bus.execute(ShipStock("cd", "o1"))
    whole = queries.ask(OrderWithStock("o1"), fresh=LINEARIZABLE)
    assert whole is not None
    held = [(h["product"], h["quantity"], h["status"], h["version"]) for h in whole["held"]]
    assert held == [("cd", 2, "shipped", 5)], "one document, of the last reservation"
    assert queries.ask(OrderWithStock("never")) is None


def test_goods_may_be_held_before_the_order_is_seen(services: Lab) -> None:
    services.bus.execute(ReceiveStock("cd", 10))
    services.bus.execute(ReserveStock("cd", "o1", 3))
    whole = services.queries.ask(OrderWithStock("o1"), fresh=LINEARIZABLE)
    assert whole is not None
    assert whole["order"] is None
    assert [h["quantity"] for h in whole["held"]] == [3]


def test_what_two_orders_hold_is_kept_apart(services: Lab) -> None:
    """Ids may hold any sign that a key could be joined with, but for NUL."""
    pairs = [("a:b", "c"), ("a", "b:c"), ("a b", "c"), ("a", "b c")]
    for product in {product for _, product in pairs}:
        services.bus.execute(ReceiveStock(product, 10))
    for pieces, (order, product) in enumerate(pairs, 1):
        services.bus.execute(ReserveStock(product, order, pieces))
    services.queries.ask(OrdersSeen(), fresh=LINEARIZABLE)
    found = {
        (h["order"], h["product"]): h["quantity"]
        for h in services.store.find("inventory.view.held", {})
    }
    assert found == {pair: pieces for pieces, pair in enumerate(pairs, 1)}


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
    assert lab.ask(OrdersSeen()) == 20
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
    started = time.monotonic()
    timer.start()
    lab.queries.until([token], 10)
    assert lab.ask(OrderById("o1")) is not None
    assert time.monotonic() - started >= 0.04, "it did wait"
    timer.join()
