"""The folders, the saved state and the lock of a lab.

::

    <home>/jars/kafka-4.3.1/      shared by all labs
    <home>/labs/<lab>.lock        held by `up` and `down`
    <home>/labs/<lab>/state.json  processes and ports of the servers
    <home>/labs/<lab>/{kafka,mongo,logs,tmp}/
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import platformdirs

from labkit.errors import StackError, UsageError

Report = Callable[[str], None]

# The first `up` downloads Kafka, which takes long on a slow network.
LOCK_PATIENCE_S = 900.0


def quiet(_: str) -> None:
    """Ignore a line of progress."""


class ServerProcess(msgspec.Struct):
    """One server process; ``started`` (see ``processes.born``) detects a reused pid.

    ``log_from`` is where the part of its log begins that this process has written.
    """

    pid: int
    started: float
    port: int
    log_from: int = 0


class Lease(msgspec.Struct, frozen=True):
    """One use of the servers by a live process, for a run; ``started`` as in ``ServerProcess``."""

    pid: int
    started: float
    run: str


class LabState(msgspec.Struct):
    """The content of ``state.json``. The ports survive ``down``, so the next ``up`` reuses them."""

    kind: str = "native"
    bootstrap: str = ""
    mongo_uri: str = ""
    kafka: ServerProcess | None = None
    mongo: ServerProcess | None = None
    kafka_port: int = 0
    controller_port: int = 0
    mongo_port: int = 0
    # The port in the replica set configuration; 0 before the first start.
    member_port: int = 0
    up: bool = False
    # Whether the servers stop with their last lease; those of `labkit up` wait for `labkit down`.
    leased: bool = False
    leases: list[Lease] = []


def home() -> Path:
    """Return the folder of all labs, which may not exist: LABKIT_HOME or the user's data folder.

    Raises:
        UsageError: it is below the home folder of a user who has none.
    """
    named = os.environ.get("LABKIT_HOME")
    try:
        return Path(named or platformdirs.user_data_dir("labkit")).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(
            f"no home folder is known ({error}): set LABKIT_HOME to a folder of your own"
        ) from None


def lab_folder(lab: str) -> Path:
    """Return the folder of one lab.

    Symbolic links are resolved, because the path identifies the processes of the lab.

    Raises:
        UsageError: the name has characters other than a-z, 0-9 and -, or more than 32.
    """
    if not isinstance(lab, str) or not re.fullmatch(r"[a-z0-9-]{1,32}", lab):
        raise UsageError(
            f"a lab's name is 1 to 32 characters of a-z, 0-9 and '-', got {lab!r}: choose another"
        )
    return home().resolve() / "labs" / lab


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate an ``OSError`` about ``path`` into a ``StackError`` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StackError(
                f"the disk of {path} is full: free some space, or set LABKIT_HOME to "
                "a folder on another disk"
            ) from error
        raise StackError(
            f"cannot write to {path} ({error.strerror}): set LABKIT_HOME to a writable folder"
        ) from error


def load(lab: str, report: Report = quiet) -> LabState:
    """Return the state of a lab; move an invalid file aside and report it."""
    path = lab_folder(lab) / "state.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabState)
    except (FileNotFoundError, NotADirectoryError):
        return LabState()
    except PermissionError as error:
        raise StackError(
            f"cannot read {path}: another user owns it; set LABKIT_HOME to your own folder"
        ) from error
    except (msgspec.DecodeError, IsADirectoryError):
        aside = path.with_name(f"state.json.broken-{time.time_ns()}")
        with writing(path):
            path.rename(aside)
        report(
            f"{path} is invalid: moved to {aside.name}, continuing without it (the data is kept)"
        )
        return LabState()


def save(lab: str, state: LabState) -> None:
    """Replace the state file atomically; only its owner may read it (a URI may hold a password)."""
    path = lab_folder(lab) / "state.json"
    draft = path.with_name("state.json.new")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=2))
        draft.replace(path)


@contextlib.contextmanager
def locked(path: Path, what: str, report: Report = quiet) -> Iterator[None]:
    """Hold ``path`` as a lock between processes; the system releases it when the holder dies.

    Raises:
        StackError: another process holds the lock for LOCK_PATIENCE_S seconds.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        waiting = False
        while not lock(file, path):
            if time.monotonic() > deadline:
                raise StackError(
                    f"another labkit process has been busy with {what} for "
                    f"{LOCK_PATIENCE_S:.0f} s: find it with `ps`, stop it, and try again"
                )
            if not waiting:
                report(f"another labkit process is busy with {what}; waiting for it")
                waiting = True
            time.sleep(0.05)
        yield


def lock(file: IO[Any], path: Path) -> bool:
    """Lock an open file, without waiting; whether nobody else holds it.

    Raises ``StackError`` where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StackError(
            f"{path} cannot be locked ({error.strerror}): set LABKIT_HOME to a folder on a disk of "
            "this machine"
        ) from error
    return True
