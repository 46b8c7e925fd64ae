"""C11 of the transfers: each leg once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from labkit.service import Case
from labkit.services.bank.messages import MoneyReceived, SendMoney


def begun(cases: Mapping[str, Case]) -> set[str]:
    """The transfers whose clients were told that they are sent."""
    return {
        o.command.transfer_id  # type: ignore[attr-defined]
        for o in cases["bank"].accepted(SendMoney)
    }


def audit(cases: Mapping[str, Case]) -> Iterator[str]:
    """Each was sent once, then received and confirmed, or taken back."""
    done: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for commit in cases["bank"].chain:
        for event in commit.events:
            if (transfer := getattr(event, "transfer_id", None)) is not None:
                other = isinstance(event, MoneyReceived)
                source = event.sender if other else event.account_id
                done[source, transfer][type(event).__name__] += 1
    for (source, transfer), legs in sorted(done.items()):
        sent, received = legs["MoneySent"], legs["MoneyReceived"]
        confirmed, back = legs["TransferConfirmed"], legs["MoneyTakenBack"]
        if received != confirmed or sent != confirmed + back:
            yield f"transfer {transfer!r} of {source!r} went through {dict(legs)}"
