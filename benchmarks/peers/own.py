"""labkit itself: a handler and a projector, assembled from the parts of a run.

Everything is on: one Kafka transaction for each batch, versions, deduplication, answers, saved
states, and checkpoints in the transaction of the view's writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from benchmarks.peers.job import Job, document
from labkit.adapters.confluent import ConfluentBroker
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.adapters.mongo import MongoStore
from labkit.experiments.bench.job import ready
from labkit.messages import Commit
from labkit.read.projection import Indexes, Projection, ServiceProjection
from labkit.read.projector import Projector
from labkit.read.unit_of_work import UnitOfWork
from labkit.services.orders import ORDERS, OrderPlaced
from labkit.write.handler import Handler


class OneDocument:
    """The one document for each order that all contestants write, without any sums."""

    name = "peers.view"
    orders = streams = "peers.view.orders"
    indexes: ClassVar[Indexes] = {orders: []}

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """No document but that of the stream."""
        return ()

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        for event in commit.events:
            if isinstance(event, OrderPlaced):
                docs[self.orders].add(document(event))


LEAN = OneDocument()
FULL = ServiceProjection(ORDERS)


def _handle(pipe: Connection, job: Job, broker: KafkaPythonBroker) -> None:
    group = f"{job.group}.handler"
    log = broker.log(job.commands, job.events, group, f"{group}-0")
    store = MongoStore(job.mongo_uri, job.database)
    handler = Handler(ORDERS, log, store, batch_size=job.batch, executor=ThreadPoolExecutor(1))
    ready(pipe)
    while True:
        handler.step()


def _project(pipe: Connection, job: Job, broker: KafkaPythonBroker, projection: Projection) -> None:
    projector = Projector(
        projection,
        ORDERS.codec,
        broker.source(job.events, f"{job.group}.projector"),
        MongoStore(job.mongo_uri, job.database),
        ORDERS.checkpoints,
        batch_size=job.batch,
    )
    projector.join(job.partitions)
    ready(pipe)
    while True:
        projector.step()


def kafka_python_handler(pipe: Connection, job: Job) -> None:
    """On kafka-python."""
    _handle(pipe, job, KafkaPythonBroker(job.bootstrap))


def kafka_python_lean(pipe: Connection, job: Job) -> None:
    """On kafka-python: one document an order."""
    _project(pipe, job, KafkaPythonBroker(job.bootstrap), LEAN)


def kafka_python_full(pipe: Connection, job: Job) -> None:
    """On kafka-python: all that the views of orders keep."""
    _project(pipe, job, KafkaPythonBroker(job.bootstrap), FULL)


def confluent_handler(pipe: Connection, job: Job) -> None:
    """On confluent-kafka."""
    _handle(pipe, job, ConfluentBroker(job.bootstrap))


def confluent_lean(pipe: Connection, job: Job) -> None:
    """On confluent-kafka: one document an order."""
    _project(pipe, job, ConfluentBroker(job.bootstrap), LEAN)


def confluent_full(pipe: Connection, job: Job) -> None:
    """On confluent-kafka: all that the views of orders keep."""
    _project(pipe, job, ConfluentBroker(job.bootstrap), FULL)
