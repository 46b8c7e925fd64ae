"""Bank accounts, and transfers between them."""

from labkit.service import Service
from labkit.services.bank.audit import audit
from labkit.services.bank.messages import (
    EVENTS,
    AccountCommand,
    AccountOpened,
    ConfirmSent,
    Deposit,
    Deposited,
    MoneyCommand,
    MoneyEvent,
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
from labkit.services.bank.model import BankModel
from labkit.services.bank.queries import QUERIES, AccountById, Balances, Statement
from labkit.services.bank.rules import DECIDE, MAX_BALANCE, MAX_OPEN, AccountState, evolve
from labkit.services.bank.views import Accounts, Transactions
from labkit.services.bank.workload import WORKLOADS

BANK = Service(
    "bank",
    decide=DECIDE,
    events=EVENTS,
    evolve=evolve,
    state=AccountState,
    views=[Accounts(), Transactions()],
    queries=QUERIES,
    # ReceiveMoney, ConfirmSent and TakeBack are the transfer's.
    public={
        OpenAccount: "POST /accounts",
        Deposit: "POST /accounts/{account_id}/deposits",
        Withdraw: "POST /accounts/{account_id}/withdrawals",
        SendMoney: "POST /accounts/{account_id}/transfers",
    },
    workload=WORKLOADS,
    invariants={"no balance is negative": lambda account: account.balance >= 0},
    audits={"C8": audit},
    model=BankModel(),
)

__all__ = [
    "BANK",
    "DECIDE",
    "EVENTS",
    "MAX_BALANCE",
    "MAX_OPEN",
    "QUERIES",
    "WORKLOADS",
    "AccountById",
    "AccountCommand",
    "AccountOpened",
    "AccountState",
    "Accounts",
    "Balances",
    "BankModel",
    "ConfirmSent",
    "Deposit",
    "Deposited",
    "MoneyCommand",
    "MoneyEvent",
    "MoneyReceived",
    "MoneySent",
    "MoneyTakenBack",
    "OpenAccount",
    "ReceiveMoney",
    "SendMoney",
    "Statement",
    "TakeBack",
    "Transactions",
    "TransferConfirmed",
    "Withdraw",
    "Withdrawn",
    "evolve",
]
