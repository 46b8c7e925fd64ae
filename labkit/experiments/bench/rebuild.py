"""What a rebuild costs, and whether it is noticed: a view is built anew under writes and reads.

The log holds one event a document: accounts that were opened. Beside it, throughout, a process
opens 200 more a second, and another one asks for accounts that are there, one after the other; a
*probe* is available where it is answered at once with the right document. The view is rebuilt,
switched, and the old one dropped, once a round; after a round that does not count.

The *bare loop* is what there is to be won: it polls the same topic with the same client, decodes
with msgspec, and inserts the same documents in batches of the same size, with the same write
concern, into an empty collection; without a transaction, a checkpoint, an epoch or a look at what
is there. It takes turns with the rebuilds, under the same writes and probes. Both are timed from
their first poll until they are at the end of the log.

At the end C9 compares the view with an account of its own.
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

from labkit import stack
from labkit.adapters.mongo import connect
from labkit.errors import LabkitError
from labkit.experiments.bench.filling import NEVER, filling
from labkit.experiments.demo import Progress
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process, settings_of, steadily
from labkit.experiments.results import load_average, machine, versions
from labkit.experiments.verify.checkers import check, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.write import adopt_commands
from labkit.lab import Lab
from labkit.read.freshness import LINEARIZABLE, Fresh
from labkit.read.rebuild import CLOSE
from labkit.run.worker import calm_gc
from labkit.services.bank import AccountById, Balances, OpenAccount
from labkit.services.services import CONTEXTS
from labkit.services.views import PROJECTIONS, BankViews

CONTEXT = "bank"
BANK = CONTEXTS[CONTEXT]
VIEW = BankViews.name
WRITES_PER_SECOND = 200
PROBES_PER_SECOND = 250
#: As the projector takes them.
BATCH = 4_000
#: An estimate is noted when this share of the log is read, and compared with what came.
ESTIMATE_AT = 0.25


class Probed(Struct):
    """What the probes saw; ``trouble`` are the first reasons."""

    probes: int = 0
    available: int = 0
    slowest_ms: float = 0.0
    trouble: list[str] = msgspec.field(default_factory=list)


class Built(Struct):
    """One rebuild: commits and seconds until it was at the end, the estimate, and what came."""

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
    """On real servers; the result is the JSON.

    ``sizes``: so many events, so many rounds that count, and at least so many probes.

    Starts servers that are not up, and stops what it started. Raises ``StackError`` and
    ``TimedOut`` where they, or a process beside, fail.
    """
    events, rounds, probes = sizes
    calm_gc()
    with stack.borrowed(name, report) as servers:
        found: dict[str, Any] = {
            "bench": "rebuild",
            "client": client,
            "events": events,
            "settings": {
                "rounds": rounds,
                "writes_per_second": WRITES_PER_SECOND,
                "probes_per_second": PROBES_PER_SECOND,
                "batch_size": BATCH,
                "partitions": 4,
            },
            "machine": machine(),
            "load_average_before": load_average(),
            "stack": servers.kind,
        }
        with Lab(name, client=client, services=[CONTEXT]) as lab:
            try:
                found["versions"] = versions(lab.server_versions(), lab.settings.client)
                report(f"run {lab.run}: {events:,} accounts")
                found |= _measure(lab, events, rounds, probes, progress)
                found["checkers"] = {"C9": _c9(lab)}
                found["ignored_commits"] = lab.ignored_commits()
            finally:
                lab.drop()
        found["load_average_after"] = load_average()
    found["ok"] = (
        found["availability"] == 1.0
        and found["checkers"]["C9"]["ok"]
        and not found["ignored_commits"]
    )
    return found


def _measure(lab: Lab, events: int, rounds: int, probes: int, progress: Progress) -> dict[str, Any]:
    with filling(BANK, lab) as handle:
        commands = (OpenAccount(f"a{n}", "ann") for n in range(events))
        handle(commands, events, lambda done: progress("events", done, events), NEVER)
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
    """All of it; timed is the way to the end of the log."""
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
    """Events a second of the loop that promises nothing."""
    collection = f"bare.{number}"
    for keys in PROJECTIONS[CONTEXT].indexes[BankViews.accounts] or [[("_id", 1)]]:
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


# --- the processes beside


def _write(pipe: Connection, settings: dict[str, Any]) -> None:
    """Opens accounts at a steady rate until it is told to stop; then it says how many."""
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
    """Asks until it is told how many it must be, and these are done."""
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
        pipe.poll(PATIENCE_SECONDS)  # until the parent has read it all


# --- afterwards


def _c9(lab: Lab) -> dict[str, Any]:
    """Once the view shows all that was written; the replies are those of the log."""
    lab.ask(Balances(limit=1), fresh=Fresh(LINEARIZABLE.strategy, timeout=PATIENCE_SECONDS))
    history = History()
    adopt_commands(lab, history, [CONTEXT])
    evidence = gather(lab, CONTEXT)
    history.read(CONTEXT, evidence.commits)
    verdict: dict[str, Any] = msgspec.to_builtins(check(evidence, history)["C9"])
    return verdict
