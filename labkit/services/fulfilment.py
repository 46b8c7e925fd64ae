"""Process managers: what has to happen next, between streams. Pure: a commit comes in, a new state
and commands come out; ``labkit.process.process_manager`` keeps the one and sends the others.

A process sees the events of each stream in order, but those of two streams in any order. So it
does not wait for a sequence: it keeps what it knows of each side, and what follows is read off a
table. A step is taken when its row is entered; neither side ever goes back, so that is once.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.messages import Command, Commit
from labkit.services.bank import ConfirmSent, MoneySent, ReceiveMoney, TakeBack
from labkit.services.inventory import ReleaseStock, ReserveStock, ShipStock
from labkit.services.orders import (
    CancelOrder,
    CancelUnpaid,
    OrderCancelled,
    OrderPaid,
    OrderPlaced,
    OrderShipped,
    ShipOrder,
)

#: A year: no command may be scheduled for later.
MAX_WAIT = 365 * 86_400.0


class Send(Struct, frozen=True):
    """A command to send to a service, at once or ``after`` seconds from the commit that led to it.

    ``step`` names it within the instance; the command's id is derived from both.
    """

    service: str
    command: Command
    step: str
    after: float | None = None


class Process(Protocol):
    """A process manager over the events of ``sources``; ``state_type`` is what it keeps of each
    instance."""

    name: str
    sources: tuple[str, ...]
    state_type: type[Struct]

    def instance(self, service: str, commit: Commit[Any]) -> str | None:
        """Which instance a commit is about; ``None``: none."""

    def react(self, state: Any, service: str, commit: Commit[Any]) -> tuple[Any, tuple[Send, ...]]:
        """The instance after a commit, and what to send; the state is ``None`` before the first."""

    def ended(self, state: Any) -> bool:
        """Whether the instance has come to its end."""


def command_id(process: str, instance: str, step: str) -> str:
    """The id of the command that an instance sends at a step, however often it does."""
    return f"{process}:{instance}:{step}"


def _answers(process: str, instance: str, commit: Commit[Any], *steps: str) -> bool:
    """Whether a commit says how one of these steps ended: done or refused, not put off."""
    return commit.outcome in ("accepted", "refused") and commit.id in {
        command_id(process, instance, step) for step in steps
    }


def _begins(process: str, instance: str, commit: Commit[Any], step: str) -> bool:
    """The same of a first step, which may also have been dropped by somebody as a dead letter: what
    was not begun can be called off. A dropped *last* step leaves the instance open, to be seen."""
    dropped = commit.outcome == "dropped" and commit.id == command_id(process, instance, step)
    return dropped or _answers(process, instance, commit, step)


# --- an order and its goods


class Fulfilling(Struct, frozen=True):
    """What is known of an order, and of the goods that are set aside for it."""

    product_id: str
    quantity: int
    order: Literal["placed", "paid", "shipped", "cancelled"] = "placed"
    stock: Literal["asked", "reserved", "gone"] = "asked"


class Fulfilment:
    """Goods are set aside for an order, then shipped or given back; an instance is an order.

    ::

        order      stock      next
        placed     asked      ReserveStock
        placed     reserved   CancelUnpaid, ``pay_within`` seconds later
        paid       reserved   ShipOrder
        shipped    reserved   ShipStock
        cancelled  reserved   ReleaseStock
        (stands)   gone       CancelOrder: there was no stock

    It ends as shipped or cancelled, with its goods gone: shipped, released or never had. A refused
    ``ShipOrder``, ``CancelOrder`` or ``CancelUnpaid`` needs no answer: the event that made it moot
    stands earlier in the order's stream, so it is known. Goods that a customer returns are not put
    back: somebody has to look at them first, and then books them with ``ReceiveStock``.
    """

    name = "fulfilment"
    sources: tuple[str, ...] = ("orders", "inventory")
    state_type: type[Struct] = Fulfilling

    def __init__(self, pay_within: float = 900.0) -> None:
        if not 0 <= pay_within <= MAX_WAIT:
            raise UsageError(f"pay_within must be 0 to {MAX_WAIT} seconds, got {pay_within}")
        self.pay_within = pay_within

    def instance(self, service: str, commit: Commit[Any]) -> str | None:
        """The order: a stream of its own, and what our commands to the inventory carry."""
        if service == "orders":
            return commit.stream if commit.events else None
        return commit.correlation or None

    def react(
        self, state: Fulfilling | None, service: str, commit: Commit[Any]
    ) -> tuple[Fulfilling | None, tuple[Send, ...]]:
        """Note what is new, then read the next step off the table."""
        if service == "orders":
            after = self._of_order(state, commit)
            order_id = commit.stream
        else:
            after = self._of_stock(state, commit)
            order_id = commit.correlation
        if after is None or after == state:
            return after, ()
        return after, tuple(self._next(order_id, state, after))

    def ended(self, state: Fulfilling) -> bool:
        """Shipped or cancelled, and nothing is set aside any more."""
        return state.order in ("shipped", "cancelled") and state.stock == "gone"

    def _of_order(self, state: Fulfilling | None, commit: Commit[Any]) -> Fulfilling | None:
        for event in commit.events:
            match event:
                case OrderPlaced():
                    state = Fulfilling(event.product_id, event.quantity)
                case OrderPaid() if state:
                    state = structs.replace(state, order="paid")
                case OrderShipped() if state:
                    state = structs.replace(state, order="shipped")
                case OrderCancelled() if state:
                    state = structs.replace(state, order="cancelled")
        return state

    def _of_stock(self, state: Fulfilling | None, commit: Commit[Any]) -> Fulfilling | None:
        if state is None:
            return None
        if _begins(self.name, commit.correlation, commit, "reserve"):
            stock: Literal["reserved", "gone"] = "reserved" if commit.events else "gone"
            return structs.replace(state, stock=stock)
        # Refused means that somebody else has shipped or released them: gone, in any case.
        if _answers(self.name, commit.correlation, commit, "ship-stock", "release"):
            return structs.replace(state, stock="gone")
        return state

    def _next(self, order_id: str, before: Fulfilling | None, state: Fulfilling) -> list[Send]:
        product = state.product_id
        match state.order, state.stock:
            case _, "asked" if before is None:
                reserve = ReserveStock(product, order_id, state.quantity)
                return [Send("inventory", reserve, "reserve")]
            case "placed", "reserved":
                return [Send("orders", CancelUnpaid(order_id), "expire", after=self.pay_within)]
            case "paid", "reserved":
                return [Send("orders", ShipOrder(order_id), "ship")]
            case "shipped", "reserved":
                return [Send("inventory", ShipStock(product, order_id), "ship-stock")]
            case "cancelled", "reserved":
                return [Send("inventory", ReleaseStock(product, order_id), "release")]
            case "placed" | "paid", "gone" if before and before.stock != "gone":
                return [Send("orders", CancelOrder(order_id, "no stock"), "cancel")]
        return []


# --- a transfer between two accounts


class Transferring(Struct, frozen=True):
    """What is known of a transfer; ``version`` is the source's when it was debited."""

    source: str
    version: int
    to: str
    cents: int
    status: Literal["sent", "received", "refused", "confirmed", "taken back"] = "sent"


class Transfer:
    """Money leaves one account and arrives at another, or comes back; an instance is a transfer.

    ::

        MoneySent ──> ReceiveMoney ──accepted──> ConfirmSent
                           └─────────refused───> TakeBack

    A transfer id that is used again, by the same account or another, would be taken for the first
    transfer: its money is taken back at once.
    """

    name = "transfer"
    sources: tuple[str, ...] = ("bank",)
    state_type: type[Struct] = Transferring

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
        if _begins(self.name, id, commit, "receive"):
            if commit.events:
                confirm = ConfirmSent(state.source, id)
                return structs.replace(state, status="received"), (_bank(confirm, "confirm"),)
            back = TakeBack(state.source, state.cents, id)
            return structs.replace(state, status="refused"), (_bank(back, "take-back"),)
        if _answers(self.name, id, commit, "confirm"):
            return structs.replace(state, status="confirmed"), ()
        if _answers(self.name, id, commit, "take-back"):
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


#: The processes by name.
PROCESSES: dict[str, Process] = {process.name: process for process in (Fulfilment(), Transfer())}
