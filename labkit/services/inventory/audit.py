"""C7: the stock adds up, by the events in order, and by the replies to the clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from labkit.messages import Document
from labkit.service import Case
from labkit.services.inventory.messages import ReceiveStock


def audit(case: Case) -> Iterator[str]:
    """Stock adds up.

    Never negative; on hand + reserved + shipped = received + adjusted; received as told.
    """
    for commit in case.chain:
        for event in commit.events:
            if event.on_hand < 0:
                yield f"{commit.stream!r} version {commit.last}: {event.on_hand} on hand"
    told: Counter[str] = Counter()
    for operation in case.accepted(ReceiveStock):
        told[operation.command.stream] += operation.command.quantity  # type: ignore[attr-defined]
    doubtful = case.in_doubt()
    shelves = case.views["inventory.view.stock"]
    for shelf in shelves:
        yield from _unsound(shelf, "the view")
        if shelf["_id"] not in doubtful and shelf["received"] != told[shelf["_id"]]:
            yield (
                f"{shelf['_id']!r} received {shelf['received']} pieces, "
                f"the clients sent {told[shelf['_id']]}"
            )
    for stream, document in case.states.items():
        if state := document["state"]:
            reserved = sum(state["reserved"].values())
            yield from _unsound({**state, "_id": stream, "reserved": reserved}, "the state")


def _unsound(shelf: Document, where: str) -> Iterator[str]:
    parts = {name: shelf[name] for name in ("on_hand", "reserved", "shipped")}
    if min(parts.values()) < 0:
        yield f"{where} of {shelf['_id']!r} shows {parts}"
    if sum(parts.values()) != shelf["received"] + shelf["adjusted"]:
        came = shelf["received"] + shelf["adjusted"]
        yield f"{where} of {shelf['_id']!r} shows {parts}, and {came} pieces came in"
