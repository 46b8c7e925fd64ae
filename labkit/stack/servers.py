"""Start, stop and inspect the servers of a lab, whichever of the three kinds they are."""

import atexit
import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from labkit.errors import LabkitError, StackError, Unreachable, UsageError
from labkit.stack import broker, compose, external, gone, mongod, native, ports
from labkit.stack.processes import born, same_birth
from labkit.stack.state import (
    LabState,
    Lease,
    Report,
    home,
    lab_folder,
    load,
    locked,
    quiet,
    save,
    writing,
)

KINDS = ("native", "external", "compose")


class Servers(msgspec.Struct, frozen=True):
    """The addresses of a lab's servers.

    ``bootstrap`` is the host:port of Kafka; ``mongo_uri`` names a replica set.
    """

    lab: str
    kind: str
    bootstrap: str
    mongo_uri: str


def up(
    lab: str = "lab",
    kind: str | None = None,
    report: Report = quiet,
    *,
    kafka_port: int = 0,
    mongo_port: int = 0,
) -> Servers:
    """Start the servers of a lab unless they run, and return when both answer; see ``down``.

    Args:
        lab: 1 to 32 characters of a-z, 0-9 and '-'.
        kind: ``native``, ``external`` or ``compose``; None is external if LABKIT_BOOTSTRAP and
            LABKIT_MONGO_URI are set, otherwise native.
        report: receives one line for each step.
        kafka_port: a port, or 0 for the port of the last run if it is free, otherwise any free one.
        mongo_port: the same for MongoDB.

    Raises:
        UsageError: an invalid name, kind, port or address.
        StackError: a server is missing, cannot be started, or refuses access.
        Unreachable: a server does not answer.
    """
    kind = _kind(kind)
    lab_folder(lab)
    with _lock(lab, report):
        state = load(lab, report)
        _start(lab, state, kind, report, kafka_port, mongo_port)
        state.leased = False
        save(lab, state)
        return _servers(lab, state)


def _start(
    lab: str, state: LabState, kind: str, report: Report, kafka_port: int = 0, mongo_port: int = 0
) -> None:
    if state.up and state.kind != kind and state.kind != "external":
        raise StackError(
            f"lab {lab!r} runs {state.kind} servers, not {kind}: run `labkit down --lab {lab}` "
            "first, or choose another name"
        )
    state.kind = kind
    if kind == "external":
        addresses = external.addresses()
        assert addresses is not None  # _kind checks it
        report(f"checking Kafka at {addresses[0]} and {external.masked(addresses[1])}")
        given(lab)
        state.bootstrap, state.mongo_uri = addresses
    elif kind == "compose":
        compose.start(lab, state, kafka_port, mongo_port, report)
    else:
        native.start(lab, state, kafka_port, mongo_port, report)
    state.up = True


def borrow(
    lab: str = "lab", run: str = "", report: Report = quiet, *, start: bool = True
) -> Servers:
    """Return the servers of a lab, and use them until ``give_back``, or until this process ends.

    Servers that this call starts stop with their last user; those of ``up`` stay until ``down``.
    Each use is a lease in the state of the lab. It names its process, so that the lease of a killed
    process counts no more.

    Args:
        lab: the name of a lab.
        run: what the servers are used for; "" is no run.
        report: receives one line for each step of starting.
        start: start servers that do not run.

    Raises:
        Unreachable: the servers do not run, and ``start`` is False.
        StackError: see ``up``.
    """
    down_now = f"the servers of lab {lab!r} are not up; run `labkit up`"
    if not start and running(lab) is None:
        raise Unreachable(down_now)
    with _lock(lab, report):
        state = load(lab, report)
        if not _is_up(lab, state):
            if not start:
                raise Unreachable(down_now)
            # A server that `labkit up` started may have died; after a restart of the machine none
            # of them is left.
            kept = state.up and not state.leased and any(native.alive(lab, state))
            _start(lab, state, _kind(None), report)
            state.leased = not kept
        state.leases = [*_live(state), Lease(os.getpid(), born(os.getpid()), run)]
        save(lab, state)
    _held.append((lab, run))
    return _servers(lab, state)


def give_back(lab: str = "lab", run: str = "") -> None:
    """End one use; the last user stops native servers that ``borrow`` started."""
    with contextlib.suppress(ValueError):
        _held.remove((lab, run))
    folder = lab_folder(lab)
    if not folder.exists():  # purged meanwhile
        return
    with _lock(lab, quiet):
        state = load(lab)
        state.leases = _live(state)
        for lease in state.leases:
            if (lease.pid, lease.run) == (os.getpid(), run):
                state.leases.remove(lease)
                break
        if state.leased and not state.leases and state.kind == "native":
            native.shut_down(lab, state)
            state.up = state.leased = False
        if folder.exists():
            save(lab, state)


def users(lab: str = "lab") -> list[Lease]:
    """Return the leases of live processes."""
    return _live(load(lab))


def tight(lab: str = "lab") -> str:
    """Return one line of warning if a native server may soon run out of open files; or ""."""
    state = load(lab)
    return native.tight(lab, state) if state.kind == "native" and state.up else ""


#: What this process uses now: labs and runs.
_held: list[tuple[str, str]] = []


@atexit.register
def _give_all_back() -> None:
    while _held:
        with contextlib.suppress(LabkitError):
            give_back(*_held[0])


def _live(state: LabState) -> list[Lease]:
    return [lease for lease in state.leases if same_birth(born(lease.pid), lease.started)]


def running(lab: str = "lab") -> Servers | None:
    """Return the servers of a lab if they run, otherwise None; takes a few milliseconds."""
    try:
        state = load(lab)
    except StackError:
        return None
    return _servers(lab, state) if _is_up(lab, state) else None


def check(servers: Servers) -> None:
    """Check that servers, whoever started them, accept connections; takes a few milliseconds.

    Raises:
        Unreachable: one does not; the message has what is known of its end.
    """
    if not external.accept(servers.bootstrap, servers.mongo_uri):
        raise Unreachable(
            gone.explained(
                f"the servers of lab {servers.lab!r} ({servers.bootstrap}, "
                f"{external.masked(servers.mongo_uri)}) do not answer any more; see "
                "`labkit status` and `labkit logs`"
            )
        )


def given(lab: str = "lab") -> Servers | None:
    """Return the servers that the environment names, or None.

    A lab passes its addresses to its workers in this way.

    Raises:
        UsageError: only one address is set, or one is invalid.
        StackError: a server refuses access or does not answer.
    """
    addresses = external.addresses()
    if addresses is None:
        return None
    external.check_kafka(addresses[0])
    external.check_mongo(addresses[1])
    return Servers(lab, "external", *addresses)


def down(lab: str = "lab", purge: bool = False, report: Report = quiet) -> bool:
    """Stop the servers of a lab, except external ones, and return whether any ran.

    ``purge`` also deletes the data, logs and settings. The call is idempotent.
    """
    folder = lab_folder(lab)
    if not folder.exists() and not native.leftovers(lab):
        return False
    with _lock(lab, report):
        state = load(lab, report)
        ran = native.shut_down(lab, state)
        if state.kind == "compose" and (state.up or purge):
            ran = compose.shut_down(lab, state, purge)
        state.up = state.leased = False
        if folder.exists():
            save(lab, state)
        if purge:
            with writing(folder):
                shutil.rmtree(folder)
    return ran


@contextlib.contextmanager
def borrowed(lab: str = "lab", report: Report = quiet) -> Iterator[Servers]:
    """Provide servers for a block of code; see ``borrow``."""
    servers = borrow(lab, report=report)
    try:
        yield servers
    finally:
        give_back(lab)


def status(lab: str = "lab") -> dict[str, Any]:
    """Return the state of a lab's servers, ready for JSON.

    ``servers`` has one entry each for Kafka and MongoDB: ``name``, ``address``, ``answers``. For
    native servers an entry also has ``pid``, ``port``, ``rss_bytes`` and ``uptime_s``.
    """
    state = load(lab)
    servers: list[dict[str, Any]] = []
    if state.kind == "native":
        processes = zip(
            ("kafka", "mongo"),
            native.alive(lab, state),
            (state.kafka_port, state.mongo_port),
            strict=True,
        )
        for name, process, port in processes:
            entry: dict[str, Any] = {"name": name, "address": f"{ports.HOST}:{port}"}
            entry |= {"port": port, "pid": None, "rss_bytes": None, "uptime_s": None}
            entry["answers"] = False
            if process is not None:
                entry["pid"] = process.pid
                entry["rss_bytes"] = process.memory_info().rss
                entry["uptime_s"] = round(time.time() - process.create_time(), 1)
                check = broker.answers if name == "kafka" else mongod.answers
                entry["answers"] = check(port)
            servers.append(entry)
    elif state.up:
        answers = _is_up(lab, state)
        servers = [
            {"name": "kafka", "address": state.bootstrap, "answers": answers},
            {"name": "mongo", "address": external.masked(state.mongo_uri), "answers": answers},
        ]
    up_now = bool(servers) and all(server["answers"] for server in servers)
    return {"lab": lab, "kind": state.kind, "up": up_now, "home": str(home()), "servers": servers}


def _kind(kind: str | None) -> str:
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind in ("native", "compose"):
        return kind
    if external.addresses() is not None:
        return "external"
    if kind == "external":
        raise UsageError(
            f"--kind external needs {external.KAFKA_VARIABLE} and {external.MONGO_VARIABLE}: "
            "set both"
        )
    return "native"


def _is_up(lab: str, state: LabState) -> bool:
    if not state.up:
        return False
    if state.kind == "native":
        return native.is_up(lab, state)
    return external.accept(state.bootstrap, state.mongo_uri)


def _servers(lab: str, state: LabState) -> Servers:
    return Servers(lab, state.kind, state.bootstrap, state.mongo_uri)


def _lock(lab: str, report: Report) -> contextlib.AbstractContextManager[None]:
    return locked(lab_folder(lab).parent / f"{lab}.lock", f"lab {lab!r}", report)
