"""Quix Streams: a pipeline from topic to topic, and one from topic to its own MongoDB sink.

Values are bytes to Quix and msgspec decodes them; a checkpoint comes after as many records as the
others have in a batch.
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

with warnings.catch_warnings(record=True):  # authlib, deep below, has one for its own authors
    from quixstreams import Application
    from quixstreams.sinks.community.mongodb import MongoDBSink

#: Less than a batch comes to a checkpoint after this time; with its own 5 s the last one of a round
#: would wait for longer than all others take.
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
    """One topic to the other."""
    app = _application(job, job.commands)
    events = app.topic(job.events, value_serializer="bytes")
    frame = app.dataframe(app.topic(job.commands, value_deserializer="bytes"))
    frame.apply(decided).to_topic(events)
    ready(pipe)
    app.run()


def view(pipe: Connection, job: Job) -> None:
    """Into the collection: a document is matched by the record's key."""
    app = _application(job, job.events)
    events = app.topic(job.events, key_deserializer="str", value_deserializer="bytes")
    app.dataframe(events).apply(shown).sink(_sink(job))
    threading.Thread(target=_tell, args=(pipe, job), daemon=True).start()
    app.run()


def _sink(job: Job) -> MongoDBSink:
    """It wants the parts of the address; what else is in it goes to the client as it is."""
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
    """Quix has no hook for it: ask the broker whether the group owns its partitions."""
    admin = AdminClient({"bootstrap.servers": job.bootstrap})
    while True:
        ((_, asked),) = admin.describe_consumer_groups([_group(job, job.events)]).items()
        members: list[Any] = asked.result().members
        owned = sum(len(member.assignment.topic_partitions) for member in members)
        if owned == job.partitions:
            ready(pipe)
            return
        time.sleep(0.1)
