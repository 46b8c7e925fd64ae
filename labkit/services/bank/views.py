"""The views of the bank: accounts, and what happened to each.

Collections::

    bank.view.accounts      {_id: account id, version, trace, owner, balance, open}
    bank.view.transactions  {_id: "account:version", account, version, kind, cents, balance,
                             counterparty, transfer_id}

All money is in cents; ``open`` is what is under way from the account. Transactions are only ever
inserted, one for each event that changed the balance; ``balance`` is the one after it.
"""

from __future__ import annotations

from typing import Any

from labkit.messages import Document
from labkit.service import At, Documents, KeyedView, View
from labkit.services.bank.messages import (
    AccountOpened,
    Deposited,
    MoneyReceived,
    MoneySent,
    MoneyTakenBack,
    TransferConfirmed,
    Withdrawn,
)


class Accounts(View):
    """One account."""

    def apply(self, document: Any, event: Any) -> Document:
        """Fold one event."""
        if isinstance(event, AccountOpened):
            return {"owner": event.owner, "balance": 0, "open": 0}
        document["balance"] = event.balance
        match event:
            case MoneySent():
                document["open"] += event.cents
            case TransferConfirmed() | MoneyTakenBack():
                document["open"] -= event.cents
        return document  # type: ignore[no-any-return]


class Transactions(KeyedView):
    """What changed the balance of an account. A page of one account comes from one shard."""

    indexes = (("account", "version", "_id"), ("transfer_id",))
    shard_key = (("account", 1),)

    def change(self, documents: Documents, event: Any, at: At) -> None:
        """Insert what changed the balance."""
        counterparty = transfer_id = ""
        match event:
            case AccountOpened() | TransferConfirmed():
                return
            case Deposited():
                kind = "deposited"
            case Withdrawn():
                kind = "withdrawn"
            case MoneySent():
                kind, counterparty, transfer_id = "sent", event.to, event.transfer_id
            case MoneyReceived():
                kind, counterparty, transfer_id = "received", event.sender, event.transfer_id
            case MoneyTakenBack():
                kind, counterparty, transfer_id = "taken back", event.to, event.transfer_id
        documents.add(
            {
                "_id": f"{event.account_id}:{at.version}",
                "account": event.account_id,
                "version": at.version,
                "kind": kind,
                "cents": event.cents,
                "balance": event.balance,
                "counterparty": counterparty,
                "transfer_id": transfer_id,
            }
        )
