"""Check that this machine has what a lab needs, and say how to fix what is missing."""

import os
import platform
import shutil
from collections.abc import Callable

import msgspec

from labkit.errors import LabkitError
from labkit.stack import compose, external, jars, java, limits, mongod, native, ports
from labkit.stack.state import home

# Kafka's heap and mongod's cache take at least 1 GB; the rest is for workers and a notebook.
LEAST_MEMORY_MB = 1500


class Finding(msgspec.Struct, frozen=True):
    """The result of one check, and how to fix a problem.

    ``ok`` is False only if a lab cannot run without the fix.
    """

    what: str
    ok: bool
    found: str
    todo: str = ""


def doctor() -> list[Finding]:
    """Run all checks. They start, download and change nothing."""
    findings = [_python()]
    try:
        addresses = external.addresses()
    except LabkitError as error:
        addresses = None
        findings.append(Finding("addresses", False, "unusable", str(error)))
    if addresses is not None:
        findings.append(_tried("Kafka", True, lambda: _external_kafka(addresses[0])))
        findings.append(_tried("MongoDB", True, lambda: _external_mongo(addresses[1])))
    # With external servers, the native ones are not needed.
    needed = addresses is None
    findings += [
        _tried("Java", needed, _java),
        _jars(),
        _tried("mongod", needed, _mongod),
        _tried("Docker engine", False, compose.engine),
        _memory(),
        _disk(),
        _tried("ports", needed, _ports),
    ]
    return findings


def _tried(what: str, needed: bool, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except LabkitError as error:
        found, _, todo = str(error).partition(": ")
        return Finding(what, not needed, found if needed else f"{found} (not needed)", todo)


def _python() -> Finding:
    return Finding("Python", True, f"{platform.python_version()} ({platform.machine()})")


def _java() -> str:
    found = java.find()
    return f"Java {found.version} from {found.origin}"


def _mongod() -> str:
    found = mongod.find()
    return f"{found.version} from {found.origin}, all libraries found ({found.path})"


def _external_kafka(bootstrap: str) -> str:
    external.check_kafka(bootstrap)
    return f"answers at {bootstrap}"


def _external_mongo(uri: str) -> str:
    external.check_mongo(uri)
    return f"answers at {external.masked(uri)}"


def _jars() -> Finding:
    name = f"Kafka {jars.KAFKA_VERSION}"
    if jars.present():
        return Finding("jars", True, f"{name} in {jars.folder()}")
    todo = f"the first `labkit up` downloads about {jars.DOWNLOAD_MB} MB and needs the network"
    return Finding("jars", True, f"{name} is not downloaded yet", todo)


def _memory() -> Finding:
    free = limits.free_memory() // 1_000_000
    found = f"{free} MB available"
    if free >= LEAST_MEMORY_MB:
        return Finding("memory", True, found)
    return Finding("memory", False, found, f"close programs until {LEAST_MEMORY_MB} MB are free")


def _disk() -> Finding:
    where = home()
    existing = where
    while not existing.exists():
        existing = existing.parent
    todo = "set LABKIT_HOME to a writable folder on a disk with free space"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("disk", False, f"{where} is not writable", todo)
    free = shutil.disk_usage(existing).free // 1_000_000
    return Finding(
        "disk", free >= native.LEAST_FREE_MB, f"{free} MB free at {where}",
        "" if free >= native.LEAST_FREE_MB else todo,
    )  # fmt: skip


def _ports() -> str:
    chosen: set[int] = set()
    while len(chosen) < 3:
        chosen.add(ports.choose(0, chosen))
    return f"free on {ports.HOST}, for example {', '.join(map(str, sorted(chosen)))}"
