"""The rules of an order: every arrow of its diagram, every refusal, and what must hold always."""

from __future__ import annotations

import datetime
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given as any_of
from hypothesis import settings
from hypothesis import strategies as st

from labkit.errors import Refused, UsageError
from labkit.messages import Command, Commit, Event, encode
from labkit.services import orders
from labkit.services.bounds import MAX_CENTS, MAX_KEY, MAX_QUANTITY
from labkit.services.orders import (
    CancelOrder,
    CancelUnpaid,
    OrderCancelled,
    OrderPaid,
    OrderPlaced,
    OrderPlacedV1,
    OrderReturned,
    OrderShipped,
    PayOrder,
    PlaceOrder,
    ReturnOrder,
    ShipOrder,
)
from labkit.testing import fold, specification
from tests.built_in import SERVICES

ORDERS = SERVICES["orders"]
given = specification(ORDERS)

DAY = "1997-01-31"
FACTS = ("o1", "ann", DAY, 1_499)
PLACE = PlaceOrder("o1", "ann", DAY, 2, 1_499)
PLACED = OrderPlaced(*FACTS, 2, "cd", 0, None)
PAID = OrderPaid(*FACTS)
SHIPPED = OrderShipped(*FACTS)
CANCELLED = OrderCancelled(*FACTS, 0, "")
EXPIRED = OrderCancelled(*FACTS, 0, "not paid in time")
REFUNDED = OrderCancelled(*FACTS, 1_499, "")
RETURNED = OrderReturned(*FACTS, 1_499, "")

#: Every state that an order can be in, by the events that lead there.
PASTS: dict[str, tuple[Event, ...]] = {
    "new": (),
    "placed, unpaid": (PLACED,),
    "placed, paid": (PLACED, PAID),
    "shipped, paid": (PLACED, PAID, SHIPPED),
    "returned, refunded": (PLACED, PAID, SHIPPED, RETURNED),
    "cancelled, unpaid": (PLACED, CANCELLED),
    "cancelled, refunded": (PLACED, PAID, REFUNDED),
}

COMMANDS: dict[str, Command] = {
    "place": PLACE,
    "pay": PayOrder("o1", 1_499),
    "ship": ShipOrder("o1"),
    "cancel": CancelOrder("o1"),
    "expire": CancelUnpaid("o1"),
    "return": ReturnOrder("o1"),
}

#: The arrows of the diagram in ``domain/orders.py``.
ARROWS: dict[tuple[str, str], Event] = {
    ("new", "place"): PLACED,
    ("placed, unpaid", "pay"): PAID,
    ("placed, unpaid", "cancel"): CANCELLED,
    ("placed, unpaid", "expire"): EXPIRED,
    ("placed, paid", "ship"): SHIPPED,
    ("placed, paid", "cancel"): REFUNDED,
    ("shipped, paid", "return"): RETURNED,
}

#: Why there is no arrow: the state and the command, and a part of the reason.
REFUSALS: dict[tuple[str, str], str] = {
    **{("new", command): "does not exist" for command in COMMANDS if command != "place"},
    **{(past, "place"): "exists" for past in PASTS if past != "new"},
    ("placed, unpaid", "ship"): "placed and unpaid",
    ("placed, unpaid", "return"): "is placed, only a shipped one",
    ("placed, paid", "pay"): "paid already",
    ("placed, paid", "expire"): "is paid, only an unpaid one expires",
    ("placed, paid", "return"): "is placed, only a shipped one",
    ("shipped, paid", "pay"): "is shipped",
    ("shipped, paid", "ship"): "shipped and paid",
    ("shipped, paid", "cancel"): "is shipped",
    ("shipped, paid", "expire"): "is shipped",
    ("returned, refunded", "pay"): "is returned",
    ("returned, refunded", "ship"): "returned and refunded",
    ("returned, refunded", "cancel"): "is returned",
    ("returned, refunded", "expire"): "is returned",
    ("returned, refunded", "return"): "is returned, only a shipped one",
    ("cancelled, unpaid", "pay"): "is cancelled",
    ("cancelled, unpaid", "ship"): "cancelled and unpaid",
    ("cancelled, unpaid", "cancel"): "is cancelled",
    ("cancelled, unpaid", "expire"): "is cancelled",
    ("cancelled, unpaid", "return"): "is cancelled, only a shipped one",
    ("cancelled, refunded", "pay"): "is cancelled",
    ("cancelled, refunded", "ship"): "cancelled and refunded",
    ("cancelled, refunded", "cancel"): "is cancelled",
    ("cancelled, refunded", "expire"): "is cancelled",
    ("cancelled, refunded", "return"): "is cancelled, only a shipped one",
}


@pytest.mark.parametrize(("past", "command"), ARROWS)
def test_an_arrow_of_the_diagram(past: str, command: str) -> None:
    given(*PASTS[past]).when(COMMANDS[command]).then(ARROWS[past, command])


@pytest.mark.parametrize(("past", "command"), REFUSALS)
def test_no_arrow_no_effect(past: str, command: str) -> None:
    given(*PASTS[past]).when(COMMANDS[command]).then_refused(REFUSALS[past, command])


def test_the_two_tables_hold_every_state_and_command() -> None:
    every = {(past, command) for past in PASTS for command in COMMANDS}
    assert ARROWS.keys() | REFUSALS.keys() == every
    assert not ARROWS.keys() & REFUSALS.keys()


@pytest.mark.parametrize("name", PASTS)
def test_the_state_is_what_its_name_says(name: str) -> None:
    state = fold(ORDERS, *PASTS[name])
    assert (f"{state.status}, {state.payment}" if state else "new") == name


def place(**fields: Any) -> PlaceOrder:
    facts: dict[str, Any] = {
        "order_id": "o1",
        "customer_id": "ann",
        "day": DAY,
        "quantity": 2,
        "cents": 1_499,
    }
    return PlaceOrder(**(facts | fields))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"order_id": ""}, "an empty one"),
        ({"customer_id": ""}, "an empty one"),
        ({"product_id": ""}, "product_id is needed, got an empty one"),
        ({"order_id": "o" * (MAX_KEY + 1)}, "at most 64 bytes and no NUL, got 'ooo"),
        ({"order_id": "\u00e9" * MAX_KEY}, "at most 64 bytes"),
        ({"order_id": "o\0"}, r"got 'o\x00'"),
        ({"quantity": 0}, "quantity must be between 1 and 1000000, got 0"),
        ({"quantity": MAX_QUANTITY + 1}, "got 1000001"),
        ({"day": "31.1.1997"}, "got '31.1.1997'"),
        ({"day": "19970131"}, "got '19970131'"),
        ({"day": "1997-02-29"}, "got '1997-02-29'"),
        ({"day": ""}, "got ''"),
        ({"cents": -1}, "got -1"),
        ({"cents": MAX_CENTS + 1}, "got 1000000000001"),
        ({"cents": 2**63}, f"got {2**63}"),
        ({"quantity": 10**30}, f"got {10**30}"),
        ({"quantity": float("nan")}, "got nan"),
    ],
)
def test_an_order_that_makes_no_sense(fields: dict[str, Any], reason: str) -> None:
    given().when(place(**fields)).then_refused(reason)


@pytest.mark.parametrize("cents", [0, 1, MAX_CENTS])
@pytest.mark.parametrize("quantity", [1, MAX_QUANTITY])
def test_free_of_charge_and_the_largest_are_fine(cents: int, quantity: int) -> None:
    placed = OrderPlaced("o1", "ann", DAY, cents, quantity, "cd", 0, None)
    given().when(place(cents=cents, quantity=quantity)).then(placed)
    given(placed).when(PayOrder("o1", cents)).then(OrderPaid("o1", "ann", DAY, cents))


@pytest.mark.parametrize("cents", [0, 1_498, 1_500, -1_499])
def test_only_the_exact_amount_pays(cents: int) -> None:
    given(PLACED).when(PayOrder("o1", cents)).then_refused(f"costs 1499 cents, got {cents}")


def test_a_reason_is_kept() -> None:
    given(PLACED).when(CancelOrder("o1", "late")).then(OrderCancelled(*FACTS, 0, "late"))
    past = (PLACED, PAID, SHIPPED)
    given(*past).when(ReturnOrder("o1", "broken")).then(OrderReturned(*FACTS, 1_499, "broken"))


# --- rules that change

BEFORE, SINCE = "1998-06-30", "1998-07-01"


def placed(day: str, quantity: int = 2, cents: int = 1_499) -> OrderPlaced:
    (event,) = orders.rules.place(None, place(day=day, quantity=quantity, cents=cents))
    assert isinstance(event, OrderPlaced)
    return event


@pytest.mark.parametrize(
    ("day", "quantity", "cents", "discount"),
    [
        (BEFORE, 10, 1_000, 0),
        (SINCE, 9, 1_000, 0),
        (SINCE, 10, 1_000, 100),
        ("2026-01-31", 11, 1_000, 100),
        (SINCE, 10, 1_009, 100),  # 100.9 cents: the shop keeps the fraction
        (SINCE, 10, 9, 0),
        (SINCE, 10, 0, 0),
        (SINCE, MAX_QUANTITY, MAX_CENTS, MAX_CENTS // 10),
    ],
)
def test_ten_pieces_are_cheaper_since_a_day(
    day: str, quantity: int, cents: int, discount: int
) -> None:
    event = placed(day, quantity, cents)
    assert (event.cents, event.discount) == (cents - discount, discount)
    paid = OrderPaid("o1", "ann", day, cents - discount)
    given(event).when(PayOrder("o1", cents - discount)).then(paid)
    if discount:
        given(event).when(PayOrder("o1", cents)).then_refused(f"got {cents}")


def shipped(day: str) -> tuple[Event, ...]:
    facts = ("o1", "ann", day, 1_499)
    return placed(day), OrderPaid(*facts), OrderShipped(*facts)


@pytest.mark.parametrize("back", ["", BEFORE, "1998-07-30", "2026-01-31"])
def test_an_order_of_the_old_days_comes_back_whenever(back: str) -> None:
    returned = OrderReturned("o1", "ann", BEFORE, 1_499, 1_499, "", back)
    given(*shipped(BEFORE)).when(ReturnOrder("o1", day=back)).then(returned)


@pytest.mark.parametrize("back", [SINCE, "1998-07-02", "1998-07-31"])
def test_an_order_comes_back_within_thirty_days(back: str) -> None:
    returned = OrderReturned("o1", "ann", SINCE, 1_499, 1_499, "", back)
    given(*shipped(SINCE)).when(ReturnOrder("o1", day=back)).then(returned)


@pytest.mark.parametrize(
    ("back", "reason"),
    [
        ("", "for 30 days: say on which day"),
        (BEFORE, "of 1998-07-01 and can be returned for 30 days, got 1998-06-30"),
        ("1998-08-01", "got 1998-08-01"),
        ("tomorrow", "day must be a date like 1997-01-31, got 'tomorrow'"),
    ],
)
def test_and_not_later(back: str, reason: str) -> None:
    given(*shipped(SINCE)).when(ReturnOrder("o1", day=back)).then_refused(reason)


@any_of(st.dates(min_value=datetime.date(1997, 1, 1), max_value=datetime.date(1998, 6, 30)))
def test_nothing_changes_for_the_days_of_the_demo(day: datetime.date) -> None:
    event = placed(day.isoformat(), quantity=99, cents=123_456)
    assert (event.cents, event.discount, event.return_days) == (123_456, 0, None)


def test_a_later_rule_does_not_alter_what_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    past = shipped(SINCE)
    monkeypatch.setattr(
        orders.rules, "RULES", (orders.rules.Rules(since="0001-01-01", return_days=1),)
    )
    given(*past).when(ReturnOrder("o1", day="1998-07-31")).then(
        OrderReturned("o1", "ann", SINCE, 1_499, 1_499, "", "1998-07-31")
    )


# --- the old log

#: As they were written before ``OrderPlaced.v2``.
OLD_LOG = [
    b'{"stream":"o1","id":"a","partition":3,"offset":7,"outcome":"accepted","first":1,"last":1,'
    b'"events":[{"type":"OrderPlaced","order_id":"o1","customer_id":"ann","day":"2026-01-31",'
    b'"cents":1499,"quantity":20,"product_id":"cd"}],"intended":5,"sent":6,"polled":7,"decided":8}',
    b'{"stream":"o1","id":"b","partition":3,"offset":8,"outcome":"accepted","first":2,"last":2,'
    b'"events":[{"type":"OrderPaid","order_id":"o1","customer_id":"ann","day":"2026-01-31",'
    b'"cents":1499}]}',
    b'{"stream":"o1","id":"c","partition":3,"offset":9,"outcome":"accepted","first":3,"last":3,'
    b'"events":[{"type":"OrderShipped","order_id":"o1","customer_id":"ann","day":"2026-01-31",'
    b'"cents":1499}]}',
    b'{"stream":"o1","id":"d","partition":3,"offset":10,"outcome":"accepted","first":4,"last":4,'
    b'"events":[{"type":"OrderReturned","order_id":"o1","customer_id":"ann","day":"2026-01-31",'
    b'"cents":1499,"refund":1499,"reason":""}]}',
]


def test_an_old_log_is_read_with_the_rules_of_its_time() -> None:
    past = [ORDERS.codec.decode_commit(value).events[0] for value in OLD_LOG]
    facts = ("o1", "ann", "2026-01-31", 1_499)
    assert past[0] == OrderPlaced(*facts, 20, "cd", 0, None), "no discount, no limit then"
    assert past[3] == OrderReturned(*facts, 1_499, "")
    state = fold(ORDERS, *past)
    assert (state.status, state.payment, state.cents) == ("returned", "refunded", 1_499)
    given(*past[:3]).when(ReturnOrder("o1")).then(past[3])


def test_a_stored_state_of_before_is_read() -> None:
    kept = {"customer_id": "ann", "day": SINCE, "cents": 5, "status": "shipped", "payment": "paid"}
    assert msgspec.convert(kept, orders.OrderState).return_days is None


def test_what_is_written_today_says_which_schema_it_is() -> None:
    commit: Commit[Any] = Commit("o1", "a", 0, 0, "accepted", 1, 1, (PLACED,))
    (event,) = json.loads(encode(commit))["events"]
    assert event["type"] == "OrderPlaced.v2"
    assert (event["discount"], event["return_days"]) == (0, None)
    assert ORDERS.codec.decode_commit(encode(commit)) == commit
    old = OrderPlacedV1(*FACTS, 2, "cd")
    before: Commit[Any] = Commit("o1", "a", 0, 0, "accepted", 1, 1, (old,))
    assert ORDERS.codec.decode_commit(encode(before)) == commit


# --- what holds after any sequence of commands

AMOUNTS = st.sampled_from([0, 1, 1_499, -1, MAX_CENTS + 1])
SOME_COMMAND = st.one_of(
    st.builds(
        PlaceOrder,
        st.just("o1"),
        st.sampled_from(["ann", "bob", ""]),
        st.sampled_from([DAY, "1998-06-30", "1998-07-01", "never"]),
        st.sampled_from([1, 2, 10, 0]),
        AMOUNTS,
    ),
    st.builds(PayOrder, st.just("o1"), AMOUNTS),
    st.builds(ReturnOrder, st.just("o1"), st.just(""), st.sampled_from(["", "1998-07-31"])),
    st.sampled_from(list(COMMANDS.values())),  # sensible ones, or few orders would get far
    st.sampled_from(list(COMMANDS.values())),
)

LEGAL = {tuple(name.split(", ")) for name in PASTS if name != "new"}


@settings(deadline=None, max_examples=300)
@any_of(st.lists(SOME_COMMAND, max_size=25))
def test_any_sequence_of_commands_leads_to_a_legal_order(commands: list[Command]) -> None:
    state = None
    history: list[Event] = []
    for command in commands:
        try:
            command.validate()
            events = ORDERS.decide[type(command)](state, command)
        except Refused:
            continue
        assert events, "what is not refused leaves a trace"
        history.extend(events)
        state = fold(ORDERS, *history)
        assert (state.status, state.payment) in LEGAL
    paid = sum(e.cents for e in history if isinstance(e, OrderPaid))
    returned = [e.refund for e in history if isinstance(e, OrderCancelled | OrderReturned)]
    assert 0 <= sum(returned) <= paid
    assert len(returned) <= 1
    if state is not None:
        was_paid = any(isinstance(e, OrderPaid) for e in history)
        assert (state.payment == "refunded") == (was_paid and bool(returned))
        if state.payment == "refunded":
            assert sum(returned) == paid
        assert isinstance(history[0], OrderPlaced)
        assert len({type(e) for e in history}) == len(history), "each step is taken once"


@settings(deadline=None, max_examples=200)
@any_of(st.lists(SOME_COMMAND, max_size=25), st.data())
def test_a_fold_may_be_cut_anywhere(commands: list[Command], data: st.DataObject) -> None:
    """What a restart does: a stored state and the events after it equal all events."""
    history: list[Event] = []
    for command in commands:
        try:
            command.validate()
            history.extend(ORDERS.decide[type(command)](fold(ORDERS, *history), command))
        except Refused:
            continue
    cut = data.draw(st.integers(0, len(history)))
    state = fold(ORDERS, *history[:cut])
    for event in history[cut:]:
        state = ORDERS.evolve(state, event)
    assert state == fold(ORDERS, *history)


def test_an_event_before_the_first_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="before OrderPlaced"):
        orders.evolve(None, PAID)
    with pytest.raises(TypeError, match="not an order event"):
        orders.evolve(fold(ORDERS, PLACED), Event())


# --- the kit itself: a wrong expectation must fail, and tell the story


def test_the_kit_shows_what_was_expected_and_what_came() -> None:
    with pytest.raises(AssertionError, match=r"(?s)given\n  OrderPlaced.*expected nothing\ngot\n"):
        given(PLACED).when(COMMANDS["pay"]).then()
    with pytest.raises(AssertionError, match=r"(?s)given nothing\nwhen.*refused: .*not exist"):
        given().when(COMMANDS["pay"]).then(PAID)
    with pytest.raises(AssertionError, match="expected a refusal: 'paid already'\nrefused:"):
        given().when(COMMANDS["pay"]).then_refused("paid already")
    with pytest.raises(AssertionError, match="expected a refusal: 'exists'\ngot\n  OrderPlaced"):
        given().when(PLACE).then_refused("exists")


def test_the_kit_refuses_what_can_never_fail() -> None:
    with pytest.raises(UsageError, match="every refusal"):
        given().when(COMMANDS["pay"]).then_refused("")
    with pytest.raises(UsageError, match="'orders' does not take Command"):
        given().when(Command())
