"""Latency of one command at a time, to its answer and to its visibility, compared with a bare loop.

A closed loop with one command in flight: the next is sent when the view shows the one before it. So
the latency includes no queueing and no contention; ``load/offer.py`` measures it under load.

=======  ======================================================================
reply    from the call of ``bus.send`` until the bus has read the answer
visible  from that call until a query with the command's token returns the stream's document
bare     a new order by a bare consume-transform-produce transaction with the same client
         (``bare_transaction.py``), from its encoding until its event was read
=======  ======================================================================

labkit's handler and projector are real workers, and the bare loop is a process too; both sides have
their own topics with the same number of partitions. A round has a block of each kind, in random
order. The first ``WARM_UP`` commands of a block do not count, nor do the first ``WARM_ROUNDS``
rounds, in which the broker's JVM still compiles. ``reply_ratio`` and ``visible_ratio`` are medians
over all rounds, divided by the bare median; the ratios within the rounds give the interval.

The trace in the view splits the latency of labkit's commands into stages. The bare loop is about
orders, whatever service is measured; the commands are those of a workload that the rules accept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from hdrh.histogram import HdrHistogram

from labkit.experiments.bench.bare_transaction import SIDES, Requester
from labkit.experiments.bench.decided import DecidedStreams, Taken
from labkit.experiments.bench.job import Job, commands, play
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.subject import Subject, about, subject
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import NO_INTERVAL, interval_if_any, quotient
from labkit.experiments.percentiles import RANGE, percentiles
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process
from labkit.experiments.results import archive, versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.messages import Command, Document, Envelope, Token, encode
from labkit.ports.ids import new_id
from labkit.read.freshness import Fresh
from labkit.run.settings import DEFAULTS
from labkit.run.worker import calm_gc
from labkit.service import Service

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("reply", "visible", "bare")
#: Commands at the start of each block: idle clients must first fetch what they have missed.
WARM_UP = 5
#: During the first 1,500 transactions or so the broker's JIT compiler takes a core.
WARM_ROUNDS = 3
TARGETS = {"reply": 1.5, "visible": 2.5}
#: The stages of a command, in their order.
STAGES = ("acked", "polled", "decided", "fetched", "applied")


def latency(
    name: str,
    client: str,
    sizes: tuple[int, int],
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
    service: str | Service | None = None,
) -> dict[str, Any]:
    """Run the bench and archive its result. ``sizes``: rounds, and commands of a block.

    Raises ``UsageError`` for a service that cannot be measured.
    """
    measured = subject("latency", service)
    _ = measured.first_view
    rounds, count = sizes
    settings = {
        "rounds": rounds,
        "commands": count,
        "warm_up": WARM_UP,
        "warm_rounds": WARM_ROUNDS,
        "partitions": DEFAULTS.partitions,
        **about(measured),
    }
    with (
        measuring(name, report, "latency", client=client, seed=seed, settings=settings) as found,
        scratch_run(name, client=client, services=[measured.service], start=False) as lab,
    ):
        found["versions"] = versions(lab.server_versions(), client)
        report(f"run {lab.run}: {rounds} rounds of {count} commands of each kind")
        samples = _run(lab, measured, rounds, count, seed, progress)
        found["ignored_commits"] = lab.ignored_commits()
    found |= summary(samples)
    found["ok"] = found["ok"] and not found["ignored_commits"]
    found["folder"] = str(archive("bench-latency", found, {"samples": samples}))
    return found


def _run(
    lab: Lab, measured: Subject, rounds: int, count: int, seed: int, progress: Progress
) -> pd.DataFrame:
    import pandas as pd

    calm_gc()
    lab.start()
    job = _job(lab)
    lab.broker.create({job.commands: job.partitions, job.events: job.partitions})
    loop, requester = SIDES[lab.settings.client]
    dice, rows = Random(seed), []
    block = WARM_UP + count
    sent, total = 0, (WARM_ROUNDS + rounds) * len(KINDS) * block
    with process(play, loop, job) as bare, closing(requester(job)) as asking:
        hear(lab, bare)
        tries = Tries(lab, measured, asking, seed)
        for number in range(-WARM_ROUNDS, rounds):
            for kind in dice.sample(KINDS, len(KINDS)):
                samples = [getattr(tries, kind)() for _ in range(block)]
                sent += block
                progress("commands", sent, total)
                if number >= 0:
                    rows += [{"round": number, "kind": kind, **row} for row in samples[WARM_UP:]]
    return pd.DataFrame(rows)


def _job(lab: Lab) -> Job:
    assert lab.servers is not None
    return Job(
        bootstrap=lab.servers.bootstrap,
        commands=lab.topic_name("bare.commands"),
        events=lab.topic_name("bare.events"),
        group=lab.topic_name("bare"),
        partitions=lab.partitions,
    )


class Tries:
    """Each method times one command: ``began``, ``ended`` and (labkit only) the stages.

    ``found`` says whether the expected result was there.
    """

    def __init__(self, lab: Lab, measured: Subject, asking: Requester, seed: int) -> None:
        self._lab, self._measured, self._asking = lab, measured, asking
        streams = DecidedStreams(measured.service)
        opening = streams.taken(measured.opening(seed))
        self._commands = streams.taken(measured.commands(seed))
        self._orders = commands()
        lab.bus.listen(measured.name)
        sent = [lab.bus.send(taken.command) for taken in opening]
        lab.queries.until([delivery.token(PATIENCE_SECONDS) for delivery in sent], PATIENCE_SECONDS)

    def reply(self) -> dict[str, Any]:
        """Send, and wait for the answer."""
        taken, id = next(self._commands), new_id()
        began = time.monotonic_ns()
        token = self._lab.bus.send(taken.command, id=id).token(PATIENCE_SECONDS)
        acked = time.monotonic_ns()
        answer = self._lab.bus.answer(token, PATIENCE_SECONDS)
        ended = time.monotonic_ns()
        # The next command must not overlap with the projection of this one.
        shown = self._shown(taken, token)
        right = answer.accepted and answer.version == taken.version
        return _row(id, taken.command, began, ended, right) | _stages(id, began, acked, shown)

    def visible(self) -> dict[str, Any]:
        """Send, and query the stream's document with the command's token."""
        taken, id = next(self._commands), new_id()
        began = time.monotonic_ns()
        token = self._lab.bus.send(taken.command, id=id).token(PATIENCE_SECONDS)
        acked = time.monotonic_ns()
        shown = self._shown(taken, token)
        ended = time.monotonic_ns()
        right = shown is not None and shown["version"] == taken.version
        return _row(id, taken.command, began, ended, right) | _stages(id, began, acked, shown)

    def bare(self) -> dict[str, Any]:
        """Send a command to the bare loop, and read the event."""
        order, id = next(self._orders), new_id()
        began = time.monotonic_ns()
        value = encode(Envelope(id, order, intended=began, sent=began))
        self._asking.ask(order.stream.encode(), value)
        return _row(id, order, began, time.monotonic_ns(), True) | _stages(id, began, None, None)

    def _shown(self, taken: Taken, token: Token) -> Document | None:
        query = self._measured.document(taken.stream)
        found: Document | None = self._lab.queries.ask(
            query, fresh=Fresh("token", (token,), PATIENCE_SECONDS)
        )
        return found


def _row(id: str, command: Command, began: int, ended: int, found: bool) -> dict[str, Any]:
    return {
        "id": id,
        "stream": command.stream,
        "began": began,
        "ended": ended,
        "found": found,
        "ms": (ended - began) / 1e6,
    }


def _stages(id: str, began: int, acked: int | None, shown: Document | None) -> dict[str, Any]:
    """When a command was acknowledged, polled, decided, fetched and applied, in ms from ``began``.

    The view keeps the last four in the trace of the newest command of a stream.
    """
    trace = shown["trace"] if shown and shown["trace"]["id"] == id else {}
    instants = trace | {"acked": acked}
    return {
        f"{stage}_ms": None if (at := instants.get(stage)) is None else (at - began) / 1e6
        for stage in STAGES
    }


def summary(samples: pd.DataFrame) -> dict[str, Any]:
    """The figures of the samples."""
    times = {kind: samples.loc[samples["kind"] == kind] for kind in KINDS}
    p50 = {kind: float(some["ms"].median()) for kind, some in times.items()}
    by_round = {
        kind: {n: float(part["ms"].median()) for n, part in some.groupby("round")}
        for kind, some in times.items()
    }
    each = {
        kind: [quotient(ms, by_round["bare"][n]) for n, ms in by_round[kind].items()]
        for kind in TARGETS
    }
    missed = int((~samples["found"]).sum())
    return {
        **{f"{kind}_ratio": round(quotient(p50[kind], p50["bare"]), 3) for kind in TARGETS},
        "targets": {
            f"{kind}_ratio": {"at_most": most, "reached": quotient(p50[kind], p50["bare"]) <= most}
            for kind, most in TARGETS.items()
        },
        "ratios": {
            kind: {
                "each": [round(ratio, 3) for ratio in ratios],
                "median": round(median(ratios), 3),
                **_ends(ratios),
            }
            for kind, ratios in each.items()
        },
        "times": {kind: _times(some) for kind, some in times.items()},
        "stages_ms": {
            kind: {stage: round(float(times[kind][f"{stage}_ms"].median()), 3) for stage in STAGES}
            for kind in TARGETS
        },
        "missed": missed,
        "ok": not missed,
    }


def _ends(ratios: list[float]) -> dict[str, Any]:
    if (found := interval_if_any(ratios)) is NO_INTERVAL:
        return {"interval": None, "level": None}
    return {"interval": [round(found.low, 3), round(found.high, 3)], "level": found.level}


def _times(some: pd.DataFrame) -> dict[str, Any]:
    histogram = HdrHistogram(*RANGE)
    for began, ended in zip(some["began"], some["ended"], strict=True):
        histogram.record_value(max(1, int(ended - began) // 1_000))
    return {"commands": len(some), **percentiles(histogram)}
