"""The rules of the bank: no account below nothing, no money lost or made on the way."""

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
from labkit.services import bank
from labkit.services.bank import (
    MAX_BALANCE,
    AccountOpened,
    ConfirmSent,
    Deposit,
    Deposited,
    MoneyReceived,
    MoneySent,
    MoneyTakenBack,
    OpenAccount,
    ReceiveMoney,
    SendMoney,
    TakeBack,
    TransferConfirmed,
    Withdraw,
    Withdrawn,
)
from labkit.services.bank.rules import AccountState, OpenTransfer
from labkit.services.bounds import MAX_CENTS, MAX_KEY
from labkit.testing import fold, specification
from tests.built_in import SERVICES

BANK = SERVICES["bank"]
given = specification(BANK)

OPENED = AccountOpened("a", "ann")
RICH = (OPENED, Deposited("a", 100, 100))
SENT = (*RICH, MoneySent("a", 30, 70, "b", "t1"))
CONFIRMED = TransferConfirmed("a", 30, 70, "b", "t1")
TAKEN_BACK = MoneyTakenBack("a", 30, 100, "b", "t1")


def test_an_account_is_opened_once() -> None:
    given().when(OpenAccount("a", "ann")).then(OPENED)
    given(OPENED).when(OpenAccount("a", "bob")).then_refused("account 'a' exists")


def test_money_goes_in_and_out() -> None:
    given(OPENED).when(Deposit("a", 100)).then(RICH[1])
    given(*RICH).when(Withdraw("a", 100)).then(Withdrawn("a", 100, 0))
    given(*RICH).when(Withdraw("a", 101)).then_refused("account 'a' has 100 cents, got 101")


@pytest.mark.parametrize(
    "command",
    [
        Deposit("a", 1),
        Withdraw("a", 1),
        SendMoney("a", 1, "b", "t1"),
        ReceiveMoney("a", 1, "b", "t1"),
        ConfirmSent("a", "t1"),
        TakeBack("a", 1, "t1"),
    ],
)
def test_without_an_account_nothing_goes(command: Command) -> None:
    given().when(command).then_refused("account 'a' does not exist")


def test_the_first_leg_debits_and_leaves_the_transfer_open() -> None:
    given(*RICH).when(SendMoney("a", 30, "b", "t1")).then(SENT[-1])
    given(*RICH).when(SendMoney("a", 101, "b", "t1")).then_refused("has 100 cents, got 101")
    given(*SENT).when(SendMoney("a", 1, "c", "t1")).then_refused("'t1' is open already")
    assert fold(BANK, *SENT) == AccountState("ann", 70, 30, {"t1": OpenTransfer("b", 30)})


def test_the_second_leg_credits() -> None:
    received = MoneyReceived("a", 5, 105, "b", "t9")
    given(*RICH).when(ReceiveMoney("a", 5, "b", "t9")).then(received)


def test_a_transfer_is_closed_once_one_way_or_the_other() -> None:
    given(*SENT).when(ConfirmSent("a", "t1")).then(CONFIRMED)
    given(*SENT).when(TakeBack("a", 30, "t1")).then(TAKEN_BACK)
    for end in (CONFIRMED, TAKEN_BACK):
        for command in (ConfirmSent("a", "t1"), TakeBack("a", 30, "t1")):
            given(*SENT, end).when(command).then_refused("transfer 't1' is not open at account 'a'")
    assert fold(BANK, *SENT, CONFIRMED) == AccountState("ann", 70), "what is closed is forgotten"
    assert fold(BANK, *SENT, TAKEN_BACK) == AccountState("ann", 100)


def test_exactly_what_was_sent_comes_back() -> None:
    given(*SENT).when(TakeBack("a", 31, "t1")).then_refused("is of 30 cents, got 31")


def test_what_is_under_way_keeps_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank.rules, "MAX_BALANCE", 100)
    given(*RICH).when(Deposit("a", 1)).then_refused("holds at most 100 cents, got 1")
    given(*SENT).when(ReceiveMoney("a", 1, "b", "t2")).then_refused("holds at most 100 cents")
    given(*SENT).when(TakeBack("a", 30, "t1")).then(TAKEN_BACK)
    given(*SENT, CONFIRMED).when(Deposit("a", 30)).then(Deposited("a", 30, 100))


def test_only_so_many_transfers_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank.rules, "MAX_OPEN", 1)
    given(*SENT).when(SendMoney("a", 1, "b", "t2")).then_refused("has 1 open transfers, no more")
    given(*SENT, CONFIRMED).when(SendMoney("a", 1, "b", "t2")).then(
        MoneySent("a", 1, 69, "b", "t2")
    )


def test_the_largest_state_fits_into_a_document() -> None:
    sent = {
        f"{n:0{MAX_KEY}}": OpenTransfer("b" * MAX_KEY, MAX_CENTS)
        for n in range(bank.rules.MAX_OPEN)
    }
    state = msgspec.to_builtins(AccountState("ann", MAX_BALANCE, open=sent))
    assert len(bson.encode(state)) < 2_000_000, "far below MongoDB's 16 MB"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (OpenAccount("", "ann"), "account_id is needed"),
        (OpenAccount("a", ""), "owner is needed"),
        (Deposit("a", 0), "cents must be between 1 and 1000000000000, got 0"),
        (Deposit("a", 2**63), f"got {2**63}"),
        (Deposit("a", math.nan), "got nan"),  # type: ignore[arg-type]
        (Withdraw("a", -1), "got -1"),
        (SendMoney("a", MAX_CENTS + 1, "b", "t1"), "got 1000000000001"),
        (SendMoney("a", 1, "a", "t1"), "cannot send money to itself"),
        (SendMoney("a", 1, "", "t1"), "to is needed"),
        (SendMoney("a", 1, "b", ""), "transfer_id is needed"),
        (SendMoney("a", 1, "b", "t" * (MAX_KEY + 1)), "at most 64 bytes"),
        (ReceiveMoney("a", 1, "a", "t1"), "cannot receive money from itself"),
        (ReceiveMoney("a", 1, "b", "t\0"), "no NUL"),
        (ConfirmSent("a", ""), "transfer_id is needed"),
        (TakeBack("a", 0, "t1"), "got 0"),
    ],
)
def test_what_makes_no_sense(command: Command, reason: str) -> None:
    with pytest.raises(Refused):
        command.validate()
    given(*RICH).when(command).then_refused(reason)


# --- what holds after any sequence of commands

ID, CENTS = st.just("a"), st.sampled_from([1, 5, 30, 100, 0])
OTHER, TRANSFER = st.sampled_from(["b", "c", "a"]), st.sampled_from(["t1", "t2", "t3"])
COMMANDS = st.one_of(
    st.builds(OpenAccount, ID, st.sampled_from(["ann", ""])),
    st.builds(Deposit, ID, CENTS),
    st.builds(Withdraw, ID, CENTS),
    st.builds(SendMoney, ID, CENTS, OTHER, TRANSFER),
    st.builds(ReceiveMoney, ID, CENTS, OTHER, TRANSFER),
    st.builds(ConfirmSent, ID, TRANSFER),
    st.builds(TakeBack, ID, CENTS, TRANSFER),
)


@settings(deadline=None, max_examples=300)
@any_of(st.lists(COMMANDS, max_size=40))
def test_an_account_adds_up_and_is_never_below_nothing(commands: list[Command]) -> None:
    state: AccountState | None = fold(BANK, *RICH)
    given_away = 0  # confirmed
    total = 100
    for command in commands:
        try:
            command.validate()
            (event,) = BANK.decide[type(command)](state, command)
        except Refused:
            continue
        before, told = state, repr(state)
        state = BANK.evolve(state, event)
        assert repr(before) == told, "a fold changes no old state"
        assert state is not None
        total += event.cents if isinstance(event, Deposited | MoneyReceived) else 0
        total -= event.cents if isinstance(event, Withdrawn) else 0
        given_away += event.cents if isinstance(event, TransferConfirmed) else 0
        assert state.balance == event.balance >= 0
        assert state.under_way == sum(sent.cents for sent in state.open.values())
        assert state.balance + state.under_way + given_away == total


def test_an_event_before_the_first_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="before AccountOpened"):
        bank.evolve(None, RICH[1])
    with pytest.raises(TypeError, match="not a bank event"):
        bank.evolve(fold(BANK, OPENED), Event())
