"""The price of a rebuild, and whether readers notice it: a view is rebuilt under writes and reads.

The log holds ``events`` commits of the workload; the built-in one makes one event for each
document. Throughout, one process sends the next 200 commands per second, and another one reads
existing documents one after the other. Such a *probe* succeeds if it is answered at once with the
right document. Each round rebuilds the view, switches to it and drops the old one; the first round
does not count.

The *bare loop* is the upper bound (``bare_inserts.py``). It alternates with the rebuilds, under the
same writes and probes. Both are timed from their first poll to the end of the log.

At the end the checkers judge; C9 compares the views with its own computation, if the service has a
reference model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import LabkitError
from labkit.experiments.bench.bare_inserts import BATCH, bare_inserts
from labkit.experiments.bench.decided import DecidedStreams, Taken
from labkit.experiments.bench.filling import fill
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.subject import Chosen, Subject, about, subject
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import quotient, too_short
from labkit.experiments.processes import (
    PATIENCE_SECONDS,
    fast_client,
    harness_of,
    hear,
    process,
    steadily,
)
from labkit.experiments.results import archive, versions
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.checkers import check, gather
from labkit.experiments.verify.evidence import adopt_commands
from labkit.experiments.verify.history import History
from labkit.experiments.verify.verdict import Verdict, red, to_report
from labkit.lab import Lab
from labkit.plots.rule_of_three import at_most
from labkit.read.freshness import LINEARIZABLE, Fresh
from labkit.read.rebuild import CLOSE
from labkit.read.standard import All
from labkit.run.worker import calm_gc
from labkit.service import Service

#: Of the workload; the bench has no option for it.
SEED = 1
WRITES_PER_SECOND = 200
PROBES_PER_SECOND = 250
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
    service: str | Service | None = None,
) -> dict[str, Any]:
    """Run the bench. ``sizes``: events, rounds that count, and the least number of probes.

    Raises ``UsageError`` for a service that cannot be measured.
    """
    measured = subject("rebuild", service)
    _ = measured.first_view
    events, rounds, probes = sizes
    calm_gc()
    settings = {
        "rounds": rounds,
        "writes_per_second": WRITES_PER_SECOND,
        "probes_per_second": PROBES_PER_SECOND,
        "batch_size": BATCH,
        "partitions": 4,
        **about(measured),
    }
    more = {"client": client, "seed": SEED, "events": events, "settings": settings}
    with (
        measuring(name, report, "rebuild", **more) as found,
        scratch_run(name, client=client, services=[measured.service]) as lab,
    ):
        found["versions"] = versions(lab.server_versions(), lab.settings.client, fast_client())
        report(f"run {lab.run}: {events:,} commits of service {measured.name!r}")
        found |= _measure(lab, measured, events, rounds, probes, progress)
        verdicts = _judged(lab, measured)
        found["checkers"] = to_report(verdicts)
        found["ignored_commits"] = lab.ignored_commits()
    found["ok"] = (
        found["availability"] == 1.0 and not red(verdicts) and not found["ignored_commits"]
    )
    found["folder"] = str(archive("bench-rebuild", found))
    return found


def _measure(
    lab: Lab, measured: Subject, events: int, rounds: int, probes: int, progress: Progress
) -> dict[str, Any]:
    commands = (taken.command for taken in _taken(measured))
    fill(measured.service, lab, commands, events, lambda done: progress("events", done, events))
    lab.start()
    _caught_up(lab)
    more = harness_of(lab), measured.chosen, events
    built: list[Built] = []
    bare: list[float] = []
    with process(_write, *more) as writer, process(_probe, *more) as prober:
        hear(lab, writer)
        hear(lab, prober)
        began = time.monotonic()
        for number in range(rounds + 1):
            arms: list[Callable[[], None]] = [
                lambda n=number: bare.append(bare_inserts(lab, measured, n)),  # type: ignore[misc]
                lambda: built.append(_rebuild(lab, measured.service.view)),
            ]
            for arm in arms if number % 2 else reversed(arms):
                arm()
            progress("rounds", number + 1, rounds + 1)
        prober.send_bytes(str(probes).encode())
        probed = msgspec.json.decode(hear(lab, prober), type=Probed)
        seconds = time.monotonic() - began
        writer.send_bytes(b"stop")
        written = int(hear(lab, writer))
    rebuilt = [quotient(one.events, one.seconds) for one in built[1:]]
    return {
        "ratio_to_bare": round(
            quotient(statistics.median(rebuilt), statistics.median(bare[1:])), 3
        ),
        "events_per_second": {
            "rebuild": [round(speed, 1) for speed in rebuilt],
            "bare": [round(speed, 1) for speed in bare[1:]],
        },
        "too_short": too_short(min(one.seconds for one in built[1:])),
        "availability": probed.available / probed.probes,
        "probes": probed.probes,
        "unanswered_at_most": at_most(probed.probes - probed.available, probed.probes),
        "slowest_probe_ms": round(probed.slowest_ms, 1),
        "trouble": probed.trouble,
        "switch_ms": [round(one.switch_ms, 1) for one in built],
        "estimates": [
            {"estimated_s": one.estimated and round(one.estimated, 1), "took_s": round(one.took, 1)}
            for one in built
        ],
        "writes": {"sent": written, "per_second": round(quotient(written, seconds), 1)},
    }


def _taken(measured: Subject) -> Iterator[Taken]:
    """The workload: commands that the rules accept."""
    return DecidedStreams(measured.service).taken(measured.all(SEED))


def _caught_up(lab: Lab) -> None:
    while lab.lag("projector", lab.first):
        lab.check()
        time.sleep(0.1)


def _rebuild(lab: Lab, view: str) -> Built:
    """Rebuild, switch and drop the old view; the time is that to the end of the log."""
    rebuilding = lab.rebuild(view)
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


# --- the load processes


def _write(pipe: Connection, settings: dict[str, Any], chosen: Chosen, events: int) -> None:
    """Send the commands after ``events`` at a steady rate until told to stop; then report how many.

    They continue the streams, so their ids are new.
    """
    with Lab(**settings, start=False) as lab:
        calm_gc()
        taken = islice(_taken(chosen.of(lab)), events, None)
        lab.bus.send(next(taken).command).token(PATIENCE_SECONDS)
        pipe.send_bytes(b"ready")
        sent = steadily(pipe, WRITES_PER_SECOND, lambda _: lab.bus.send(next(taken).command))
        lab.bus.flush(PATIENCE_SECONDS)
        pipe.send_bytes(str(sent).encode())


def _probe(pipe: Connection, settings: dict[str, Any], chosen: Chosen, events: int) -> None:
    """Probe until told the least number of probes, and until that number is done."""
    rng, found, least = Random(1), Probed(), None
    with Lab(**settings, start=False) as lab:
        calm_gc()
        measured = chosen.of(lab)
        streams = list(dict.fromkeys(taken.stream for taken in islice(_taken(measured), events)))
        pipe.send_bytes(b"ready")
        started = time.monotonic()
        while least is None or found.probes < least:
            due = started + found.probes / PROBES_PER_SECOND - time.monotonic()
            if pipe.poll(max(0.0, due)):
                least = int(pipe.recv_bytes())
                continue
            stream = rng.choice(streams)
            began = time.monotonic()
            try:
                shown = lab.ask(measured.document(stream), fresh=Fresh())
                why = "" if shown and shown["_id"] == stream else f"{stream!r}: {shown}"
            except LabkitError as error:
                why = f"{stream!r}: {error}"
            found.probes += 1
            found.available += not why
            found.slowest_ms = max(found.slowest_ms, (time.monotonic() - began) * 1e3)
            if why and len(found.trouble) < 10:
                found.trouble.append(why)
        pipe.send_bytes(msgspec.json.encode(found))
        pipe.poll(PATIENCE_SECONDS)  # keep the pipe open until the parent has read the report


# --- afterwards


def _judged(lab: Lab, measured: Subject) -> dict[str, Verdict]:
    """The verdicts, after the view has caught up; the replies are read from the log."""
    caught_up = Fresh(LINEARIZABLE.strategy, timeout=PATIENCE_SECONDS)
    lab.ask(All(measured.shown, limit=1), fresh=caught_up)
    history = History()
    adopt_commands(lab, history)
    evidence = gather(lab, measured.name)
    history.read(measured.name, evidence.commits)
    return check(evidence, history)
