"""What an election undoes, and what it does not: three mongod and the twin alike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from msgspec import structs
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from labkit.adapters import mongo_client
from labkit.adapters.mongo import MongoStore
from labkit.adapters.mongo_reads import MongoReads
from labkit.errors import Fenced, OutcomeUnknown
from labkit.ports.store import Change, Reads, Writes
from labkit.simulation.stores import SimulatedStore
from labkit.simulation.tape import Tape
from labkit.simulation.world import World
from labkit.stack import mongod, processes
from labkit.stack.ports import HOST, choose

pytestmark = [pytest.mark.contract, pytest.mark.servers]

#: How long a server may take until it is what it is to become.
PATIENCE = 90.0
DATABASE = "elections"
#: Servers take each other for dead after so long; a new primary waits for nobody's oplog.
SETTINGS = {"heartbeatTimeoutSecs": 2, "catchUpTimeoutMillis": 0}


class Twin:
    """The store of the seeded world: it has no single servers."""

    def __init__(self) -> None:
        self.store = SimulatedStore(World(Tape(0, {})))
        self.weak = self.store.weak()
        self.elect = self.store.elect

    def cut_off(self) -> None:
        """It takes half a second until other servers have something; no time goes by here."""

    def come_back(self, shows: str) -> None: ...

    def servers(self) -> list[Reads]:
        return [self.weak]


class Member(NamedTuple):
    """One mongod of a replica set, with a client of it alone."""

    port: int
    process: psutil.Process
    client: MongoClient[Any]

    @classmethod
    def start(cls, folder: Path, port: int) -> Member:
        for name in ("mongo", "logs"):
            (folder / name).mkdir(parents=True)
        more = ["--setParameter", "enableTestCommands=1"]  # for fail points
        process = mongod.start(folder, port, more=more)
        client: MongoClient[Any] = MongoClient(HOST, port, directConnection=True, timeoutMS=5_000)
        return cls(port, process, client)

    def said(self, *command: Any, **options: Any) -> dict[str, Any]:
        """The answer to an administrator's command; empty where there is none."""
        with suppress(PyMongoError):
            return self.client.admin.command(*command, **options)
        return {}

    def health(self) -> list[int]:
        """Which members it takes for alive (1) and for dead (0), in the order of the set."""
        return [int(m["health"]) for m in self.said("replSetGetStatus").get("members", [])]

    def stop_producer(self, mode: str) -> None:
        """``alwaysOn``: take on nothing of what others have written; ``off``: go on."""
        self.client.admin.command("configureFailPoint", "stopReplProducer", mode=mode)

    def stopped(self) -> bool:
        told = self.said("getLog", "global").get("log", [])
        return any("stopReplProducer fail point enabled" in line for line in told)


class Mongods:
    """A replica set of three mongod; the first of ``_members`` is its first primary."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self._members: list[Member] = []
        opened.callback(self._stop)
        for n in range(3):
            port = choose(0, {member.port for member in self._members})
            self._members.append(Member.start(folder / str(n), port))
            opened.enter_context(closing(self._members[-1].client))
        hosts = [f"{HOST}:{member.port}" for member in self._members]
        config = {
            "_id": mongod.REPLICA_SET,
            "members": [{"_id": n, "host": host} for n, host in enumerate(hosts)],
            "settings": SETTINGS,
        }
        until(lambda: all(member.said("ping") for member in self._members))
        self._members[0].client.admin.command("replSetInitiate", config)
        until(lambda: all(member.health() == [1, 1, 1] for member in self._members))
        until(self._primary)
        self._ids = {member.port: n for n, member in enumerate(self._members)}
        self._members.sort(key=lambda member: not mongod.answers(member.port))
        uri = f"mongodb://{','.join(hosts)}/?replicaSet={mongod.REPLICA_SET}"
        self.store, self.weak = (
            MongoStore(uri, DATABASE, concern) for concern in ("majority", "1")
        )
        for store in (self.store, self.weak):
            opened.callback(store.close)
            store.index("docs", [("_id", 1)])
            store.index("p", [("_id", 1)])

    def _primary(self) -> Member | None:
        return next((m for m in self._members if mongod.answers(m.port, 1.0)), None)

    def cut_off(self) -> None:
        """From now on the primary alone has what is written.

        To stop the processes would not do: what the primary has sent waits in their sockets.
        """
        for member in self._members[1:]:
            member.stop_producer("alwaysOn")
        until(lambda: all(member.stopped() for member in self._members[1:]))

    def elect(self) -> None:
        """The primary does not answer any more, and another is elected."""
        first, *others = self._members
        os.kill(first.process.pid, signal.SIGSTOP)
        dead = self._ids[first.port]
        until(lambda: all(member.health()[dead : dead + 1] == [0] for member in others))
        while (found := self._primary()) is None:
            for member in others:
                member.said("replSetStepUp")
        for member in others:
            member.stop_producer("off")
        new = HOST, found.port
        until(lambda: all(s._client.primary == new for s in (self.store, self.weak)))

    def come_back(self, shows: str) -> None:
        """The first primary goes on, and takes on what the others have."""
        os.kill(self._members[0].process.pid, signal.SIGCONT)
        until(lambda: all(self._shows(member, shows) for member in self._members))

    def _shows(self, member: Member, id: str) -> bool:
        with suppress(PyMongoError):
            return member.client[DATABASE]["docs"].find_one({"_id": id}) is not None
        return False

    def servers(self) -> list[Reads]:
        """What each of the servers has."""
        return [MongoReads(member.client[DATABASE]) for member in self._members]

    def _stop(self) -> None:
        for member in self._members:
            with suppress(ProcessLookupError):
                os.kill(member.process.pid, signal.SIGCONT)
        processes.stop((member.process for member in self._members), patience=0)


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "the servers do not come there"
        time.sleep(0.05)


@pytest.fixture(params=["twin", pytest.param("mongods", marks=pytest.mark.slow)])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Twin | Mongods]:
    with ExitStack() as opened:
        yield Twin() if request.param == "twin" else Mongods(tmp_path, opened)


def ids(reads: Reads) -> set[str]:
    found = {document["_id"] for document in reads.find("docs", {})}
    assert (reads.count("docs"), {*reads.load("docs", found)}) == (len(found), found)
    assert {total["_id"] for total in reads.totals("docs", "_id", [])} == found
    return found


def test_an_election_undoes_what_one_server_has_alone(
    servers: Twin | Mongods, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, weak = servers.store, servers.weak
    store.advance("p", [], Writes({"docs": [{"_id": "kept"}]}))
    at = store.claim("p", "reader:0")
    servers.cut_off()
    changes = store.changes({"docs": None})
    moved = structs.replace(at, position=7)
    weak.advance("p", [(at, moved)], Writes({"docs": [{"_id": "undone"}]}))
    assert (ids(weak), weak.checkpoints("p")) == ({"kept", "undone"}, [moved])
    assert (ids(store), store.checkpoints("p")) == ({"kept"}, [at])
    for either in (store, weak):
        with either.snapshot() as seen:
            assert (ids(seen), seen.checkpoints("p")) == ({"kept"}, [at])
    heard = set(changes.poll(0.3).changes)  # half a second, and the twin's others have it
    if isinstance(servers, Mongods):  # the twin always has its majority
        with monkeypatch.context() as impatient, pytest.raises(OutcomeUnknown):  # noqa: PT012
            impatient.setattr(mongo_client, "WRITE_MS", 1_000)
            store.advance("p", [], Writes({"docs": [{"_id": "in vain"}]}))
    servers.elect()
    for either in (store, weak):
        assert (ids(either), either.checkpoints("p")) == ({"kept"}, [at])
    with pytest.raises(Fenced):
        weak.advance("p", [(moved, structs.replace(moved, position=8))], Writes())
    store.advance("p", [(at, moved)], Writes({"docs": [{"_id": "again"}]}))
    servers.come_back(shows="again")
    for one in servers.servers():
        assert (ids(one), one.checkpoints("p")) == ({"kept", "again"}, [moved])

    def hears() -> bool:
        heard.update(changes.poll(0.3).changes)
        return Change("docs", "again") in heard

    until(hears)
    assert Change("docs", "undone") not in heard
    changes.close()
