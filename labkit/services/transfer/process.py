"""A bank transfer: money leaves one account and arrives at another, or comes back.

A process sees the events of each stream in order, but those of two streams in any order. So it does
not wait for a sequence: it keeps what it knows of each side, and what follows is read off a table.
A step is taken when its row is entered; neither side ever goes back, so that is once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct, structs

from labkit.messages import Command, Commit
from labkit.service import Case, Process, Send, answers, begins
from labkit.services.bank.messages import ConfirmSent, MoneySent, ReceiveMoney, TakeBack
from labkit.services.transfer.audit import audit, begun


class Transferring(Struct, frozen=True):
    """What is known of a transfer; ``version`` is the source's when it was debited."""

    source: str
    version: int
    to: str
    cents: int
    status: Literal["sent", "received", "refused", "confirmed", "taken back"] = "sent"


class Transfer(Process, frozen=True):
    """Money leaves one account and arrives at another, or comes back; an instance is a transfer.

    ::

        MoneySent ──> ReceiveMoney ──accepted──> ConfirmSent
                           └─────────refused───> TakeBack

    A transfer id that is used again, by the same account or another, would be taken for the first
    transfer: its money is taken back at once.
    """

    name = "transfer"
    sources = ("bank",)
    state = Transferring

    def begun(self, cases: Mapping[str, Case]) -> set[str]:
        return begun(cases)

    def audit(self, cases: Mapping[str, Case]) -> Iterable[str]:
        return audit(cases)

    def instance(self, service: str, commit: Commit[Any]) -> str | None:
        """The transfer: it stands in the event that begins it, and in what our commands carry."""
        for event in commit.events:
            if isinstance(event, MoneySent):
                return event.transfer_id
        return commit.correlation or None

    def react(
        self, state: Transferring | None, service: str, commit: Commit[Any]
    ) -> tuple[Transferring | None, tuple[Send, ...]]:
        """From one leg to the next."""
        for event in commit.events:
            if isinstance(event, MoneySent):
                return self._begin(state, event, commit)
        if state is None:
            return None, ()
        id = commit.correlation
        if begins(self.name, id, commit, "receive"):
            if commit.events:
                confirm = ConfirmSent(state.source, id)
                return structs.replace(state, status="received"), (_bank(confirm, "confirm"),)
            back = TakeBack(state.source, state.cents, id)
            return structs.replace(state, status="refused"), (_bank(back, "take-back"),)
        if answers(self.name, id, commit, "confirm"):
            return structs.replace(state, status="confirmed"), ()
        if answers(self.name, id, commit, "take-back"):
            return structs.replace(state, status="taken back"), ()
        return state, ()

    def ended(self, state: Transferring) -> bool:
        """The source has heard how it ended."""
        return state.status in ("confirmed", "taken back")

    def _begin(
        self, state: Transferring | None, event: MoneySent, commit: Commit[Any]
    ) -> tuple[Transferring | None, tuple[Send, ...]]:
        source, cents, id = event.account_id, event.cents, event.transfer_id
        if state is None:
            receive = ReceiveMoney(event.to, cents, source, id)
            begun = Transferring(source, commit.last, event.to, cents)
            return begun, (_bank(receive, "receive"),)
        if (state.source, state.version) == (source, commit.last):
            return state, ()
        again = f"again-{source}-{commit.last}"  # the version tells this use of the id from others
        return state, (_bank(TakeBack(source, cents, id), again),)


def _bank(command: Command, step: str) -> Send:
    return Send("bank", command, step)
