"""``labkit bench cost``: what CQRS costs beside CRUD, with the same work, clients and checkers.

========  ==============================================================================
crud      well made: one transaction a command, versions, an idempotency table
naive     read, decide, write; its anomalies are counted
view      the rows of ``crud``, and a view that a change stream feeds: CQRS without a log
outbox    ``crud`` where two services share no transaction; asked for their agreement alone
labkit    commands, log and views, on Kafka and MongoDB
========  ==============================================================================

A run goes through the arms in random order; each has a database and topics of its own. The rules
are the service's in all of them. An interval is that of the median over the runs; two arms are
compared within each run. A run whose arm claims to be right and is not makes the bench fail, and so
does a naive arm in which nothing went wrong, though commands were sent again and writers met.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from labkit.errors import UsageError
from labkit.experiments.bench.measuring import measuring
from labkit.experiments.bench.subject import about
from labkit.experiments.cost import subject
from labkit.experiments.cost.afterwards import HOW, audit, new_state, second_view, storage
from labkit.experiments.cost.agreement import AGREE, agreement
from labkit.experiments.cost.arm import ARMS
from labkit.experiments.cost.clients import CLIENTS
from labkit.experiments.cost.offering import check_rate
from labkit.experiments.cost.outcome import SIZE, judge
from labkit.experiments.cost.trial import ACCOUNTS, Sizes, Trial, trial
from labkit.experiments.cost.under_load import (
    HOT_SHARE,
    HOT_WRITERS,
    MANY,
    READERS,
    TWICE,
    Figures,
    contention,
    latency,
    reads,
    resends,
    throughput,
)
from labkit.experiments.cost.writers import RESENT, SENDINGS
from labkit.experiments.demo import Progress
from labkit.experiments.results import archive
from labkit.experiments.scratch import versions_on
from labkit.experiments.verify.verdict import Verdict, red
from labkit.run.worker import calm_gc

#: What is measured in a trial, in this order: what changes the workers of the run comes last.
LOADS: dict[str, Callable[[Trial], Figures]] = {
    "latency": latency,
    "throughput": throughput,
    "reads": reads,
    "contention": contention,
    "resends": resends,
    "storage": storage,
    "audit": audit,
}
LATER: dict[str, Callable[[Trial], Figures]] = {"second-view": second_view, "new-state": new_state}
AGREEMENT = "agreement"
MEASUREMENTS = (*LOADS, *LATER, AGREEMENT, SIZE)
#: What an arm is not asked for. The naive one only has to go wrong; the view writes as CRUD does.
LEFT_OUT: dict[str, set[str]] = {
    "naive": {"latency", "reads", "storage", "audit", *LATER},
    "view": {"contention", *LATER},
    "outbox": {*LOADS, *LATER},
}


def chosen(only: Sequence[str]) -> list[str]:
    """The measurements by name; none: all. Raises ``UsageError``."""
    for name in only:
        if name not in MEASUREMENTS:
            raise UsageError(f"--only must be of {', '.join(MEASUREMENTS)}, got {name!r}")
    return [name for name in MEASUREMENTS if not only or name in only]


def cost(
    name: str,
    client: str,
    sizes: Sizes,
    runs: int,
    only: Sequence[str],
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Run the bench and archive its result.

    Raises ``UsageError`` for an unknown measurement and for a rate that the clients cannot offer.
    """
    wanted = chosen(only)
    check_rate(sizes.rate)
    calm_gc()
    settings = {
        "runs": runs,
        "only": wanted,
        "rate": sizes.rate,
        "writers": sizes.writers,
        "seconds": sizes.seconds,
        "clients": CLIENTS,
        "accounts": ACCOUNTS,
        "many_writers": MANY * sizes.writers,
        "readers": READERS,
        "hot_writers": list(HOT_WRITERS),
        "hot_seconds": sizes.seconds * HOT_SHARE,
        "resent": RESENT,
        "sendings": SENDINGS,
        "twice": TWICE,
        **about(subject.of("cost")),
    }
    rows: list[dict[str, Any]] = []
    verdicts: dict[str, list[dict[str, Verdict]]] = {arm: [] for arm in ARMS}
    with measuring(name, report, "cost", client=client, seed=seed, settings=settings) as found:
        found["versions"] = versions_on(name, client)
        for run, arm, row, judged in _trials(
            name, client, sizes, runs, wanted, seed, progress, report
        ):
            rows.append({"run": run, "arm": arm, **row})
            verdicts[arm].append(judged)
    found["how"] = HOW
    # What CRUD wins comes first, on paper too.
    found = judge(rows, verdicts, sizes.seconds, size=SIZE in wanted) | found
    found["folder"] = str(archive("bench-cost", found))
    return found


def _trials(
    name: str,
    client: str,
    sizes: Sizes,
    runs: int,
    wanted: Sequence[str],
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
) -> Iterator[tuple[int, str, Figures, dict[str, Verdict]]]:
    """Run, arm, its figures and its verdicts."""
    dice = Random(seed)
    for run in range(runs):
        order = dice.sample(ARMS, len(ARMS))
        for place, arm in enumerate(order):
            progress("trials", run * len(ARMS) + place, runs * len(ARMS))
            began = time.monotonic()
            mine = [name for name in wanted if name not in LEFT_OUT.get(arm, ())]
            figures: Figures = {}
            judged: dict[str, Verdict] = {}
            if {*LOADS, *LATER} & set(mine):
                figures, judged = _trial(name, client, arm, sizes, mine, seed + run)
            if AGREEMENT in mine and arm in AGREE:
                more, of_both = agreement(name, client, arm, sizes.seconds / 2, seed + run)
                figures |= more
                judged |= {f"{checker} of two streams": v for checker, v in of_both.items()}
            took = time.monotonic() - began
            if judged:
                report(f"run {run + 1} of {runs}: {arm}, {took:.0f} s; {_said(judged)}")
            yield run, arm, figures, judged
    progress("trials", runs * len(ARMS), runs * len(ARMS))


def _trial(
    name: str, client: str, arm: str, sizes: Sizes, wanted: Sequence[str], seed: int
) -> tuple[Figures, dict[str, Verdict]]:
    figures: Figures = {}
    with trial(name, client, arm, sizes, seed) as running:
        running.open_accounts()
        running.note()
        for each, measure in LOADS.items():
            if each in wanted:
                figures |= measure(running)
        judged = running.verdicts()
        for each, measure in LATER.items():
            if each in wanted:
                figures |= measure(running)
        figures["resent"] = running.resent
    return figures, judged


def _said(judged: Mapping[str, Verdict]) -> str:
    return f"red: {', '.join(wrong)}" if (wrong := red(judged)) else "all checkers green"


__all__ = ["MEASUREMENTS", "chosen", "cost"]
