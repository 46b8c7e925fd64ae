"""Bank accounts: open, deposit, withdraw; and transfers, which span two streams.

No transaction holds two streams together, so a transfer is a process (``fulfilment.Transfer``):
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

from msgspec import Struct, field, structs

from labkit.errors import Refused
from labkit.messages import Command, Decisions, Event
from labkit.services.bounds import MAX_CENTS, check_id, check_within

#: What an account may hold, with what is under way from it, in cents.
MAX_BALANCE = 1_000 * MAX_CENTS
#: Transfers that may be open at one account: the state is one document, of 16 MB at most.
MAX_OPEN = 10_000


class Sent(Struct, frozen=True, gc=False):
    """A transfer that is open at its source."""

    to: str
    cents: int


class Account(Struct, frozen=True, gc=False):
    """The state that decisions need; ``open`` by transfer, ``under_way`` its sum in cents."""

    owner: str
    balance: int = 0
    under_way: int = 0
    open: dict[str, Sent] = field(default_factory=dict)


# --- commands


class AccountCommand(Command, frozen=True):
    """Any command to an account."""

    account_id: str

    @property
    def stream(self) -> str:
        """The account's id."""
        return self.account_id

    def validate(self) -> None:
        """The account is named."""
        check_id("account_id", self.account_id)


class MoneyCommand(AccountCommand, frozen=True):
    """Any command that moves money."""

    cents: int

    def validate(self) -> None:
        """At least one cent."""
        super().validate()
        check_within("cents", self.cents, 1, MAX_CENTS)


class OpenAccount(AccountCommand, frozen=True):
    """Open an empty account."""

    owner: str

    def validate(self) -> None:
        """The owner is named."""
        super().validate()
        check_id("owner", self.owner)


class Deposit(MoneyCommand, frozen=True):
    """Pay in."""


class Withdraw(MoneyCommand, frozen=True):
    """Pay out."""


class SendMoney(MoneyCommand, frozen=True):
    """Begin a transfer: debit the source. A ``transfer_id`` names one transfer in the whole bank;
    a second use of it is taken back."""

    to: str
    transfer_id: str

    def validate(self) -> None:
        """To another account."""
        super().validate()
        check_id("to", self.to)
        check_id("transfer_id", self.transfer_id)
        if self.to == self.account_id:
            raise Refused(f"account {self.account_id!r} cannot send money to itself")


class ReceiveMoney(MoneyCommand, frozen=True):
    """The second leg: credit the target."""

    sender: str
    transfer_id: str

    def validate(self) -> None:
        """From another account."""
        super().validate()
        check_id("sender", self.sender)
        check_id("transfer_id", self.transfer_id)
        if self.sender == self.account_id:
            raise Refused(f"account {self.account_id!r} cannot receive money from itself")


class ConfirmSent(AccountCommand, frozen=True):
    """Close a transfer that has arrived."""

    transfer_id: str

    def validate(self) -> None:
        """The transfer is named."""
        super().validate()
        check_id("transfer_id", self.transfer_id)


class TakeBack(MoneyCommand, frozen=True):
    """Close a transfer that could not arrive: credit its source again."""

    transfer_id: str

    def validate(self) -> None:
        """The transfer is named."""
        super().validate()
        check_id("transfer_id", self.transfer_id)


# --- events


class AccountOpened(Event, frozen=True):
    """The account is there, and empty."""

    account_id: str
    owner: str


class MoneyEvent(Event, frozen=True):
    """How much moved, and the balance after that."""

    account_id: str
    cents: int
    balance: int


class Deposited(MoneyEvent, frozen=True):
    """Money came in."""


class Withdrawn(MoneyEvent, frozen=True):
    """Money went out."""


class MoneySent(MoneyEvent, frozen=True):
    """The source was debited; the transfer is open."""

    to: str
    transfer_id: str


class MoneyReceived(MoneyEvent, frozen=True):
    """The target was credited."""

    sender: str
    transfer_id: str


class TransferConfirmed(MoneyEvent, frozen=True):
    """The transfer is closed; the balance stays as it is."""

    to: str
    transfer_id: str


class MoneyTakenBack(MoneyEvent, frozen=True):
    """The transfer is closed; its source was credited again."""

    to: str
    transfer_id: str


COMMANDS = OpenAccount | Deposit | Withdraw | SendMoney | ReceiveMoney | ConfirmSent | TakeBack
EVENTS = (
    AccountOpened
    | Deposited
    | Withdrawn
    | MoneySent
    | MoneyReceived
    | TransferConfirmed
    | MoneyTakenBack
)

# --- decide


def open_account(account: Account | None, c: OpenAccount) -> tuple[Event, ...]:
    """Once."""
    if account is not None:
        raise Refused(f"account {c.account_id!r} exists")
    return (AccountOpened(c.account_id, c.owner),)


def deposit(account: Account | None, c: Deposit) -> tuple[Event, ...]:
    """As long as it fits."""
    return (Deposited(c.account_id, c.cents, _credited(_existing(account, c), c)),)


def withdraw(account: Account | None, c: Withdraw) -> tuple[Event, ...]:
    """Only what is there."""
    return (Withdrawn(c.account_id, c.cents, _debited(_existing(account, c), c)),)


def send(account: Account | None, c: SendMoney) -> tuple[Event, ...]:
    """Only what is there, only so many transfers at a time, each under its own id."""
    account = _existing(account, c)
    if c.transfer_id in account.open:
        raise Refused(f"transfer {c.transfer_id!r} is open already")
    if len(account.open) >= MAX_OPEN:
        raise Refused(f"account {c.account_id!r} has {MAX_OPEN} open transfers, no more fit")
    return (MoneySent(c.account_id, c.cents, _debited(account, c), c.to, c.transfer_id),)


def receive(account: Account | None, c: ReceiveMoney) -> tuple[Event, ...]:
    """As long as it fits."""
    balance = _credited(_existing(account, c), c)
    return (MoneyReceived(c.account_id, c.cents, balance, c.sender, c.transfer_id),)


def confirm(account: Account | None, c: ConfirmSent) -> tuple[Event, ...]:
    """Only an open transfer."""
    account = _existing(account, c)
    sent = _open(account, c)
    return (TransferConfirmed(c.account_id, sent.cents, account.balance, sent.to, c.transfer_id),)


def take_back(account: Account | None, c: TakeBack) -> tuple[Event, ...]:
    """Only an open transfer, and exactly its amount; so it fits always."""
    account = _existing(account, c)
    sent = _open(account, c)
    if c.cents != sent.cents:
        raise Refused(f"transfer {c.transfer_id!r} is of {sent.cents} cents, got {c.cents}")
    balance = account.balance + c.cents
    return (MoneyTakenBack(c.account_id, c.cents, balance, sent.to, c.transfer_id),)


def _existing(account: Account | None, c: AccountCommand) -> Account:
    if account is None:
        raise Refused(f"account {c.account_id!r} does not exist")
    return account


def _open(account: Account, c: ConfirmSent | TakeBack) -> Sent:
    if (sent := account.open.get(c.transfer_id)) is None:
        raise Refused(f"transfer {c.transfer_id!r} is not open at account {c.account_id!r}")
    return sent


def _credited(account: Account, c: MoneyCommand) -> int:
    """What is under way may come back, so it takes its room."""
    if account.balance + account.under_way + c.cents > MAX_BALANCE:
        raise Refused(f"account {c.account_id!r} holds at most {MAX_BALANCE} cents, got {c.cents}")
    return account.balance + c.cents


def _debited(account: Account, c: MoneyCommand) -> int:
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


def evolve(account: Account | None, event: Event) -> Account:
    """Fold one event into the state."""
    if isinstance(event, AccountOpened):
        return Account(event.owner)
    assert account is not None, f"{event} before AccountOpened"
    match event:
        case Deposited() | Withdrawn() | MoneyReceived():
            return structs.replace(account, balance=event.balance)
        case MoneySent():
            sent = {**account.open, event.transfer_id: Sent(event.to, event.cents)}
            under_way = account.under_way + event.cents
            return structs.replace(account, balance=event.balance, under_way=under_way, open=sent)
        case TransferConfirmed() | MoneyTakenBack():
            rest = dict(account.open)
            del rest[event.transfer_id]
            under_way = account.under_way - event.cents
            return structs.replace(account, balance=event.balance, under_way=under_way, open=rest)
    raise TypeError(f"not a bank event: {event!r}")
