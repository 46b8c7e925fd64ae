"""Check that this machine has what a lab needs, and say how to fix what is missing."""

import os
import platform
import shutil
from collections.abc import Callable
from typing import Literal

import msgspec

from labkit.errors import LabkitError
from labkit.stack import compose, external, jars, java, limits, mongod, native, ports
from labkit.stack.state import home

# Kafka's heap and mongod's cache take at least 1 GB; the rest is for workers and a notebook.
LEAST_MEMORY_MB = 1500


#: ``ok``: it was looked at, and is as a lab needs it. A lab can run without what is ``not needed``,
#: gets ``later`` by itself, and cannot run without what is ``missing``.
Verdict = Literal["ok", "not needed", "later", "missing"]


class Finding(msgspec.Struct, frozen=True):
    """The result of one check, and what to do about a problem."""

    what: str
    verdict: Verdict
    found: str
    todo: str = ""


def doctor() -> list[Finding]:
    """Run all checks. They start, download and change nothing."""
    findings = [_python()]
    try:
        addresses = external.addresses()
    except LabkitError as error:
        addresses = None
        findings.append(Finding("addresses", "missing", "unusable", str(error)))
    if addresses is not None:
        findings.append(_tried("Kafka", True, lambda: _external_kafka(addresses[0])))
        findings.append(_tried("MongoDB", True, lambda: _external_mongo(addresses[1])))
    # With external servers, the native ones are not needed.
    needed = addresses is None
    findings += [
        _tried("Java", needed, _java),
        _jars(needed),
        _tried("mongod", needed, _mongod),
        _tried("Docker engine", False, compose.engine),
        _memory(needed),
        _disk(),
        _tried("ports", needed, _ports),
    ]
    return findings


def _tried(what: str, needed: bool, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except LabkitError as error:
        found, _, todo = str(error).partition(": ")
        return Finding(what, "missing" if needed else "not needed", found, todo)


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} ({platform.machine()})")


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


def _jars(needed: bool) -> Finding:
    name = f"Kafka {jars.KAFKA_VERSION}"
    if jars.present():
        return Finding("jars", "ok", f"{name} in {jars.folder()}")
    todo = f"the first `labkit up` downloads about {jars.DOWNLOAD_MB} MB and needs the network"
    found = f"{name} is not downloaded yet"
    return Finding("jars", "later" if needed else "not needed", found, todo if needed else "")


def _memory(needed: bool) -> Finding:
    free = limits.free_memory() // 1_000_000
    found = f"{free} MB available"
    if free >= LEAST_MEMORY_MB:
        return Finding("memory", "ok", found)
    todo = f"close programs until {LEAST_MEMORY_MB} MB are free"
    return Finding("memory", "missing" if needed else "not needed", found, todo)


def _disk() -> Finding:
    where = home()
    existing = where
    while not existing.exists():
        existing = existing.parent
    todo = "set LABKIT_HOME to a writable folder on a disk with free space"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("disk", "missing", f"{where} is not writable", todo)
    free = shutil.disk_usage(existing).free // 1_000_000
    found = f"{free} MB free at {where}"
    if free >= native.LEAST_FREE_MB:
        return Finding("disk", "ok", found)
    return Finding("disk", "missing", found, todo)


def _ports() -> str:
    chosen: set[int] = set()
    while len(chosen) < 3:
        chosen.add(ports.choose(0, chosen))
    return f"free on {ports.HOST}, for example {', '.join(map(str, sorted(chosen)))}"
