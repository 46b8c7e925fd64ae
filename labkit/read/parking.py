"""The streams that a reader holds back."""

from __future__ import annotations

from datetime import timedelta

from labkit.log.dead_letter import DeadLetter
from labkit.log.event_log import EPOCH
from labkit.ports.store import Store


def parked_by(store: Store, reader: str, service: str, collection: str) -> list[DeadLetter]:
    """The streams that a reader holds back, those that have waited longest first."""
    found = [
        DeadLetter(
            service,
            letter["_id"],
            letter["partition"],
            letter["offset"],
            letter["waiting"],
            EPOCH + timedelta(milliseconds=letter["since"]),
            letter["reason"],
            reader,
        )
        for letter in store.find(collection, {})
    ]
    return sorted(found, key=lambda letter: (letter.since, letter.stream))
