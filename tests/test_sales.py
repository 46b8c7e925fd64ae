"""What is valid, what a window adds up, who has paid: plain functions, against pandas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from labkit.experiments import sales as tills
from labkit.streams.sales import (
    MINUTE,
    PAY_WITHIN,
    REVENUE,
    TOP,
    Order,
    Payment,
    Reject,
    Settlement,
    Window,
    add_up,
    judge,
    settle,
    settle_all,
)

GOOD = {"id": "o-1", "product": "tea", "at": 1_769_850_000_000, "quantity": 2, "cents": 780}


def raw(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_a_valid_order_is_an_order() -> None:
    assert judge(raw()) == Order(**GOOD)
    assert judge(raw(cents=0, quantity=100)) == Order(**(GOOD | {"cents": 0, "quantity": 100}))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not an order: Input data was truncated"),
        (b"\xff", "not an order: JSON is malformed: invalid character (byte 0)"),
        (b"[" * 100_000, "not an order: "),
        (raw()[:-1], "not an order: Input data was truncated"),
        (raw(quantity="2"), "not an order: Expected `int`, got `str` - at `$.quantity`"),
        (raw(quantity=2.5), "not an order: Expected `int`, got `float` - at `$.quantity`"),
        (raw(colour="red"), "not an order: Object contains unknown field `colour`"),
        (raw(id=""), "not an order: Expected `str` of length >= 1 - at `$.id`"),
        (raw(quantity=0), "quantity must be 1 to 100, got 0"),
        (raw(quantity=101), "quantity must be 1 to 100, got 101"),
        (raw(cents=-1), "cents must be 0 to 10000000, got -1"),
        (raw(cents=10_000_001), "cents must be 0 to 10000000, got 10000001"),
        (raw(at=0), "at 0 is not between the years 2000 and 2100"),
    ],
)
def test_anything_else_is_a_reject_with_its_reason(value: bytes | None, reason: str) -> None:
    found = judge(value)
    assert isinstance(found, Reject)
    assert found.reason.startswith(reason)
    assert found.raw == (value or b"").decode("utf-8", "backslashreplace")


def test_a_payment_of_nothing_is_none() -> None:
    payment = {"order": "o-1", "at": GOOD["at"], "cents": 1}
    assert judge(json.dumps(payment).encode(), Payment) == Payment(**payment)
    found = judge(json.dumps(payment | {"cents": 0}).encode(), Payment)
    assert found.reason == "cents must be 1 to 10000000, got 0"


@given(st.binary())
def test_no_bytes_are_an_exception(value: bytes) -> None:
    assert isinstance(judge(value), Reject | Order)


def test_which_windows_hold_an_instant() -> None:
    at = 17 * MINUTE + 1
    assert REVENUE.starts(at) == [17 * MINUTE]
    assert TOP.starts(at) == [10 * MINUTE, 15 * MINUTE]
    assert TOP.starts(15 * MINUTE) == [10 * MINUTE, 15 * MINUTE]


def at(second: int, id: str = "o", cents: int = 100, product: str = "tea") -> Order:
    return Order(id, product, second * 1_000, 1, cents)


def test_a_record_is_late_once_its_window_has_waited_for_the_grace() -> None:
    window = Window(width=MINUTE, step=MINUTE, grace=MINUTE)
    orders = [at(0), at(119), at(59, "in time"), at(120), at(59, "late"), at(60, "open")]
    totals, late = add_up(orders, window)
    assert {start: t.orders for (start, _), t in totals.items()} == {0: 2, 60_000: 2, 120_000: 1}
    assert [(one.order, one.window, one.by) for one in late] == [("late", 0, 1_000)]


def test_each_product_has_a_clock_of_its_own() -> None:
    window = Window(width=MINUTE, step=MINUTE, grace=0)
    orders = [at(0), at(600, product="soap"), at(1)]
    totals, late = add_up(orders, window)
    assert late == []
    assert totals[0, "tea"].orders == 2


def valid(seed: int, size: int) -> list[Order]:
    orders, _ = tills.tills(seed, size)
    return [found for _, value in orders if isinstance(found := judge(value), Order)]


@pytest.mark.parametrize("window", [REVENUE, TOP, Window(MINUTE, MINUTE, 0)])
def test_windows_equal_pandas(window: Window) -> None:
    orders, _ = tills.tills(5, 2_000)
    found = tills.valid_orders([value for _, value in orders])
    assert found["id"].to_list() == [order.id for order in valid(5, 2_000)]
    sums, late = tills.windows(found, window.width, window.step, window.grace)
    totals, missed = add_up(valid(5, 2_000), window)
    assert {(w, p): (o, q, c) for w, p, o, q, c in sums.itertuples(index=False)} == {
        key: structs.astuple(total) for key, total in totals.items()
    }
    assert sorted((m.window, m.order, m.product, m.cents) for m in missed) == [
        tuple(row) for row in late.itertuples(index=False)
    ]
    assert len(missed) > 10
    everything = sum(len(window.starts(order.at)) for order in valid(5, 2_000))
    assert sum(total.orders for total in totals.values()) + len(missed) == everything


def test_settlements_equal_pandas() -> None:
    raw_orders, raw_payments = tills.tills(5, 2_000)
    values = [value for _, value in raw_payments]
    found = tills.settlements(
        tills.valid_orders([value for _, value in raw_orders]), values, PAY_WITHIN
    )
    settled = settle_all([*(judge(v, Payment) for v in values), *valid(5, 2_000)])
    assert {o: s.status for o, s in settled.items()} == dict(
        zip(found["order"], found["status"], strict=True)
    )
    assert set(found["status"]) == {"paid", "paid late", "unpaid", "wrong amount", "no order"}


came = st.lists(
    st.one_of(
        st.just(Order("o", "tea", 1_000_000, 1, 300)),
        st.builds(
            Payment, st.just("o"), st.integers(0, 3_000_000), st.sampled_from([100, 200, 300])
        ),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(came.flatmap(lambda ones: st.tuples(st.just(ones), st.permutations(ones))))
def test_a_settlement_does_not_mind_what_comes_first(
    orders: tuple[list[Order | Payment], list[Order | Payment]],
) -> None:
    one, other = orders
    assert settle_all(one) == settle_all(other)


def test_what_a_settlement_says() -> None:
    order = Order("o", "tea", 0, 1, 300)
    assert settle(None, order).status == "unpaid"
    assert settle(None, Payment("o", 0, 300)).status == "no order"
    assert settle(settle(None, order), Payment("o", PAY_WITHIN, 300)).status == "paid"
    assert settle(settle(None, order), Payment("o", PAY_WITHIN + 1, 300)).status == "paid late"
    half = settle(settle(None, order), Payment("o", 1, 150))
    assert half.status == "wrong amount"
    assert settle(half, Payment("o", 2, 150)) == Settlement("o", 300, 0, 300, 2)
