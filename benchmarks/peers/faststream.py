"""FastStream on confluent-kafka: a subscriber that publishes, and one that writes to MongoDB.

Both use msgspec instead of FastStream's JSON (a ``decoder``), no log line for each message, and the
same fetch settings as the other contestants.
"""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection
from typing import Any

from faststream.confluent import KafkaBroker
from faststream.confluent.message import KafkaMessage
from faststream.confluent.response import KafkaResponse
from faststream.middlewares import AckPolicy
from pymongo import AsyncMongoClient, ReplaceOne
from pymongo.asynchronous.collection import AsyncCollection

from benchmarks.peers.job import Job, shown
from labkit.adapters.kafka import COMPRESSION, MAX_RECORD_BYTES, POLL_INTERVAL_MS, SESSION_MS
from labkit.adapters.mongo import MAJORITY
from labkit.experiments.bench.job import decided, ready
from labkit.ports.store import Document

#: The poll interval of a subscriber, as in the bare loops, so that a batch can fill.
POLL_SECONDS = 0.1


def _broker(job: Job, **producing: Any) -> KafkaBroker:
    return KafkaBroker(
        job.bootstrap,
        allow_auto_create_topics=False,
        acks="all",
        enable_idempotence=True,
        **producing,
        max_request_size=MAX_RECORD_BYTES,
        config={"fetch.queue.backoff.ms": 5, "batch.num.messages": 10_000},
        logger=None,
    )


def _read(
    broker: KafkaBroker, pipe: Connection, job: Job, topic: str, *, batch: bool = False
) -> Any:
    """A subscriber without its handler; it reports when it has its partitions.

    With ``batch``, offsets are committed after the handler has returned: at least once.
    """
    told: list[bool] = []

    def on_assign(*_: Any) -> None:
        if not told:
            told.append(True)
            ready(pipe)

    in_batches: dict[str, Any] = {
        "batch": True,
        "max_records": job.batch,
        "ack_policy": AckPolicy.NACK_ON_ERROR,
    }
    return broker.subscriber(
        topic,
        group_id=f"{job.group}.{topic}",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=SESSION_MS // 3,
        max_poll_interval_ms=POLL_INTERVAL_MS,
        polling_interval=POLL_SECONDS,
        on_assign=on_assign,
        decoder=_raw,
        **(in_batches if batch else {}),
    )


def _orders(job: Job) -> AsyncCollection[Document]:
    client: AsyncMongoClient[Document] = AsyncMongoClient(job.mongo_uri)
    return client[job.database].get_collection(job.orders, write_concern=MAJORITY)


async def _raw(message: KafkaMessage) -> Any:
    """The undecoded record; the handler decodes it with msgspec."""
    return message.raw_message


async def _run(broker: KafkaBroker) -> None:
    await broker.start()
    await asyncio.Event().wait()


def message_commands(pipe: Connection, job: Job) -> None:
    """One record at a time; the returned event is published."""
    broker = _broker(job)

    async def handle(message: Any) -> KafkaResponse:
        return KafkaResponse(decided(message.value()), key=message.key())

    _read(broker, pipe, job, job.commands)(broker.publisher(job.events)(handle))
    asyncio.run(_run(broker))


def message_view(pipe: Connection, job: Job) -> None:
    """One record at a time, one upsert for each."""
    broker = _broker(job)

    async def main() -> None:
        orders = _orders(job)

        async def show(message: Any) -> None:
            document = shown(message.value())
            await orders.replace_one({"_id": document["_id"]}, document, upsert=True)

        _read(broker, pipe, job, job.events)(show)
        await _run(broker)

    asyncio.run(main())


def batch_commands(pipe: Connection, job: Job) -> None:
    """A batch in, a batch out."""
    broker = _broker(job, linger_ms=1, compression_type=COMPRESSION)

    async def handle(messages: Any) -> list[KafkaResponse]:
        return [KafkaResponse(decided(m.value()), key=m.key()) for m in messages]

    publisher = broker.publisher(job.events, batch=True)
    _read(broker, pipe, job, job.commands, batch=True)(publisher(handle))
    asyncio.run(_run(broker))


def batch_view(pipe: Connection, job: Job) -> None:
    """A batch in, one unordered bulk of upserts out."""
    broker = _broker(job, linger_ms=1, compression_type=COMPRESSION)

    async def main() -> None:
        orders = _orders(job)

        async def show(messages: Any) -> None:
            documents = [shown(message.value()) for message in messages]
            await orders.bulk_write(
                [ReplaceOne({"_id": d["_id"]}, d, upsert=True) for d in documents], ordered=False
            )

        _read(broker, pipe, job, job.events, batch=True)(show)
        await _run(broker)

    asyncio.run(main())
