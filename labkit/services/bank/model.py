"""The reference model of the bank."""

from __future__ import annotations

from typing import ClassVar, cast

from labkit.messages import Command, Document
from labkit.services.bank.messages import (
    AccountCommand,
    ConfirmSent,
    Deposit,
    MoneyCommand,
    OpenAccount,
    ReceiveMoney,
    SendMoney,
    TakeBack,
    Withdraw,
)
from labkit.services.ledger import Books, differences, named


class BankModel:
    """Accounts, as a bank clerk keeps them."""

    _fields = ("owner", "balance", "open", "version")
    _signs: ClassVar = {"deposited": 1, "withdrawn": -1, "sent": -1, "received": 1, "taken back": 1}

    def apply(self, state: Document | None, command: Command) -> Document | None:
        if isinstance(command, OpenAccount):
            if state is not None or not named(command.account_id, command.owner):
                return None
            return Books({"owner": command.owner, "balance": 0, "open": 0, "version": 1})
        if not isinstance(command, AccountCommand):
            raise TypeError(f"no account is kept of {command!r}")
        if state is None:
            return None
        books = cast(Books, state)
        if isinstance(command, ConfirmSent):
            cents = books.amount(command.transfer_id)
            return books.book(command.transfer_id, open=-cents) if cents else None
        assert isinstance(command, MoneyCommand)
        cents = command.cents
        if not 0 < cents <= 10**12:
            return None
        fits = books["balance"] + books["open"] + cents <= 10**15
        match command:
            case Deposit() if fits:
                return books.book(balance=cents)
            case Withdraw() if cents <= books["balance"]:
                return books.book(balance=-cents)
            case SendMoney(me, _, to, transfer) if cents <= books["balance"]:
                sensible = named(to, transfer) and to != me
                if sensible and books.amount(transfer) == 0 and books.count < 10_000:
                    return books.book(transfer, cents, balance=-cents, open=cents)
            case ReceiveMoney(me, _, sender, transfer) if fits:
                if named(sender, transfer) and sender != me:
                    return books.book(balance=cents)
            case TakeBack(_, _, transfer) if books.amount(transfer) == cents:
                return books.book(transfer, balance=cents, open=-cents)
        return None

    def shown(self, document: Document) -> Document:
        return {field: document.get(field) for field in self._fields}

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        """Compare each account, and the sum of its transactions with its balance."""
        shown = {d["_id"]: self.shown(d) for d in views["bank.view.accounts"]}
        balances = dict.fromkeys(streams, 0)
        wrong = list(differences("account", streams, shown))
        for entry in sorted(views["bank.view.transactions"], key=lambda t: int(t["version"])):
            account = entry["account"]
            balance = balances.get(account, 0) + self._signs[entry["kind"]] * entry["cents"]
            balances[account] = balance
            if balance != entry["balance"]:
                wrong.append(
                    f"transaction {entry['_id']!r} shows {entry['balance']}, not {balance}"
                )
        told = {account: books["balance"] for account, books in streams.items()}
        return [*wrong, *differences("the transactions of account", told, balances)]
