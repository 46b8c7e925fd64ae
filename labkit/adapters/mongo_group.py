"""Membership in a consumer group on MongoDB."""

from __future__ import annotations

import time

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from labkit.adapters.sticky import assign
from labkit.ports.broker import Batch
from labkit.ports.store import Document

#: A session expires after this time. Only polls renew it, so it is longer than a long step, and
#: than the pauses of scheduled mode.
SESSION_MS = 6_000
#: How often a member renews its session.
RENEW_SECONDS = 0.5


class Membership:
    """One member of a group, and the partitions that it owns with their epochs."""

    def __init__(
        self, db: Database[Document], member: str, group: str, partitions: int, slot: str
    ) -> None:
        self._db, self._member, self._group, self._slot = db, member, group, slot
        self._ids = [f"{group}|{partition}" for partition in range(partitions)]
        self._renewed = 0.0
        self.owned: dict[int, int] = {}  # partition -> epoch

    def renew(self, batch: Batch) -> None:
        """Renew the session and rebalance; note the changes of ownership in ``batch``.

        Every member computes the same assignment from the same documents. A member takes a
        partition only if the partition is free or the session of its owner has expired, so a
        partition moves when its owner has released it.
        """
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        self._db["log.members"].update_one(
            {"_id": self._member},
            [{"$set": {"group": self._group, "slot": self._slot, "seen": "$$NOW"}}],
            upsert=True,
        )
        documents = {d["_id"]: d for d in self._db["log.groups"].find({"_id": {"$in": self._ids}})}
        # Read the members last: an owner renews its session before it takes a partition.
        alive = {d["_id"] for d in self._db["log.members"].find(self._alive())}
        found = [documents.get(id, {"_id": id, "owner": "", "epoch": 0}) for id in self._ids]
        owners = {p: d["owner"] for p, d in enumerate(found) if d["owner"] in alive}
        assigned = assign(len(self._ids), owners, alive)
        mine = {partition for partition, member in assigned.items() if member == self._member}
        for partition, epoch in list(self.owned.items()):
            lost = (found[partition]["owner"], found[partition]["epoch"]) != (self._member, epoch)
            if lost or partition not in mine:
                if not lost:
                    self._release(partition, epoch)
                del self.owned[partition]
                batch.revoked |= {partition}
        for partition in sorted(mine - set(self.owned)):
            if partition not in owners and self._take(found[partition]):
                self.owned[partition] = found[partition]["epoch"] + 1
                batch.assigned |= {partition}

    def leave(self) -> None:
        """Leave the group and release all partitions."""
        self._db["log.members"].delete_one({"_id": self._member})
        for partition, epoch in self.owned.items():
            self._release(partition, epoch)

    def _alive(self) -> Document:
        age = {"$subtract": ["$$NOW", "$seen"]}
        return {"group": self._group, "$expr": {"$lt": [age, SESSION_MS]}}

    def _take(self, found: Document) -> bool:
        seen = {"_id": found["_id"], "owner": found["owner"], "epoch": found["epoch"]}
        taken = {"$set": {"owner": self._member, "epoch": found["epoch"] + 1}}
        try:
            done = self._db["log.groups"].update_one(seen, taken, upsert=not found["epoch"])
        except DuplicateKeyError:  # another member was the first owner ever
            return False
        return done.matched_count == 1 or done.upserted_id is not None

    def _release(self, partition: int, epoch: int) -> None:
        self._db["log.groups"].update_one(
            {"_id": self._ids[partition], "owner": self._member, "epoch": epoch},
            {"$set": {"owner": ""}},
        )
