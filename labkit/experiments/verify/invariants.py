"""What the services promise beyond messages: C7 (stock), C8 (money), C11 (processes).

Each is told twice: by the events one after the other, and by what the clients were told, so that a
command that took effect twice stands out even where all books agree with each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from labkit.experiments.verify.history import Operation
from labkit.experiments.verify.verdict import Evidence, Verdict, verdict
from labkit.ports.store import Document
from labkit.services import bank as money
from labkit.services import inventory, orders
from labkit.services.views import BankViews, InventoryViews


def _accepted(operations: list[Operation], kind: type) -> Iterator[Operation]:
    """One for each command id that took effect, as the clients were told."""
    seen: set[str] = set()
    for operation in operations:
        mine = isinstance(operation.command, kind) and operation.id not in seen
        if mine and operation.answer is not None and operation.answer.accepted:
            seen.add(operation.id)
            yield operation


def _streams_in_doubt(operations: list[Operation]) -> set[str]:
    """Where a command may have taken effect without anybody having been told."""
    return {
        o.command.stream
        for o in operations
        if o.status != "failed" and (o.answer is None or not o.answer.final)
    }


# --- C7


def stock(operations: list[Operation], evidence: Evidence) -> Verdict:
    """Never negative; on hand + reserved + shipped = received + adjusted; received as told."""
    wrong: list[str] = []
    events = 0
    for commit in evidence.chain:
        for event in commit.events:
            events += 1
            if event.on_hand < 0:
                wrong.append(f"{commit.stream!r} version {commit.last}: {event.on_hand} on hand")
    told: Counter[str] = Counter()
    for operation in _accepted(operations, inventory.ReceiveStock):
        told[operation.command.stream] += operation.command.quantity  # type: ignore[attr-defined]
    doubtful = _streams_in_doubt(operations)
    shelves = evidence.views[InventoryViews.stock]
    for shelf in shelves:
        wrong += _unsound(shelf, "the view")
        if shelf["_id"] not in doubtful and shelf["received"] != told[shelf["_id"]]:
            wrong.append(
                f"{shelf['_id']!r} received {shelf['received']} pieces, "
                f"the clients sent {told[shelf['_id']]}"
            )
    for stream, document in evidence.states.items():
        if state := document["state"]:
            reserved = sum(state["reserved"].values())
            wrong += _unsound({**state, "_id": stream, "reserved": reserved}, "the state")
    return verdict(events + len(shelves) + len(evidence.states), wrong)


def _unsound(shelf: Document, where: str) -> Iterator[str]:
    parts = {name: shelf[name] for name in ("on_hand", "reserved", "shipped")}
    if min(parts.values()) < 0:
        yield f"{where} of {shelf['_id']!r} shows {parts}"
    if sum(parts.values()) != shelf["received"] + shelf["adjusted"]:
        came = shelf["received"] + shelf["adjusted"]
        yield f"{where} of {shelf['_id']!r} shows {parts}, and {came} pieces came in"


# --- C8

#: What an event does to the balance, to the money under way, and to what its source holds open.
_EFFECTS: dict[type, tuple[int, int, int]] = {
    money.Deposited: (+1, 0, 0),
    money.Withdrawn: (-1, 0, 0),
    money.MoneySent: (-1, +1, +1),
    money.MoneyReceived: (+1, -1, 0),
    money.MoneyTakenBack: (+1, -1, -1),
    money.TransferConfirmed: (0, 0, -1),
}


def bank(operations: list[Operation], evidence: Evidence) -> Verdict:
    """Money is neither made nor lost: at any time, balances + what is under way = deposits -
    withdrawals; at quiet, what is under way is open at its source; no balance is ever negative.

    The partitions are read one after the other, and in each event the sum must hold; so it holds
    in whatever order they are put together.
    """
    wrong: list[str] = []
    balances: Counter[str] = Counter()
    under_way: Counter[tuple[str, str]] = Counter()  # (source, transfer) -> cents
    held_open: Counter[tuple[str, str]] = Counter()
    outside = events = 0
    for commit in evidence.chain:
        for event in commit.events:
            events += 1
            if not isinstance(event, money.MoneyEvent):
                continue
            sign, away, opens = _EFFECTS[type(event)]
            account = event.account_id
            before, balances[account] = balances[account], event.balance
            if event.balance - before != sign * event.cents or event.balance < 0:
                wrong.append(
                    f"{account!r} version {commit.last}: {type(event).__name__} of {event.cents} "
                    f"took the balance from {before} to {event.balance}"
                )
            if (transfer := getattr(event, "transfer_id", None)) is None:
                outside += sign * event.cents
                continue
            source = event.sender if isinstance(event, money.MoneyReceived) else account
            under_way[source, transfer] += away * event.cents
            held_open[source, transfer] += opens * event.cents
    wrong += [
        f"transfer {transfer!r}: {cents} cents are under way, "
        f"its source {source!r} holds {held_open[source, transfer]} open"
        for (source, transfer), cents in under_way.items()
        if cents != held_open[source, transfer]
    ]
    told = sum(o.command.cents for o in _accepted(operations, money.Deposit))  # type: ignore[attr-defined]
    told -= sum(o.command.cents for o in _accepted(operations, money.Withdraw))  # type: ignore[attr-defined]
    shown = sum(a["balance"] + a["open"] for a in evidence.views[BankViews.accounts])
    if not _streams_in_doubt(operations) and not told == outside == shown:
        wrong.append(
            f"the clients brought {told} cents, the log says {outside}, the views show {shown}"
        )
    return verdict(events + len(under_way) + len(balances), wrong)


# --- C11


def processes(
    operations: list[Operation],
    evidence: Mapping[str, Evidence],
    instances: Mapping[str, list[Document]],
) -> Verdict:
    """Each process that was begun has ended, and no step of it took effect twice.

    ``evidence`` by service, ``instances`` by process.
    """
    wrong: list[str] = []
    checked = 0
    begun = {
        "fulfilment": {o.command.stream for o in _accepted(operations, orders.PlaceOrder)},
        "transfer": {
            o.command.transfer_id  # type: ignore[attr-defined]
            for o in _accepted(operations, money.SendMoney)
        },
    }
    for process, documents in instances.items():
        known = {d["_id"]: d for d in documents}
        checked += len(known)
        wrong += [f"{process} {id!r} was never begun" for id in sorted(begun[process] - set(known))]
        wrong += [
            f"{process} {id!r} has not ended: {document['state']}"
            for id, document in known.items()
            if not document["ended"]
        ]
    if "fulfilment" in instances:
        wrong += _goods(evidence["orders"], evidence["inventory"], begun["fulfilment"])
    if "transfer" in instances:
        wrong += _transfers(evidence["bank"])
    return verdict(checked + sum(map(len, begun.values())), wrong)


def _goods(placed: Evidence, stocked: Evidence, begun: set[str]) -> Iterator[str]:
    """What was set aside for an order was shipped or given back, once, as the order says."""
    done: dict[str, Counter[str]] = defaultdict(Counter)
    for commit in stocked.chain:
        for event in commit.events:
            if (order := getattr(event, "order_id", None)) in begun:
                done[order][type(event).__name__] += 1
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    for commit in placed.chain:
        for event in commit.events:
            ends[commit.stream][type(event).__name__] += 1
    for order in sorted(begun):
        goods, end = done[order], ends[order]
        reserved, shipped = goods["StockReserved"], goods["StockShipped"]
        released = goods["StockReleased"]
        if reserved > 1 or shipped + released != reserved:
            yield f"order {order!r}: reserved {reserved}, shipped {shipped}, released {released}"
        if end["OrderCancelled"] > 1 or end["OrderShipped"] != shipped:
            yield f"order {order!r} went through {dict(end)}, its goods through {dict(goods)}"


def _transfers(evidence: Evidence) -> Iterator[str]:
    """Sent once, then received and confirmed, or taken back."""
    done: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for commit in evidence.chain:
        for event in commit.events:
            if (transfer := getattr(event, "transfer_id", None)) is not None:
                other = isinstance(event, money.MoneyReceived)
                source = event.sender if other else event.account_id
                done[source, transfer][type(event).__name__] += 1
    for (source, transfer), legs in sorted(done.items()):
        sent, received = legs["MoneySent"], legs["MoneyReceived"]
        confirmed, back = legs["TransferConfirmed"], legs["MoneyTakenBack"]
        if received != confirmed or sent != confirmed + back:
            yield f"transfer {transfer!r} of {source!r} went through {dict(legs)}"
