"""The outbox: what a reader decided to send is stored first, and sent afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from labkit.ports.broker import Sender
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Document, Store, Writes

SEND_SECONDS = 30.0


class Author(Protocol):
    """A projection that leaves letters in an outbox, each ``from`` its service and partition."""

    service: str
    outbox: str


class Outbox:
    """Sends what a projection has decided; ``topic(service)`` names where its letters go."""

    def __init__(
        self,
        projection: Author,
        store: Store,
        checkpoints: str,
        sender: Sender,
        topic: Callable[[str], str],
    ) -> None:
        self.collection = projection.outbox
        self._service = projection.service
        self._store = store
        self._checkpoints = checkpoints
        self._sender = sender
        self._topic = topic

    def send(self, letters: list[Document]) -> None:
        """Send, wait for the acknowledgements, delete: in this order nothing can be lost."""
        sent = [
            self._sender.send(
                self._topic(letter["service"]), letter["key"].encode(), letter["value"].encode()
            )
            for letter in letters
        ]
        self._sender.flush(SEND_SECONDS)
        for acknowledgement in sent:
            acknowledgement.result(SEND_SECONDS)
        hit(Failpoint.PROCESS_SENT)
        gone = [letter["_id"] for letter in letters]
        self._store.advance(self._checkpoints, [], Writes(deletes={self.collection: gone}))

    def leftovers(self, partition: int) -> list[Document]:
        """What a dead owner decided and may not have sent."""
        return self._store.find(self.collection, {"from": f"{self._service}:{partition}"})
