"""The log on MongoDB: the broker port, built on transactions, unique indexes and fencing.

Collections::

    log.TOPIC       {_id: {p: partition, o: offset}, key, value, stream?, version?, command?}
    log.topics      {_id: topic, partitions}
    log.ends        {_id: "TOPIC|partition", next}                    the next offset
    log.groups      {_id: "TOPIC|GROUP|partition", owner, epoch, offset, commits}
    log.members     {_id: member, group: "TOPIC|GROUP", slot, seen}   seen: server time
    log.producers   {_id: transactional id, epoch}

A transaction allocates offsets and writes the records, so the document of a partition in
``log.ends`` serialises its writers, and a reader never sees a gap. Two things are unique among the
commits: the version of a stream, and the decision on a command (by its partition and offset;
ADR 005).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pymongo import IndexModel

from labkit.adapters.mongo_changes import MongoChanges
from labkit.adapters.mongo_client import connect, translated
from labkit.adapters.mongo_command_log import MongoLog
from labkit.adapters.mongo_sender import MongoSender
from labkit.adapters.mongo_source import MongoSource
from labkit.ports.broker import Delivery

__all__ = ["MongoBroker", "MongoLog"]


class MongoBroker:
    """Topics, groups and offsets in one database of a MongoDB replica set."""

    def __init__(self, uri: str, database: str) -> None:
        self._client, self._db = connect(uri, database)

    def create(self, topics: Mapping[str, int]) -> None:
        unique: dict[str, Any] = {"unique": True}
        with translated("create topics"):
            for name in ("log.groups", "log.members", "log.producers", "log.ends"):
                self._db[name].create_index("_id")
            self._db["log.members"].create_index("group")
            for topic, partitions in topics.items():
                versions = {"partialFilterExpression": {"version": {"$exists": True}}}
                finals = {"partialFilterExpression": {"command": {"$exists": True}}}
                self._db[f"log.{topic}"].create_indexes(
                    [
                        IndexModel([("stream", 1), ("version", 1)], **unique, **versions),
                        IndexModel([("command", 1)], **unique, **finals),
                    ]
                )
                for partition in range(partitions):
                    place = {"_id": f"{topic}|{partition}"}
                    self._db["log.ends"].update_one(
                        place, {"$setOnInsert": {"next": 0}}, upsert=True
                    )
                # Last, because this document makes the topic visible.
                self._db["log.topics"].update_one(
                    {"_id": topic}, {"$setOnInsert": {"partitions": partitions}}, upsert=True
                )

    def drop(self, topics: Iterable[str]) -> None:
        """Delete topics and the group offsets on them."""
        with translated("delete topics"):
            for topic in topics:
                self._db["log.topics"].delete_one({"_id": topic})
                self._db[f"log.{topic}"].drop()
                of_topic = {"_id": {"$gte": f"{topic}|", "$lt": f"{topic}}}"}}  # "}" follows "|"
                for name in ("log.ends", "log.groups"):
                    self._db[name].delete_many(of_topic)

    def topics(self) -> list[str]:
        with translated("list topics"):
            return sorted(d["_id"] for d in self._db["log.topics"].find())

    def sender(self) -> MongoSender:
        return MongoSender(self._client, self._db)

    def source(
        self, topic: str, group: str | None = None, *, uncommitted: bool = False
    ) -> MongoSource:
        """See the port; ``uncommitted`` has no effect: MongoDB shows committed data only."""
        return MongoSource(self._client, self._db, topic, group)

    def log(
        self,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery = "exactly_once",
    ) -> MongoLog:
        return MongoLog(self._client, self._db, commands, events, group, transactional_id, delivery)

    def changes(self, topic: str) -> MongoChanges:
        """Claim a topic for the relay, and follow the records that are added to it."""
        return MongoChanges(self._client, self._db, topic)

    def committed(self, topic: str, group: str, *, settled: bool = False) -> dict[int, int]:
        beginning = f"{topic}|{group}|"
        with translated(f"offsets of {group!r}"):
            found = self._db["log.groups"].find(
                {"_id": {"$gte": beginning, "$lt": f"{topic}|{group}}}"}}
            )
            return {int(d["_id"].rpartition("|")[2]): d["offset"] for d in found if "offset" in d}

    def version(self) -> str:
        with translated("ask for the version"):
            return str(self._client.server_info()["version"])

    def close(self) -> None:
        self._client.close()
