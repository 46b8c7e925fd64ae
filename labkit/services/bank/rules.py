"""Bank accounts: open, deposit, withdraw; and transfers, which span two streams.

No transaction holds two streams together, so a transfer is a process (``services.transfer``):
the source is debited first, and keeps the transfer *open* until it hears how it ended::

    source: SendMoney ──> open ──ConfirmSent──> closed    (target: ReceiveMoney was accepted)
                            └─────TakeBack────> closed    (target: ReceiveMoney was refused)

What is closed cannot be closed again: money never comes back after it arrived, and never twice.
At quiet (no command under way), in cents::

    sum of the balances + sum of the open transfers = deposits - withdrawals

Before that, a transfer that has arrived and is not yet confirmed stands in both sums on the left.

A target does not remember which transfers it received: that would grow for ever. That each arrives
once is the work of its command id, which the process derives from the transfer and the stream's
bookkeeping knows again. For the same reason ``ReceiveMoney``, ``ConfirmSent`` and ``TakeBack`` are
for the process alone: nobody else may be permitted to send them.
"""

from __future__ import annotations

from msgspec import field, structs

from labkit.errors import Refused
from labkit.messages import Decisions, Event, State
from labkit.services.bank.messages import (
    AccountCommand,
    AccountOpened,
    ConfirmSent,
    Deposit,
    Deposited,
    MoneyCommand,
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
from labkit.services.bounds import MAX_CENTS

#: What an account may hold, with what is under way from it, in cents.
MAX_BALANCE = 1_000 * MAX_CENTS
#: Transfers that may be open at one account: the state is one document, of 16 MB at most.
MAX_OPEN = 10_000


class OpenTransfer(State, frozen=True):
    """A transfer that is open at its source."""

    to: str
    cents: int


class AccountState(State, frozen=True):
    """The state that decisions need; ``open`` by transfer, ``under_way`` its sum in cents."""

    owner: str
    balance: int = 0
    under_way: int = 0
    open: dict[str, OpenTransfer] = field(default_factory=dict)


# --- decide


def open_account(account: AccountState | None, c: OpenAccount) -> tuple[Event, ...]:
    """Once."""
    if account is not None:
        raise Refused(f"account {c.account_id!r} exists")
    return (AccountOpened(c.account_id, c.owner),)


def deposit(account: AccountState | None, c: Deposit) -> tuple[Event, ...]:
    """As long as it fits."""
    return (Deposited(c.account_id, c.cents, _credited(_existing(account, c), c)),)


def withdraw(account: AccountState | None, c: Withdraw) -> tuple[Event, ...]:
    """Only what is there."""
    return (Withdrawn(c.account_id, c.cents, _debited(_existing(account, c), c)),)


def send(account: AccountState | None, c: SendMoney) -> tuple[Event, ...]:
    """Only what is there, only so many transfers at a time, each under its own id."""
    account = _existing(account, c)
    if c.transfer_id in account.open:
        raise Refused(f"transfer {c.transfer_id!r} is open already")
    if len(account.open) >= MAX_OPEN:
        raise Refused(f"account {c.account_id!r} has {MAX_OPEN} open transfers, no more fit")
    return (MoneySent(c.account_id, c.cents, _debited(account, c), c.to, c.transfer_id),)


def receive(account: AccountState | None, c: ReceiveMoney) -> tuple[Event, ...]:
    """As long as it fits."""
    balance = _credited(_existing(account, c), c)
    return (MoneyReceived(c.account_id, c.cents, balance, c.sender, c.transfer_id),)


def confirm(account: AccountState | None, c: ConfirmSent) -> tuple[Event, ...]:
    """Only an open transfer."""
    account = _existing(account, c)
    sent = _open(account, c)
    return (TransferConfirmed(c.account_id, sent.cents, account.balance, sent.to, c.transfer_id),)


def take_back(account: AccountState | None, c: TakeBack) -> tuple[Event, ...]:
    """Only an open transfer, and exactly its amount; so it fits always."""
    account = _existing(account, c)
    sent = _open(account, c)
    if c.cents != sent.cents:
        raise Refused(f"transfer {c.transfer_id!r} is of {sent.cents} cents, got {c.cents}")
    balance = account.balance + c.cents
    return (MoneyTakenBack(c.account_id, c.cents, balance, sent.to, c.transfer_id),)


def _existing(account: AccountState | None, c: AccountCommand) -> AccountState:
    if account is None:
        raise Refused(f"account {c.account_id!r} does not exist")
    return account


def _open(account: AccountState, c: ConfirmSent | TakeBack) -> OpenTransfer:
    if (sent := account.open.get(c.transfer_id)) is None:
        raise Refused(f"transfer {c.transfer_id!r} is not open at account {c.account_id!r}")
    return sent


def _credited(account: AccountState, c: MoneyCommand) -> int:
    """What is under way may come back, so it takes its room."""
    if account.balance + account.under_way + c.cents > MAX_BALANCE:
        raise Refused(f"account {c.account_id!r} holds at most {MAX_BALANCE} cents, got {c.cents}")
    return account.balance + c.cents


def _debited(account: AccountState, c: MoneyCommand) -> int:
    if c.cents > account.balance:
        raise Refused(f"account {c.account_id!r} has {account.balance} cents, got {c.cents}")
    return account.balance - c.cents


DECIDE: Decisions = {
    OpenAccount: open_account,
    Deposit: deposit,
    Withdraw: withdraw,
    SendMoney: send,
    ReceiveMoney: receive,
    ConfirmSent: confirm,
    TakeBack: take_back,
}

# --- evolve


def evolve(account: AccountState | None, event: Event) -> AccountState:
    """Fold one event into the state."""
    if isinstance(event, AccountOpened):
        return AccountState(event.owner)
    assert account is not None, f"{event} before AccountOpened"
    match event:
        case Deposited() | Withdrawn() | MoneyReceived():
            return structs.replace(account, balance=event.balance)
        case MoneySent():
            sent = {**account.open, event.transfer_id: OpenTransfer(event.to, event.cents)}
            under_way = account.under_way + event.cents
            return structs.replace(account, balance=event.balance, under_way=under_way, open=sent)
        case TransferConfirmed() | MoneyTakenBack():
            rest = dict(account.open)
            del rest[event.transfer_id]
            under_way = account.under_way - event.cents
            return structs.replace(account, balance=event.balance, under_way=under_way, open=rest)
    raise TypeError(f"not a bank event: {event!r}")
