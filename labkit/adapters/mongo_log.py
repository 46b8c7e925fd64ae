"""The log on MongoDB: the same port as Kafka's, kept by transactions, unique indexes and fences.

Collections::

    log.TOPIC       {_id: {p: partition, o: offset}, key, value, stream?, version?, command?}
    log.topics      {_id: topic, partitions}
    log.ends        {_id: "TOPIC|partition", next}                    the next offset
    log.groups      {_id: "TOPIC|GROUP|partition", owner, epoch, offset, commits}
    log.members     {_id: member, group: "TOPIC|GROUP", slot, seen}   seen: the server's clock
    log.producers   {_id: transactional id, epoch}

Offsets are drawn in the transaction that writes the records, so writers of one partition stand in
line at its document in ``log.ends``, and a reader never sees a gap. Of the commits, two things are
unique: the stream's version, and the one final commit of a command (by its place; ADR 005).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from bson import MaxKey
from pymongo import IndexModel, MongoClient, ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from labkit.adapters.kafka import SESSION_MS, offsets_of, spread
from labkit.adapters.mongo import connect, transaction, translated
from labkit.adapters.mongo_records import MongoSender, append, attempts, partitions_of, unique
from labkit.errors import Duplicate, Fenced, LabkitError
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Document

if TYPE_CHECKING:
    from labkit.adapters.mongo_changes import MongoChanges

#: How often a member looks after its group; after ``SESSION_MS`` without it, it is out.
LOOK_SECONDS = 0.5
#: How often a reader looks for records that are new.
POLL_SECONDS = 0.005


class MongoBroker:
    """Topics, groups and offsets in one database of a MongoDB replica set."""

    def __init__(self, uri: str, database: str) -> None:
        self._client, self._db = connect(uri, database)

    def create(self, topics: Mapping[str, int]) -> None:
        """Create the topics that are not there yet."""
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
                # Last: from now on the topic is there.
                self._db["log.topics"].update_one(
                    {"_id": topic}, {"$setOnInsert": {"partitions": partitions}}, upsert=True
                )

    def drop(self, topics: Iterable[str]) -> None:
        """Delete topics, with what groups know of them."""
        with translated("delete topics"):
            for topic in topics:
                self._db["log.topics"].delete_one({"_id": topic})
                self._db[f"log.{topic}"].drop()
                of_topic = {"_id": {"$gte": f"{topic}|", "$lt": f"{topic}}}"}}  # "}" follows "|"
                for name in ("log.ends", "log.groups"):
                    self._db[name].delete_many(of_topic)

    def topics(self) -> list[str]:
        """The names of all topics."""
        with translated("list topics"):
            return sorted(d["_id"] for d in self._db["log.topics"].find())

    def sender(self) -> MongoSender:
        """A new sender."""
        return MongoSender(self._client, self._db)

    def source(
        self, topic: str, group: str | None = None, *, uncommitted: bool = False
    ) -> MongoSource:
        """A member of ``group``, or a reader in none; nobody ever sees what is not committed."""
        return MongoSource(self._client, self._db, topic, group)

    def log(
        self,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery = "exactly_once",
    ) -> MongoLog:
        """A handler's log."""
        return MongoLog(self._client, self._db, commands, events, group, transactional_id, delivery)

    def changes(self, topic: str) -> MongoChanges:
        """What becomes part of a topic: for the relay, which claims it by this."""
        from labkit.adapters.mongo_changes import MongoChanges

        return MongoChanges(self._client, self._db, topic)

    def committed(self, topic: str, group: str, *, settled: bool = False) -> dict[int, int]:
        """The offsets that a group has committed."""
        beginning = f"{topic}|{group}|"
        with translated(f"offsets of {group!r}"):
            found = self._db["log.groups"].find(
                {"_id": {"$gte": beginning, "$lt": f"{topic}|{group}}}"}}
            )
            return {int(d["_id"].rpartition("|")[2]): d["offset"] for d in found if "offset" in d}

    def version(self) -> str:
        """As the server says."""
        with translated("ask for the version"):
            return str(self._client.server_info()["version"])

    def close(self) -> None:
        """Close the client."""
        self._client.close()


# --- reading


class MongoSource:
    """A reader of one topic, in a group or in none."""

    def __init__(
        self,
        client: MongoClient[Document],
        db: Database[Document],
        topic: str,
        group: str | None,
        slot: str = "",
    ) -> None:
        self._client, self._db, self._topic = client, db, topic
        self._count = partitions_of(db, topic)
        self._positions: dict[int, int] = {}
        self._group = f"{topic}|{group}" if group else None
        self._slot = slot
        self._member = uuid.uuid4().hex
        self._owned: dict[int, int] = {}  # partition -> epoch
        self._looked = 0.0

    def poll(self, limit: int, timeout: float) -> Batch:
        """At most ``limit`` records; looks for new ones every few milliseconds."""
        deadline = time.monotonic() + timeout
        batch = Batch()
        with translated(f"read {self._topic!r}"):
            while True:
                if self._group and time.monotonic() - self._looked >= LOOK_SECONDS:
                    self._looked = time.monotonic()
                    self._look_after_the_group(batch)
                self._read(limit, batch)
                left = deadline - time.monotonic()
                if batch.records or batch.assigned or batch.revoked or left <= 0:
                    break
                time.sleep(min(left, POLL_SECONDS))
        batch.fence = dict(self._owned)
        return batch

    def _read(self, limit: int, batch: Batch) -> None:
        ends = self._ends(self._positions) if self._positions else {}
        size = 0
        for partition, position in list(self._positions.items()):
            room = limit - len(batch.records)
            if room <= 0 or size >= MAX_BATCH_BYTES:
                return
            if position >= ends.get(partition, 0):
                continue
            # Who has brought something stands last in line: nobody holds up the others.
            self._positions[partition] = self._positions.pop(partition)
            with self._db[f"log.{self._topic}"].find(
                {"_id": {"$gte": _place(partition, position), "$lt": _place(partition, MaxKey())}},
                sort=[("_id", 1)],
                limit=room,
            ) as found:
                for document in found:
                    offset = document["_id"]["o"]
                    key, value = bytes(document["key"]), bytes(document["value"])
                    batch.records.append(Record(partition, offset, key, value))
                    self._positions[partition] = batch.positions[partition] = offset + 1
                    size += len(value)
                    if size >= MAX_BATCH_BYTES:
                        break

    def start(self, partition: int, offset: int | None = None) -> None:
        """Begin to read a partition."""
        if offset is None:
            with translated(f"start {self._topic!r}:{partition}"):
                found = self._db["log.groups"].find_one({"_id": f"{self._group}|{partition}"})
            offset = (found or {}).get("offset", 0)
        self._positions[partition] = offset

    def stop(self, partition: int) -> None:
        """Yield nothing more of it."""
        self._positions.pop(partition, None)

    def ends(self) -> dict[int, int]:
        """The next offsets; nothing is ever open to readers here."""
        with translated(f"ends of {self._topic!r}"):
            return self._ends(range(self._count))

    def _ends(self, partitions: Iterable[int]) -> dict[int, int]:
        ids = [f"{self._topic}|{partition}" for partition in partitions]
        found = self._db["log.ends"].find({"_id": {"$in": ids}})
        return {int(d["_id"].rpartition("|")[2]): d["next"] for d in found}

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        """Kafka's default partitioner."""
        return spread(keys, self._count)

    def close(self) -> None:
        """Leave the group; where the server is gone, its session ends by itself."""
        if self._group:
            with suppress(LabkitError), translated(f"leave {self._group!r}"):
                self._db["log.members"].delete_one({"_id": self._member})
                for partition, epoch in self._owned.items():
                    self._let_go(partition, epoch)
            self._owned, self._positions, self._group = {}, {}, None

    # --- the group

    def _look_after_the_group(self, batch: Batch) -> None:
        """Say that we live; give up what is not ours any more; take what nobody holds.

        Every member works out the same shares from the same documents; whoever saw them first takes
        first, and takes only what is free or whose owner is out. A partition moves when its owner
        has let go of it.
        """
        self._db["log.members"].update_one(
            {"_id": self._member},
            [{"$set": {"group": self._group, "slot": self._slot, "seen": "$$NOW"}}],
            upsert=True,
        )
        ids = [f"{self._group}|{partition}" for partition in range(self._count)]
        documents = {d["_id"]: d for d in self._db["log.groups"].find({"_id": {"$in": ids}})}
        # Only now: an owner says that it lives before it takes anything.
        alive = {d["_id"] for d in self._db["log.members"].find(self._alive())}
        found = [documents.get(id, {"_id": id, "owner": "", "epoch": 0}) for id in ids]
        owners = {p: d["owner"] for p, d in enumerate(found) if d["owner"] in alive}
        mine = {
            p for p, owner in _shares(self._count, owners, alive).items() if owner == self._member
        }
        for partition, epoch in list(self._owned.items()):
            lost = (found[partition]["owner"], found[partition]["epoch"]) != (self._member, epoch)
            if lost or partition not in mine:
                if not lost:
                    self._let_go(partition, epoch)
                del self._owned[partition]
                self._positions.pop(partition, None)
                batch.revoked |= {partition}
        for partition in sorted(mine - set(self._owned)):
            if partition not in owners and self._take(found[partition]):
                self._owned[partition] = found[partition]["epoch"] + 1
                batch.assigned |= {partition}
        batch.records = [r for r in batch.records if r.partition not in batch.revoked]

    def _alive(self) -> Document:
        age = {"$subtract": ["$$NOW", "$seen"]}
        return {"group": self._group, "$expr": {"$lt": [age, SESSION_MS]}}

    def _take(self, found: Document) -> bool:
        seen = {"_id": found["_id"], "owner": found["owner"], "epoch": found["epoch"]}
        taken = {"$set": {"owner": self._member, "epoch": found["epoch"] + 1}}
        try:
            done = self._db["log.groups"].update_one(seen, taken, upsert=not found["epoch"])
        except DuplicateKeyError:  # somebody else was first to hold it at all
            return False
        return done.matched_count == 1 or done.upserted_id is not None

    def _let_go(self, partition: int, epoch: int) -> None:
        self._db["log.groups"].update_one(
            {"_id": f"{self._group}|{partition}", "owner": self._member, "epoch": epoch},
            {"$set": {"owner": ""}},
        )


def _place(partition: int, offset: Any) -> Document:
    return {"p": partition, "o": offset}


def _shares(count: int, owners: Mapping[int, str], members: Iterable[str]) -> dict[int, str]:
    """Who should own what: nobody loses a partition who need not."""
    shares: dict[str, list[int]] = {member: [] for member in sorted(members)}
    fair = -(-count // len(shares))
    free = []
    for partition in range(count):
        owner = owners.get(partition)
        if owner in shares and len(shares[owner]) < fair:
            shares[owner].append(partition)
        else:
            free.append(partition)
    for partition in free:
        min(shares.values(), key=len).append(partition)
    return {partition: member for member, some in shares.items() for partition in some}


class MongoLog(MongoSource):
    """The handler's log."""

    def __init__(
        self,
        client: MongoClient[Document],
        db: Database[Document],
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery,
    ) -> None:
        super().__init__(client, db, commands, group, transactional_id)
        self._events, self._delivery = events, delivery
        with translated(f"take over {transactional_id!r}"):
            found = db["log.producers"].find_one_and_update(
                {"_id": transactional_id},
                {"$inc": {"epoch": 1}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
            assert found is not None, "an upsert returns a document"
            self._epoch = found["epoch"]
            # Who had this id before is dead or fenced; nobody need wait for its session to end.
            db["log.members"].delete_many({"group": self._group, "slot": transactional_id})

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        """The three delivery levels are the order of the steps in here."""
        positions = offsets_of(batch, commits, self._positions)
        ends: dict[int, int] = {}
        try:
            for attempt in attempts():
                with attempt, translated(f"commit to {self._events!r}"):
                    match self._delivery:
                        case "exactly_once":
                            with transaction(self._client) as session:
                                ends = self._produce(commits, session)
                                hit(Failpoint.HANDLER_PRODUCED)
                                self._move(positions, batch, session)
                                hit(Failpoint.HANDLER_OFFSETS)
                        case "at_least_once":
                            with transaction(self._client) as session:
                                ends = self._produce(commits, session)
                            hit(Failpoint.HANDLER_PRODUCED)
                            with transaction(self._client) as session:
                                self._move(positions, batch, session)
                            hit(Failpoint.HANDLER_OFFSETS)
                        case "at_most_once":
                            with transaction(self._client) as session:
                                self._move(positions, batch, session)
                            hit(Failpoint.HANDLER_OFFSETS)
                            with transaction(self._client) as session:
                                ends = self._produce(commits, session)
                            hit(Failpoint.HANDLER_PRODUCED)
        except Duplicate as error:
            raise Fenced(f"commit to {self._events!r}: somebody else has done it") from error
        return ends

    def _produce(self, commits: Sequence[Record], session: ClientSession) -> dict[int, int]:
        own = {"_id": self._slot, "epoch": self._epoch}
        done = self._db["log.producers"].update_one(own, {"$inc": {"commits": 1}}, session=session)
        if done.matched_count != 1:
            raise Fenced(f"transactional id {self._slot!r} has a newer owner")
        fields = partial(unique, once=self._delivery == "exactly_once")
        _, ends = append(self._db, session, self._events, commits, fields)
        return ends

    def _move(self, positions: Mapping[int, int], batch: Batch, session: ClientSession) -> None:
        for partition, position in positions.items():
            owned = {"owner": self._member, "epoch": (batch.fence or {}).get(partition)}
            done = self._db["log.groups"].update_one(
                {"_id": f"{self._group}|{partition}", **owned},
                # MongoDB leaves out a write that changes nothing, and that would fence nobody.
                {"$set": {"offset": position}, "$inc": {"commits": 1}},
                session=session,
            )
            if done.matched_count != 1:
                raise Fenced(f"partition {partition} of {self._group!r} has another owner")

    def events(self) -> MongoSource:
        """A reader of the events topic."""
        return MongoSource(self._client, self._db, self._events, None)

    def commands(self) -> MongoSource:
        """A reader of the commands topic."""
        return MongoSource(self._client, self._db, self._topic, None)
