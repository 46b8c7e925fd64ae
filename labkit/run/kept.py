"""The runs that a lab keeps, from outside: what is theirs on the servers, and who owns each.

A run outlives its lab, so that others can join it. Nobody owns it then, and it is kept until it is
dropped. Topics and collections hold files open, so that servers with very many runs run out of
them.
"""

from __future__ import annotations

import re
import shutil
from contextlib import closing

from msgspec import Struct

from labkit import stack
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.adapters.mongo import MongoStore
from labkit.adapters.mongo_databases import databases
from labkit.errors import UsageError
from labkit.ports.clock import SYSTEM
from labkit.run.registry import live_runs, runs_folder
from labkit.run.run import COLLECTION, SETTINGS_ID


class Kept(Struct, frozen=True):
    """One run; ``age_s`` is unknown of a run that was never complete, or made by an older labkit.

    ``owners`` are processes (``pid 12``) that use it, or ``its groups``: these have live members
    somewhere.
    """

    run: str
    age_s: float | None
    topics: list[str]
    partitions: int
    groups: list[str]
    bytes: int
    owners: list[str]


def live(lab: str) -> dict[str, list[str]]:
    """The runs that a live process of this machine uses, with these processes."""
    found: dict[str, list[str]] = {}
    used = [(lease.run, lease.pid) for lease in stack.users(lab) if lease.run]
    used += [(run, worker.pid) for run, workers in live_runs(lab).items() for worker in workers]
    for run, pid in used:
        owners = found.setdefault(run, [])
        if (owner := f"pid {pid}") not in owners:
            owners.append(owner)
    return found


def kept(lab: str, servers: stack.Servers) -> list[Kept]:
    """All runs, the oldest first."""
    stores = databases(servers.mongo_uri, f"{lab}_", COLLECTION, SETTINGS_ID)
    with closing(KafkaPythonBroker(servers.bootstrap)) as broker:
        sizes, groups = broker.sizes(), broker.groups()
    topics = {name: run for name in sizes if (run := _run_of(name, lab))}
    members = {name: run for name in groups if (run := _run_of(name, lab))}
    owners, now = live(lab), SYSTEM.wall()
    found = []
    for run in {*topics.values(), *(run for name in stores if (run := _run_of(name, lab, "_")))}:
        bytes, settings = stores.get(f"{lab}_{run}", (0, {}))
        made = settings.get("made")
        own = [topic for topic, of in topics.items() if of == run]
        its_groups = sorted(group for group, of in members.items() if of == run)
        joined = ["its groups"] if any(groups[group] for group in its_groups) else []
        found.append(
            Kept(
                run=run,
                age_s=max(0, now - made) / 1e3 if made else None,
                topics=sorted(own),
                partitions=sum(sizes[topic] for topic in own),
                groups=its_groups,
                bytes=bytes,
                owners=owners.get(run) or joined,
            )
        )
    return sorted(found, key=lambda k: (-(k.age_s or 0.0), k.run))


def drop(lab: str, servers: stack.Servers, runs: list[Kept]) -> None:
    """Delete topics, groups and database of runs; raises ``UsageError`` where one has an owner."""
    for one in runs:
        if one.owners:
            raise UsageError(
                f"run {one.run} of lab {lab!r} is in use by {', '.join(one.owners)}: close it there"
            )
    with closing(KafkaPythonBroker(servers.bootstrap)) as broker:
        broker.drop(topic for one in runs for topic in one.topics)
        broker.drop_groups(group for one in runs for group in one.groups)
    for one in runs:
        with closing(MongoStore(servers.mongo_uri, f"{lab}_{one.run}")) as store:
            store.drop()
        for left in runs_folder(lab).glob(f"{one.run}.*"):  # of a supervisor or pipeline that died
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _run_of(name: str, lab: str, mark: str = ".") -> str:
    """Whose topic, group or database this is ("": of no run); Quix keeps states in topics, too."""
    start = re.escape(lab + mark)
    match = re.match(rf"(?:changelog__)?{start}(r[0-9a-z]{{7}})(?:\.|$)", name)
    return match[1] if match else ""
