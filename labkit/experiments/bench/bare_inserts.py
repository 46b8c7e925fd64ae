"""The upper bound of a rebuild: a loop that polls, decodes and inserts, and does nothing else.

It polls the same topic with the same client, decodes with msgspec, and inserts a document of the
service's first view for each event, in batches of the same size, with the same write concern, into
an empty collection with the same indexes. It has no transactions, checkpoints, epochs or reads: the
documents of streams that go on are kept in memory, and each event inserts one of its own.
"""

from __future__ import annotations

import time

from labkit.adapters.mongo import connect
from labkit.experiments.bench.subject import Subject
from labkit.experiments.intervals import quotient
from labkit.lab import Lab
from labkit.messages import Document
from labkit.read.projection import ServiceProjection
from labkit.read.rebuild import CLOSE

#: The batch size of the projector.
BATCH = 4_000


def bare_inserts(lab: Lab, measured: Subject, number: int) -> float:
    """Events per second. ``number`` tells the collections of a bench apart."""
    service, view = measured.service, measured.first_view
    collection = f"bare.{number}"
    for keys in ServiceProjection(service).indexes[service.collection(view)] or [[("_id", 1)]]:
        lab.store.index(collection, keys)
    assert lab.servers is not None
    mongo, db = connect(lab.servers.mongo_uri, lab.of.database)
    source = lab.broker.source(lab.topic_name(f"{service.name}.events"))
    decode = service.codec.decode_commit
    newest: dict[str, Document] = {}
    count = 0
    try:
        at = dict.fromkeys(source.ends(), 0)
        for partition in at:
            source.start(partition, 0)
        began = time.monotonic()
        while sum(source.ends().values()) - sum(at.values()) > CLOSE:
            batch = source.poll(BATCH, 0.1)
            documents = []
            for record in batch.records:
                commit = decode(record.value)
                for version, event in enumerate(commit.events, commit.first):
                    stream = commit.stream
                    before = newest.get(stream)
                    document = view.apply(dict(before) if before else None, event)
                    document["_id"] = stream if version == 1 else f"{stream}:{version}"
                    document["version"] = version
                    newest[stream] = document
                    documents.append(document)
            if documents:
                db[collection].insert_many(documents, ordered=False)
            count += len(documents)
            at.update(batch.positions)
        seconds = time.monotonic() - began
    finally:
        source.close()
        lab.store.discard([collection])
        mongo.close()
    return quotient(count, seconds)
