"""Quix Streams: a pipeline from topic to topic, and one from topic to its MongoDB sink.

Quix passes values as bytes and msgspec decodes them. A checkpoint follows each batch of the same
size as that of the other contestants.
"""

from __future__ import annotations

import threading
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

from confluent_kafka.admin import AdminClient
from pymongo.uri_parser import parse_uri

from benchmarks.peers.job import Job, shown
from labkit.adapters.kafka import COMPRESSION, MAX_RECORD_BYTES, POLL_INTERVAL_MS, SESSION_MS
from labkit.experiments.bench.job import decided, ready

with warnings.catch_warnings(record=True):  # a deprecation inside authlib
    from quixstreams import Application
    from quixstreams.sinks.community.mongodb import MongoDBSink

#: The checkpoint of an incomplete batch. With the default of 5 s, the last batch of a round would
#: wait longer than the round of any other contestant takes.
COMMIT_SECONDS = 0.5


def _application(job: Job, topic: str) -> Application:
    return Application(
        job.bootstrap,
        consumer_group=_group(job, topic),
        auto_offset_reset="earliest",
        commit_every=job.batch,
        commit_interval=COMMIT_SECONDS,
        auto_create_topics=False,
        use_changelog_topics=False,
        consumer_extra_config={
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": SESSION_MS // 3,
            "max.poll.interval.ms": POLL_INTERVAL_MS,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 100,
        },
        producer_extra_config={
            "enable.idempotence": True,
            "linger.ms": 1,
            "compression.type": COMPRESSION,
            "batch.num.messages": 10_000,
            "message.max.bytes": MAX_RECORD_BYTES,
        },
        loglevel="ERROR",
    )


def _group(job: Job, topic: str) -> str:
    return f"{job.group}.{topic}"


def commands(pipe: Connection, job: Job) -> None:
    """From the commands topic to the events topic."""
    app = _application(job, job.commands)
    events = app.topic(job.events, value_serializer="bytes")
    frame = app.dataframe(app.topic(job.commands, value_deserializer="bytes"))
    frame.apply(decided).to_topic(events)
    ready(pipe)
    app.run()


def view(pipe: Connection, job: Job) -> None:
    """Into the collection; the record's key is the id of the document."""
    app = _application(job, job.events)
    events = app.topic(job.events, key_deserializer="str", value_deserializer="bytes")
    app.dataframe(events).apply(shown).sink(_sink(job))
    threading.Thread(target=_tell, args=(pipe, job), daemon=True).start()
    app.run()


def _sink(job: Job) -> MongoDBSink:
    """The sink takes the address in parts; other options go to the client unchanged."""
    found = parse_uri(job.mongo_uri)
    (host, port), *_ = found["nodelist"]
    return MongoDBSink(
        host,
        job.database,
        job.orders,
        username=found["username"],
        password=found["password"],
        port=port,
        update_method="ReplaceOne",
        w="majority",
        **found["options"],
    )


def _tell(pipe: Connection, job: Job) -> None:
    """Report when the group owns its partitions: Quix has no hook, so the broker is asked."""
    admin = AdminClient({"bootstrap.servers": job.bootstrap})
    while True:
        ((_, asked),) = admin.describe_consumer_groups([_group(job, job.events)]).items()
        members: list[Any] = asked.result().members
        owned = sum(len(member.assignment.topic_partitions) for member in members)
        if owned == job.partitions:
            ready(pipe)
            return
        time.sleep(0.1)
