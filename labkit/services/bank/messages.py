"""The commands and events of the bank. Money is in integer cents."""

from __future__ import annotations

from labkit.errors import Refused
from labkit.messages import Command, Event
from labkit.services.bounds import (
    MAX_CENTS,
    AccountId,
    Amount,
    CustomerId,
    TransferId,
    check_id,
    check_within,
)

# --- commands


class AccountCommand(Command, frozen=True):
    """Any command to an account."""

    account_id: AccountId

    def validate(self) -> None:
        """The account is named."""
        check_id("account_id", self.account_id)


class MoneyCommand(AccountCommand, frozen=True):
    """Any command that moves money."""

    cents: Amount

    def validate(self) -> None:
        """At least one cent."""
        super().validate()
        check_within("cents", self.cents, 1, MAX_CENTS)


class OpenAccount(AccountCommand, frozen=True):
    """Open an empty account."""

    owner: CustomerId

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

    to: AccountId
    transfer_id: TransferId

    def validate(self) -> None:
        """To another account."""
        super().validate()
        check_id("to", self.to)
        check_id("transfer_id", self.transfer_id)
        if self.to == self.account_id:
            raise Refused(f"account {self.account_id!r} cannot send money to itself")


class ReceiveMoney(MoneyCommand, frozen=True):
    """The second leg: credit the target."""

    sender: AccountId
    transfer_id: TransferId

    def validate(self) -> None:
        """From another account."""
        super().validate()
        check_id("sender", self.sender)
        check_id("transfer_id", self.transfer_id)
        if self.sender == self.account_id:
            raise Refused(f"account {self.account_id!r} cannot receive money from itself")


class ConfirmSent(AccountCommand, frozen=True):
    """Close a transfer that has arrived."""

    transfer_id: TransferId

    def validate(self) -> None:
        """The transfer is named."""
        super().validate()
        check_id("transfer_id", self.transfer_id)


class TakeBack(MoneyCommand, frozen=True):
    """Close a transfer that could not arrive: credit its source again."""

    transfer_id: TransferId

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


EVENTS = (
    AccountOpened
    | Deposited
    | Withdrawn
    | MoneySent
    | MoneyReceived
    | TransferConfirmed
    | MoneyTakenBack
)
