"""Latency of one command at a time, to its answer and to its visibility, compared with a bare loop.

A closed loop with one command in flight: the next is sent when the view shows the one before it. So
the latency includes no queueing and no contention; ``load/offer.py`` measures it under load.

=======  ======================================================================
reply    from the call of ``bus.send`` until the bus has read the answer
visible  from that call until a query with the command's token returns the order
bare     the same command by a bare consume-transform-produce transaction with the same client
         (``bare_transaction.py``), from its encoding until its event was read
=======  ======================================================================

labkit's handler and projector are real workers, and the bare loop is a process too; both sides have
their own topics with the same number of partitions. A round has a block of each kind, in random
order. The first ``WARM_UP`` commands of a block do not count, nor do the first ``WARM_ROUNDS``
rounds, in which the broker's JVM still compiles. ``reply_ratio`` and ``visible_ratio`` are medians
over all rounds, divided by the bare median; the ratios within the rounds give the interval.

The trace in the view splits the latency of labkit's commands into stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from hdrh.histogram import HdrHistogram

from labkit.errors import StackError
from labkit.experiments.bench.bare_transaction import SIDES, Requester
from labkit.experiments.bench.job import Job, play
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.preload import NEW_ORDERS
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import interval
from labkit.experiments.load import arrivals
from labkit.experiments.percentiles import RANGE, percentiles
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process
from labkit.experiments.results import archive, versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.messages import Envelope, encode
from labkit.ports.ids import new_id
from labkit.read.freshness import LINEARIZABLE, Fresh
from labkit.run.settings import DEFAULTS
from labkit.run.worker import calm_gc
from labkit.services.orders import OrderById, OrdersById, PlaceOrder

if TYPE_CHECKING:
    import pandas as pd

CONTEXT = "orders"
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
) -> dict[str, Any]:
    """Run the bench and archive its result. ``sizes``: rounds, and commands of a block."""
    rounds, count = sizes
    settings = {
        "rounds": rounds,
        "commands": count,
        "warm_up": WARM_UP,
        "warm_rounds": WARM_ROUNDS,
        "partitions": DEFAULTS.partitions,
    }
    with (
        measuring(name, report, "latency", client=client, seed=seed, settings=settings) as found,
        scratch_run(name, client=client, services=[CONTEXT], start=False) as lab,
    ):
        found["versions"] = versions(lab.server_versions(), client)
        report(f"run {lab.run}: {rounds} rounds of {count} commands of each kind")
        samples = _run(lab, rounds, count, seed, progress)
        found["ignored_commits"] = lab.ignored_commits()
    found |= summary(samples)
    found["ok"] = found["ok"] and not found["ignored_commits"]
    archive("bench-latency", found, {"samples": samples})
    return found


def _run(lab: Lab, rounds: int, count: int, seed: int, progress: Progress) -> pd.DataFrame:
    import pandas as pd

    calm_gc()
    lab.start()
    job = _job(lab)
    lab.broker.create({job.commands: job.partitions, job.events: job.partitions})
    loop, requester = SIDES[lab.settings.client]
    dice, rows = Random(seed), []
    block = WARM_UP + count
    sent, commands = 0, (WARM_ROUNDS + rounds) * len(KINDS) * block
    orders = _orders(commands)
    with process(play, loop, job) as bare, closing(requester(job)) as asking:
        hear(lab, bare)
        tries = Tries(lab, asking)
        for number in range(-WARM_ROUNDS, rounds):
            for kind in dice.sample(KINDS, len(KINDS)):
                samples = [getattr(tries, kind)(next(orders)) for _ in range(block)]
                sent += block
                progress("commands", sent, commands)
                if number >= 0:
                    rows += [{"round": number, "kind": kind, **row} for row in samples[WARM_UP:]]
    return _with_stages(lab, pd.DataFrame(rows))


def _job(lab: Lab) -> Job:
    assert lab.servers is not None
    return Job(
        bootstrap=lab.servers.bootstrap,
        commands=lab.topic_name("bare.commands"),
        events=lab.topic_name("bare.events"),
        group=lab.topic_name("bare"),
        partitions=lab.partitions,
    )


def _orders(count: int) -> Iterator[PlaceOrder]:
    for order in arrivals.commands(NEW_ORDERS, count):
        assert isinstance(order, PlaceOrder)
        yield order


class Tries:
    """Each method times one command: ``began``, ``ended`` and (labkit only) ``acked``, in ns.

    ``found`` says whether the expected result was there.
    """

    def __init__(self, lab: Lab, asking: Requester) -> None:
        self._lab, self._asking = lab, asking
        lab.bus.listen(CONTEXT)

    def reply(self, order: PlaceOrder) -> dict[str, Any]:
        """Send, and wait for the answer."""
        began = time.monotonic_ns()
        token = self._lab.bus.send(order).token(PATIENCE_SECONDS)
        acked = time.monotonic_ns()
        answer = self._lab.bus.answer(token, PATIENCE_SECONDS)
        ended = time.monotonic_ns()
        # The next command must not overlap with the projection of this one.
        self._lab.queries.ask(
            OrderById(order.order_id), fresh=Fresh("token", (token,), PATIENCE_SECONDS)
        )
        return _row(order, began, ended, answer.accepted, acked)

    def visible(self, order: PlaceOrder) -> dict[str, Any]:
        """Send, and query the order with the command's token."""
        began = time.monotonic_ns()
        token = self._lab.bus.send(order).token(PATIENCE_SECONDS)
        acked = time.monotonic_ns()
        fresh = Fresh("token", (token,), PATIENCE_SECONDS)
        found = self._lab.queries.ask(OrderById(order.order_id), fresh=fresh)
        ended = time.monotonic_ns()
        return _row(order, began, ended, found is not None, acked)

    def bare(self, order: PlaceOrder) -> dict[str, Any]:
        """Send to the bare loop, and read the event."""
        began = time.monotonic_ns()
        value = encode(Envelope(new_id(), order, intended=began, sent=began))
        self._asking.ask(order.order_id.encode(), value)
        return _row(order, began, time.monotonic_ns(), True)


def _row(
    order: PlaceOrder, began: int, ended: int, found: bool, acked: int | None = None
) -> dict[str, Any]:
    return {
        "order": order.order_id,
        "began": began,
        "ended": ended,
        "found": found,
        "acked_ms": None if acked is None else (acked - began) / 1e6,
        "ms": (ended - began) / 1e6,
    }


def _with_stages(lab: Lab, samples: pd.DataFrame) -> pd.DataFrame:
    """Add when labkit's commands were polled, decided, fetched and applied, in ms from ``began``.

    The view keeps these instants in the trace of each order.
    """
    ours = samples.loc[samples["kind"] != "bare", "order"].tolist()
    seen = lab.ask(OrdersById(list(ours)), fresh=LINEARIZABLE)
    if missing := len(ours) - len(seen):
        raise StackError(
            f"{missing} of {len(ours)} orders are not in the view; see {lab.of.logs()}"
        )
    for stage in STAGES[1:]:
        samples[f"{stage}_ms"] = [
            (seen[order]["trace"][stage] - began) / 1e6 if order in seen else None
            for order, began in zip(samples["order"], samples["began"], strict=True)
        ]
    return samples


def summary(samples: pd.DataFrame) -> dict[str, Any]:
    """The figures of the samples."""
    times = {kind: samples.loc[samples["kind"] == kind] for kind in KINDS}
    p50 = {kind: float(some["ms"].median()) for kind, some in times.items()}
    by_round = {
        kind: {n: float(part["ms"].median()) for n, part in some.groupby("round")}
        for kind, some in times.items()
    }
    each = {
        kind: [ms / by_round["bare"][n] for n, ms in by_round[kind].items()] for kind in TARGETS
    }
    missed = int((~samples["found"]).sum())
    return {
        **{f"{kind}_ratio": round(p50[kind] / p50["bare"], 3) for kind in TARGETS},
        "targets": {
            f"{kind}_ratio": {"at_most": most, "reached": p50[kind] / p50["bare"] <= most}
            for kind, most in TARGETS.items()
        },
        "ratios": {
            kind: {
                "each": [round(ratio, 3) for ratio in ratios],
                "median": round(median(ratios), 3),
                "interval": [round(e, 3) for e in interval(ratios)] if len(ratios) > 1 else None,
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


def _times(some: pd.DataFrame) -> dict[str, Any]:
    histogram = HdrHistogram(*RANGE)
    for began, ended in zip(some["began"], some["ended"], strict=True):
        histogram.record_value(max(1, int(ended - began) // 1_000))
    return {"commands": len(some), **percentiles(histogram)}
