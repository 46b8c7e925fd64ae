"""The price of freshness, and the staleness without it: four strategies side by side, under load.

A *try*: a client sends a command to one of its streams, waits for the answer (the commit is in the
log), reads the stream's document, and checks whether it has the version of the answer. The latency
is that of the read, from call to answer; every read starts at the same point, after the answer to
the write. So ``eventual`` shows the price of a read, and the other strategies add what they wait
for: the projector, and their polls of its checkpoint; ``linearizable`` first asks Kafka for the
ends of the log. A read that times out counts with the time it took.

In every other linearizable try, a *second client* with its own connections writes: the reader has
neither token nor version.

Each client goes through the strategies in rounds, in random order. A try never sleeps, and waits
for nothing but its strategy.

Three strategies promise that no read is stale. Two checks confirm it: each read is compared with
its own write, and checker C10 (``sessions.py``) compares all reads with all writes by their
instants.

``sample`` makes such tries one by one for a notebook: the caller is the only client, and can also
sleep before a read.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
from hdrh.histogram import HdrHistogram
from msgspec import structs

from labkit.errors import TimedOut, UsageError
from labkit.experiments.bench.freshness_client import (
    CLIENTS,
    LOAD_PER_SECOND,
    READ_SECONDS,
    STREAMS,
    FreshnessClient,
    ReadCounts,
    Report,
    Try,
    load,
    run_client,
)
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.sessions import sessions
from labkit.experiments.bench.subject import Subject, about, subject
from labkit.experiments.intervals import quotient
from labkit.experiments.percentiles import RANGE, percentiles
from labkit.experiments.processes import (
    PATIENCE_SECONDS,
    fast_client,
    harness_of,
    hear,
    process,
    settings_of,
)
from labkit.experiments.results import archive, versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.plots.rule_of_three import at_most
from labkit.read.freshness import LINEARIZABLE, STRATEGIES, Strategy
from labkit.service import Service

if TYPE_CHECKING:
    import pandas as pd

    from labkit.experiments.demo import Progress

#: Each client makes at least this number of tries of each strategy.
LEAST_TRIES = 15
#: The share of the reads that may time out.
TIMEOUTS = 0.001


def freshness(
    name: str,
    client: str,
    tries: int,
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
    service: str | Service | None = None,
) -> dict[str, Any]:
    """Run the bench with ``tries`` tries of each strategy.

    Raises ``UsageError`` for a service that cannot be measured.
    """
    measured = subject("freshness", service)
    _ = measured.first_view
    clients = max(1, min(CLIENTS, tries // LEAST_TRIES))
    settings = {
        "clients": clients,
        "accounts_of_each": STREAMS,
        "load_per_second": LOAD_PER_SECOND,
        "read_timeout_s": READ_SECONDS,
        "partitions": 4,
        **about(measured),
    }
    with (
        measuring(name, report, "freshness", client=client, seed=seed, settings=settings) as found,
        scratch_run(name, client=client, services=[measured.service], partitions=4) as lab,
    ):
        lab.start()
        report(f"run {lab.run}: {tries:,} tries of each strategy by {clients} clients")
        found["versions"] = versions(lab.server_versions(), lab.settings.client, fast_client())
        began = time.monotonic()
        reports, written = _run(lab, measured, clients, tries, seed, progress)
        seconds = time.monotonic() - began
        found["seconds"] = round(seconds, 1)
        found["ignored_commits"] = lab.ignored_commits()
    found |= judge(reports, tries)
    found["load"] = {"sent": written, "per_second": round(quotient(written, seconds), 1)}
    found["ok"] = found["ok"] and not found["ignored_commits"] and written > 0
    found["folder"] = str(archive("bench-freshness", found))
    return found


def sample(lab: Lab, tries: int, seed: int, pauses_ms: Sequence[int] = ()) -> pd.DataFrame:
    """Tries by this process, under the load of the bench: a table with one row for each.

    ``tries`` of each strategy, and as many of ``eventual`` after each pause. The columns are the
    fields of ``Try``. The workers of ``lab`` must run; its first service is measured. Raises
    ``UsageError`` for a lab in memory, which has no other processes.
    """
    import pandas as pd

    if lab.backend == "memory":
        raise UsageError("how stale reads are is measured between processes, got backend 'memory'")
    measured = subject("freshness", lab.of.service(lab.first))
    rng = Random(f"{seed} sample")
    ways: list[tuple[Strategy, int]] = [(strategy, 0) for strategy in STRATEGIES]
    ways += [("eventual", pause) for pause in pauses_ms]
    rows = []
    with (
        process(load, harness_of(lab), measured.chosen, seed) as loading,
        Lab(**settings_of(lab), start=False) as second,
    ):
        hear(lab, loading)
        client = FreshnessClient(0, lab, second, measured.chosen, seed)
        lab.ask(measured.document("none"), fresh=LINEARIZABLE)  # the first such read opens a reader
        for round in range(tries):
            for strategy, pause in rng.sample(ways, len(ways)):
                of_another = strategy == "linearizable" and round % 2 == 1
                done = client.attempt(strategy, of_another=of_another, pause_ms=pause)
                rows.append(structs.asdict(done))
        loading.send_bytes(b"stop")
        hear(lab, loading)
    return pd.DataFrame(rows, columns=Try.__struct_fields__)


def judge(reports: list[Report], tries: int) -> dict[str, Any]:
    """The figures of the strategies, the verdict of C10, and whether the promises were kept."""
    strategies = {s: _together([r.tallies[s] for r in reports]) for s in STRATEGIES}
    c10 = sessions([x for r in reports for x in r.reads], [x for r in reports for x in r.writes])
    kept = all(
        found["tries"] == tries
        and (s == "eventual" or found["stale"] == 0)
        and found["timeouts"] <= tries * TIMEOUTS
        for s, found in strategies.items()
    )
    return {
        "ok": kept and c10.ok,
        "strategies": strategies,
        "checkers": {"C10": msgspec.to_builtins(c10)},
    }


def _together(tallies: list[ReadCounts]) -> dict[str, Any]:
    """Merge tallies by their histograms; percentiles cannot be merged."""
    times = HdrHistogram(*RANGE)
    for tally in tallies:
        times.decode_and_add(base64.b64decode(tally.times))
    tries, stale = sum(tally.tries for tally in tallies), sum(tally.stale for tally in tallies)
    return {
        "tries": tries,
        "stale": stale,
        "stale_at_most": at_most(stale, tries),
        "timeouts": sum(tally.timeouts for tally in tallies),
        "by_others": sum(tally.by_others for tally in tallies),
        **percentiles(times),
    }


# --- the processes


def _run(
    lab: Lab, measured: Subject, count: int, tries: int, seed: int, progress: Progress
) -> tuple[list[Report], int]:
    """Run the load and the clients: the final reports, and the number of commands by the load."""
    settings = settings_of(lab)
    shares = [tries // count + (number < tries % count) for number in range(count)]
    chosen = measured.chosen
    with process(load, harness_of(lab), chosen, seed) as loading:
        hear(lab, loading)
        with ExitStack() as opened:
            clients = [
                opened.enter_context(process(run_client, settings, chosen, seed, number, share))
                for number, share in enumerate(shares)
            ]
            reports = _gather(lab, clients, tries, progress)
        with suppress(BrokenPipeError):  # it died; the next line reports it
            loading.send_bytes(b"stop")
        return reports, int(hear(lab, loading))


def _gather(lab: Lab, clients: list[Connection], tries: int, progress: Progress) -> list[Report]:
    reports = {client: Report(0) for client in clients}
    waiting = set(clients)
    while waiting:
        ready = wait(list(waiting), PATIENCE_SECONDS)
        if not ready:
            raise TimedOut(
                f"no client said anything for {PATIENCE_SECONDS:g} s; see {lab.of.logs()}"
            )
        for client in ready:
            assert isinstance(client, Connection)
            reports[client] = msgspec.json.decode(hear(lab, client), type=Report)
            if reports[client].tallies:
                waiting.discard(client)
        done = sum(found.done for found in reports.values())
        progress("tries", done, tries * len(STRATEGIES))
    return [reports[client] for client in clients]
