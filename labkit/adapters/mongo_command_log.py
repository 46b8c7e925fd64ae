"""The handler's log on MongoDB: commits and command offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database

from labkit.adapters.delivery import commit_in_order
from labkit.adapters.kafka import offsets_of
from labkit.adapters.mongo_client import raise_epoch, transaction, translated
from labkit.adapters.mongo_records import append, attempts, unique
from labkit.adapters.mongo_source import MongoSource
from labkit.errors import Duplicate, Fenced
from labkit.ports.broker import Batch, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Document


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
        self._id, self._events, self._delivery = transactional_id, events, delivery
        with translated(f"take over {transactional_id!r}"):
            self._epoch = raise_epoch(db["log.producers"], transactional_id)["epoch"]
            # The previous owner of the id is dead or fenced, so its session can end now.
            db["log.members"].delete_many({"group": self._group, "slot": transactional_id})

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        positions = offsets_of(batch, commits, self._positions)
        ends: dict[int, int] = {}
        try:
            for attempt in attempts():
                with attempt, translated(f"commit to {self._events!r}"):
                    ends = commit_in_order(
                        self._delivery,
                        transaction=lambda: self._transaction(commits, positions, batch),
                        produce=lambda: self._produce(commits),
                        move_offsets=lambda: self._move(positions, batch),
                    )
        except Duplicate as error:
            raise Fenced(
                f"commit to {self._events!r}: another owner has already committed it"
            ) from error
        return ends

    def _transaction(
        self, commits: Sequence[Record], positions: Mapping[int, int], batch: Batch
    ) -> dict[int, int]:
        with transaction(self._client) as session:
            ends = self._insert(commits, session)
            hit(Failpoint.HANDLER_PRODUCED)
            self._update(positions, batch, session)
            hit(Failpoint.HANDLER_OFFSETS)
        return ends

    def _produce(self, commits: Sequence[Record]) -> dict[int, int]:
        with transaction(self._client) as session:
            ends = self._insert(commits, session)
        hit(Failpoint.HANDLER_PRODUCED)
        return ends

    def _move(self, positions: Mapping[int, int], batch: Batch) -> None:
        with transaction(self._client) as session:
            self._update(positions, batch, session)
        hit(Failpoint.HANDLER_OFFSETS)

    def _insert(self, commits: Sequence[Record], session: ClientSession) -> dict[int, int]:
        own = {"_id": self._id, "epoch": self._epoch}
        done = self._db["log.producers"].update_one(own, {"$inc": {"commits": 1}}, session=session)
        if done.matched_count != 1:
            raise Fenced(f"transactional id {self._id!r} has a newer owner")
        fields = partial(unique, once=self._delivery == "exactly_once")
        _, ends = append(self._db, session, self._events, commits, fields)
        return ends

    def _update(self, positions: Mapping[int, int], batch: Batch, session: ClientSession) -> None:
        for partition, position in positions.items():
            owned = {"owner": self._member, "epoch": (batch.fence or {}).get(partition)}
            done = self._db["log.groups"].update_one(
                {"_id": f"{self._group}|{partition}", **owned},
                # MongoDB skips an update that changes nothing, and then nothing fences this commit.
                {"$set": {"offset": position}, "$inc": {"commits": 1}},
                session=session,
            )
            if done.matched_count != 1:
                raise Fenced(f"partition {partition} of {self._group!r} has another owner")

    def events(self) -> MongoSource:
        return MongoSource(self._client, self._db, self._events, None)

    def commands(self) -> MongoSource:
        return MongoSource(self._client, self._db, self._topic, None)
