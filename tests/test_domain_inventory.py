"""The rules of the stock: what moves, what is refused, and that nothing gets lost."""

from __future__ import annotations

import math

import bson
import msgspec
import pytest
from hypothesis import given as any_of
from hypothesis import settings
from hypothesis import strategies as st

from labkit.errors import Refused
from labkit.messages import Command, Event
from labkit.services import inventory
from labkit.services.bounds import MAX_KEY, MAX_QUANTITY
from labkit.services.inventory import (
    AdjustStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    ShipStock,
    StockAdjusted,
    StockReceived,
    StockReleased,
    StockReserved,
    StockShipped,
    StockState,
)
from labkit.testing import fold, specification
from tests.built_in import SERVICES

INVENTORY = SERVICES["inventory"]
given = specification(INVENTORY)

RECEIVED = StockReceived("cd", 10, 10)
RESERVED = StockReserved("cd", 3, 7, "o1")


def test_pieces_come_in() -> None:
    given().when(ReceiveStock("cd", 10)).then(RECEIVED)
    given(RECEIVED).when(ReceiveStock("cd", 5)).then(StockReceived("cd", 5, 15))


def test_an_order_holds_pieces_once() -> None:
    given(RECEIVED).when(ReserveStock("cd", "o1", 3)).then(RESERVED)
    again = given(RECEIVED, RESERVED).when(ReserveStock("cd", "o1", 2))
    again.then_refused("order 'o1' holds 3 already")
    given(RECEIVED, RESERVED).when(ReserveStock("cd", "o2", 7)).then(
        StockReserved("cd", 7, 0, "o2")
    )


def test_what_is_not_on_hand_cannot_be_reserved() -> None:
    given().when(ReserveStock("cd", "o1", 1)).then_refused("has 0 pieces on hand, got 1")
    given(RECEIVED).when(ReserveStock("cd", "o1", 11)).then_refused("has 10 pieces on hand, got 11")
    given(RECEIVED, RESERVED).when(ReserveStock("cd", "o2", 8)).then_refused("has 7 pieces")


def test_what_is_held_is_released_or_shipped_once() -> None:
    released = StockReleased("cd", 3, 10, "o1")
    shipped = StockShipped("cd", 3, 7, "o1")
    given(RECEIVED, RESERVED).when(ReleaseStock("cd", "o1")).then(released)
    given(RECEIVED, RESERVED).when(ShipStock("cd", "o1")).then(shipped)
    for end in (released, shipped):
        for command in (ReleaseStock("cd", "o1"), ShipStock("cd", "o1")):
            given(RECEIVED, RESERVED, end).when(command).then_refused("'o1' holds nothing of")
    given().when(ShipStock("cd", "o1")).then_refused("holds nothing of product 'cd'")
    assert fold(INVENTORY, RECEIVED, RESERVED, shipped) == StockState(7, 3, 10, 0)
    assert fold(INVENTORY, RECEIVED, RESERVED, released) == StockState(10, 0, 10, 0)


def test_the_books_are_corrected_both_ways_but_not_below_nothing() -> None:
    given().when(AdjustStock("cd", 2, "found")).then(StockAdjusted("cd", 2, 2, "found"))
    given(RECEIVED).when(AdjustStock("cd", -10, "lost")).then(StockAdjusted("cd", -10, 0, "lost"))
    below = given(RECEIVED, RESERVED).when(AdjustStock("cd", -8, "lost"))
    below.then_refused("has 7 pieces on hand, got -8")
    given().when(AdjustStock("cd", -1, "lost")).then_refused("has 0 pieces on hand, got -1")


def test_only_so_many_orders_hold_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory.rules, "MAX_RESERVATIONS", 1)
    given(RECEIVED).when(ReserveStock("cd", "o1", 3)).then(RESERVED)
    given(RECEIVED, RESERVED).when(ReserveStock("cd", "o2", 1)).then_refused("held by 1 orders")


def test_the_largest_state_fits_into_a_document() -> None:
    held = {f"{n:0{MAX_KEY}}": MAX_QUANTITY for n in range(inventory.rules.MAX_RESERVATIONS)}
    state = msgspec.to_builtins(StockState(reserved=held))
    assert len(bson.encode(state)) < 1_000_000, "far below MongoDB's 16 MB"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (ReceiveStock("", 1), "product_id is needed"),
        (ReserveStock("cd", "", 1), "order_id is needed"),
        (ReserveStock("cd", "o\0", 1), r"got 'o\x00'"),
        (ReleaseStock("cd", "o" * (MAX_KEY + 1)), "at most 64 bytes"),
        (ShipStock("", "o1"), "product_id is needed"),
        (ReceiveStock("cd", 0), "quantity must be between 1 and 1000000, got 0"),
        (ReceiveStock("cd", MAX_QUANTITY + 1), "got 1000001"),
        (ReceiveStock("cd", 2**64), f"got {2**64}"),
        (ReceiveStock("cd", math.nan), "got nan"),  # type: ignore[arg-type]
        (ReceiveStock("cd", math.inf), "got inf"),  # type: ignore[arg-type]
        (ReserveStock("cd", "o1", -1), "got -1"),
        (ReserveStock("cd", "o1", 10**40), f"got {10**40}"),
        (AdjustStock("cd", -(2**63) - 1, "x"), f"got {-(2**63) - 1}"),
        (AdjustStock("cd", math.nan, "x"), "got nan"),  # type: ignore[arg-type]
        (AdjustStock("cd", 0, "x"), "needs a quantity and a reason, got 0 and 'x'"),
        (AdjustStock("cd", 1, ""), "got 1 and ''"),
    ],
)
def test_what_makes_no_sense(command: Command, reason: str) -> None:
    with pytest.raises(Refused):
        command.validate()
    given(RECEIVED).when(command).then_refused(reason)


def test_a_huge_number_on_the_wire_is_refused_with_its_value() -> None:
    body = b'{"type":"ReceiveStock","product_id":"cd","quantity":9223372036854775808}'
    command = INVENTORY.codec.decode_command(b'{"id":"a","body":' + body + b"}").body
    given().when(command).then_refused("got 9223372036854775808")


# --- what holds after any sequence of commands

PRODUCT, ORDER = st.just("cd"), st.sampled_from(["o1", "o2", "o3"])
PIECES = st.sampled_from([1, 2, 5, 40, 0, -3])
COMMANDS = st.one_of(
    st.builds(ReceiveStock, PRODUCT, PIECES),
    st.builds(ReserveStock, PRODUCT, ORDER, PIECES),
    st.builds(ReleaseStock, PRODUCT, ORDER),
    st.builds(ShipStock, PRODUCT, ORDER),
    st.builds(AdjustStock, PRODUCT, PIECES, st.sampled_from(["count", ""])),
)


@settings(deadline=None, max_examples=300)
@any_of(st.lists(COMMANDS, max_size=40))
def test_nothing_gets_lost_and_nothing_is_negative(commands: list[Command]) -> None:
    state: StockState | None = None
    received = adjusted = shipped = 0
    for command in commands:
        try:
            command.validate()
            (event,) = INVENTORY.decide[type(command)](state, command)
        except Refused:
            continue
        before, told = state, repr(state)
        state = INVENTORY.evolve(state, event)
        assert repr(before) == told, "a fold changes no old state"
        received += event.quantity if isinstance(event, StockReceived) else 0
        adjusted += event.quantity if isinstance(event, StockAdjusted) else 0
        shipped += event.quantity if isinstance(event, StockShipped) else 0
        assert (state.received, state.adjusted, state.shipped) == (received, adjusted, shipped)
        assert state.on_hand == event.on_hand >= 0
        assert all(pieces > 0 for pieces in state.reserved.values())
        held = sum(state.reserved.values())
        assert state.on_hand + held + state.shipped == state.received + state.adjusted


def test_a_strange_event_is_a_bug() -> None:
    with pytest.raises(TypeError, match="not an inventory event"):
        inventory.evolve(None, Event())
