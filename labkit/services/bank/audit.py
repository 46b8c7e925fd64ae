"""C8: money is neither made nor lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from labkit.service import Case
from labkit.services.bank.messages import (
    Deposit,
    Deposited,
    MoneyEvent,
    MoneyReceived,
    MoneySent,
    MoneyTakenBack,
    TransferConfirmed,
    Withdraw,
    Withdrawn,
)

#: What an event does to the balance, to the money under way, and to what its source holds open.
_EFFECTS: dict[type, tuple[int, int, int]] = {
    Deposited: (+1, 0, 0),
    Withdrawn: (-1, 0, 0),
    MoneySent: (-1, +1, +1),
    MoneyReceived: (+1, -1, 0),
    MoneyTakenBack: (+1, -1, -1),
    TransferConfirmed: (0, 0, -1),
}


def audit(case: Case) -> Iterator[str]:
    """Money adds up.

    At any time, balances + what is under way = deposits - withdrawals; at quiet, what is under way
    is open at its source; no balance is ever negative. The partitions are read one after the other,
    and in each event the sum must hold; so it holds in whatever order they are put together.
    """
    balances: Counter[str] = Counter()
    under_way: Counter[tuple[str, str]] = Counter()  # (source, transfer) -> cents
    held_open: Counter[tuple[str, str]] = Counter()
    outside = 0
    for commit in case.chain:
        for event in commit.events:
            if not isinstance(event, MoneyEvent):
                continue
            sign, away, opens = _EFFECTS[type(event)]
            account = event.account_id
            before, balances[account] = balances[account], event.balance
            if event.balance - before != sign * event.cents or event.balance < 0:
                yield (
                    f"{account!r} version {commit.last}: {type(event).__name__} of {event.cents} "
                    f"took the balance from {before} to {event.balance}"
                )
            if (transfer := getattr(event, "transfer_id", None)) is None:
                outside += sign * event.cents
                continue
            source = event.sender if isinstance(event, MoneyReceived) else account
            under_way[source, transfer] += away * event.cents
            held_open[source, transfer] += opens * event.cents
    for (source, transfer), cents in under_way.items():
        if cents != held_open[source, transfer]:
            yield (
                f"transfer {transfer!r}: {cents} cents are under way, "
                f"its source {source!r} holds {held_open[source, transfer]} open"
            )
    told = sum(o.command.cents for o in case.accepted(Deposit))  # type: ignore[attr-defined]
    told -= sum(o.command.cents for o in case.accepted(Withdraw))  # type: ignore[attr-defined]
    shown = sum(a["balance"] + a["open"] for a in case.views["bank.view.accounts"])
    if not case.in_doubt() and not told == outside == shown:
        yield (f"the clients brought {told} cents, the log says {outside}, the views show {shown}")
