"""The sink that keeps the records of a topic as documents of the store."""

from __future__ import annotations

import warnings

from labkit.ports.store import Store, Writes

with warnings.catch_warnings(record=True):  # an import of authlib warns about itself
    from quixstreams.sinks import BatchingSink, SinkBatch


class DocumentSink(BatchingSink):
    """Keeps the newest record of each id; each batch is one transaction of the store.

    Quix' own MongoDB sink upserts one by one and never closes its client. Like that sink, this one
    writes the documents *before* the Kafka transaction commits. After a crash between the two it
    writes them again with the same ids.
    """

    def __init__(self, store: Store, collection: str) -> None:
        super().__init__()
        self._store, self._collection = store, collection

    def write(self, batch: SinkBatch) -> None:
        newest = {item.value["id"]: {"_id": item.value["id"], **item.value} for item in batch}
        known = self._store.load(self._collection, newest)
        writes = Writes(
            inserts={self._collection: [d for id, d in newest.items() if id not in known]},
            replaces={self._collection: [d for id, d in newest.items() if id in known]},
        )
        self._store.advance("streams.checkpoints", [], writes)
