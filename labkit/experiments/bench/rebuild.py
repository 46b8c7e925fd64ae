"""The price of a rebuild, and whether readers notice it: a view is rebuilt under writes and reads.

The log holds one event for each document: opened accounts. Throughout, one process opens 200 more
accounts per second, and another one reads existing accounts one after the other. Such a *probe*
succeeds if it is answered at once with the right document. Each round rebuilds the view, switches
to it and drops the old one; the first round does not count.

The *bare loop* is the upper bound: it polls the same topic with the same client, decodes with
msgspec, and inserts the same documents in batches of the same size, with the same write concern,
into an empty collection, without transactions, checkpoints, epochs or reads. It alternates with the
rebuilds, under the same writes and probes. Both are timed from their first poll to the end of the
log.

At the end C9 compares the view with its own computation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from labkit.adapters.mongo import connect
from labkit.errors import LabkitError
from labkit.experiments.bench.filling import fill
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.demo import Progress
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process, settings_of, steadily
from labkit.experiments.results import versions
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.checkers import check, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.write import adopt_commands
from labkit.lab import Lab
from labkit.read.freshness import LINEARIZABLE, Fresh
from labkit.read.projection import ServiceProjection
from labkit.read.rebuild import CLOSE
from labkit.run.worker import calm_gc
from labkit.services.bank import BANK, AccountById, Accounts, Balances, OpenAccount

CONTEXT = "bank"
VIEW = BANK.view
WRITES_PER_SECOND = 200
PROBES_PER_SECOND = 250
#: The batch size of the projector.
BATCH = 4_000
#: The remaining time is estimated after this share of the log, and compared with the real one.
ESTIMATE_AT = 0.25


class Probed(Struct):
    """The results of the probes; ``trouble`` holds the first failures."""

    probes: int = 0
    available: int = 0
    slowest_ms: float = 0.0
    trouble: list[str] = msgspec.field(default_factory=list)


class Built(Struct):
    """One rebuild: commits and seconds to the end of the log, estimated and real remaining time."""

    events: int
    seconds: float
    switch_ms: float
    estimated: float | None
    took: float


def rebuild(
    name: str,
    client: str,
    sizes: tuple[int, int, int],
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Run the bench. ``sizes``: events, rounds that count, and the least number of probes."""
    events, rounds, probes = sizes
    calm_gc()
    settings = {
        "rounds": rounds,
        "writes_per_second": WRITES_PER_SECOND,
        "probes_per_second": PROBES_PER_SECOND,
        "batch_size": BATCH,
        "partitions": 4,
    }
    about = {"client": client, "events": events, "settings": settings}
    with (
        measuring(name, report, "rebuild", **about) as found,
        scratch_run(name, client=client, services=[CONTEXT]) as lab,
    ):
        found["versions"] = versions(lab.server_versions(), lab.settings.client)
        report(f"run {lab.run}: {events:,} accounts")
        found |= _measure(lab, events, rounds, probes, progress)
        found["checkers"] = {"C9": _c9(lab)}
        found["ignored_commits"] = lab.ignored_commits()
    found["ok"] = (
        found["availability"] == 1.0
        and found["checkers"]["C9"]["ok"]
        and not found["ignored_commits"]
    )
    return found


def _measure(lab: Lab, events: int, rounds: int, probes: int, progress: Progress) -> dict[str, Any]:
    commands = (OpenAccount(f"a{n}", "ann") for n in range(events))
    fill(BANK, lab, commands, events, lambda done: progress("events", done, events))
    lab.start()
    _caught_up(lab)
    settings = settings_of(lab)
    built: list[Built] = []
    bare: list[float] = []
    with process(_write, settings) as writer, process(_probe, settings, events) as prober:
        hear(lab, writer)
        hear(lab, prober)
        began = time.monotonic()
        for number in range(rounds + 1):
            arms: list[Callable[[], None]] = [
                lambda n=number: bare.append(_bare(lab, n)),  # type: ignore[misc]
                lambda: built.append(_rebuild(lab)),
            ]
            for arm in arms if number % 2 else reversed(arms):
                arm()
            progress("rounds", number + 1, rounds + 1)
        prober.send_bytes(str(probes).encode())
        probed = msgspec.json.decode(hear(lab, prober), type=Probed)
        seconds = time.monotonic() - began
        writer.send_bytes(b"stop")
        written = int(hear(lab, writer))
    rebuilt = [one.events / one.seconds for one in built[1:]]
    return {
        "ratio_to_bare": round(statistics.median(rebuilt) / statistics.median(bare[1:]), 3),
        "events_per_second": {
            "rebuild": [round(speed) for speed in rebuilt],
            "bare": [round(speed) for speed in bare[1:]],
        },
        "availability": probed.available / probed.probes,
        "probes": probed.probes,
        "slowest_probe_ms": round(probed.slowest_ms, 1),
        "trouble": probed.trouble,
        "switch_ms": [round(one.switch_ms, 1) for one in built],
        "estimates": [
            {"estimated_s": one.estimated and round(one.estimated, 1), "took_s": round(one.took, 1)}
            for one in built
        ],
        "writes": {"sent": written, "per_second": round(written / seconds, 1)},
    }


def _caught_up(lab: Lab) -> None:
    while lab.lag("projector", CONTEXT):
        lab.check()
        time.sleep(0.1)


# --- the two arms


def _rebuild(lab: Lab) -> Built:
    """Rebuild, switch and drop the old view; the time is that to the end of the log."""
    rebuilding = lab.rebuild(VIEW)
    estimated, noted = None, 0.0
    try:
        began = time.monotonic()
        while (at := rebuilding.step()).total - at.done > CLOSE:
            if estimated is None and at.done >= at.total * ESTIMATE_AT:
                estimated, noted = at.remaining, time.monotonic()
        ended = time.monotonic()
        rebuilding.switch()
        switched = time.monotonic()
        rebuilding.serve()
        rebuilding.drop_old()
    finally:
        rebuilding.close()
    return Built(
        at.applied, ended - began, (switched - ended) * 1e3, estimated, ended - (noted or began)
    )


def _bare(lab: Lab, number: int) -> float:
    """Events per second of the bare loop."""
    collection = f"bare.{number}"
    for keys in ServiceProjection(BANK).indexes[BANK.collection(Accounts)] or [[("_id", 1)]]:
        lab.store.index(collection, keys)
    assert lab.servers is not None
    mongo, db = connect(lab.servers.mongo_uri, f"{lab.name}_{lab.run}")
    source = lab.broker.source(lab.topic_name(f"{CONTEXT}.events"))
    decode = BANK.codec.decode_commit
    count = 0
    try:
        at = dict.fromkeys(source.ends(), 0)
        for partition in at:
            source.start(partition, 0)
        began = time.monotonic()
        while sum(source.ends().values()) - sum(at.values()) > CLOSE:
            batch = source.poll(BATCH, 0.1)
            documents = []
            for record in batch.records:
                commit = decode(record.value)
                for event in commit.events:
                    account = {"_id": commit.stream, "version": commit.last, "owner": event.owner}
                    documents.append(account | {"balance": 0, "open": 0})
            if documents:
                db[collection].insert_many(documents, ordered=False)
            count += len(documents)
            at.update(batch.positions)
        seconds = time.monotonic() - began
    finally:
        source.close()
        lab.store.discard([collection])
        mongo.close()
    return count / seconds


# --- the load processes


def _write(pipe: Connection, settings: dict[str, Any]) -> None:
    """Open accounts at a steady rate until told to stop; then report their number."""
    with Lab(**settings, start=False) as lab:
        calm_gc()
        lab.bus.send(OpenAccount("w", "bob")).token(PATIENCE_SECONDS)
        pipe.send_bytes(b"ready")
        sent = steadily(
            pipe, WRITES_PER_SECOND, lambda n: lab.bus.send(OpenAccount(f"w{n}", "bob"))
        )
        lab.bus.flush(PATIENCE_SECONDS)
        pipe.send_bytes(str(sent).encode())


def _probe(pipe: Connection, settings: dict[str, Any], events: int) -> None:
    """Probe until told the least number of probes, and until that number is done."""
    rng, found, least = Random(1), Probed(), None
    with Lab(**settings, start=False) as lab:
        calm_gc()
        pipe.send_bytes(b"ready")
        started = time.monotonic()
        while least is None or found.probes < least:
            due = started + found.probes / PROBES_PER_SECOND - time.monotonic()
            if pipe.poll(max(0.0, due)):
                least = int(pipe.recv_bytes())
                continue
            account = f"a{rng.randrange(events)}"
            began = time.monotonic()
            try:
                shown = lab.ask(AccountById(account), fresh=Fresh())
                why = "" if shown and shown["_id"] == account else f"{account!r}: {shown}"
            except LabkitError as error:
                why = f"{account!r}: {error}"
            found.probes += 1
            found.available += not why
            found.slowest_ms = max(found.slowest_ms, (time.monotonic() - began) * 1e3)
            if why and len(found.trouble) < 10:
                found.trouble.append(why)
        pipe.send_bytes(msgspec.json.encode(found))
        pipe.poll(PATIENCE_SECONDS)  # keep the pipe open until the parent has read the report


# --- afterwards


def _c9(lab: Lab) -> dict[str, Any]:
    """The verdict of C9, after the view has caught up; the replies are read from the log."""
    lab.ask(Balances(limit=1), fresh=Fresh(LINEARIZABLE.strategy, timeout=PATIENCE_SECONDS))
    history = History()
    adopt_commands(lab, history, [CONTEXT])
    evidence = gather(lab, CONTEXT)
    history.read(CONTEXT, evidence.commits)
    verdict: dict[str, Any] = msgspec.to_builtins(check(evidence, history)["C9"])
    return verdict
