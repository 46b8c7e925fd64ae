"""The jobs that every run has: a nightly report of each service, and a clean-up.

The clean-up forgets idempotency keys of the API that are older than ``KEEP_DAYS``: for so long the
API says that a key was used for another command. A command that is sent again with such a key has
the same command id as ever, and handlers keep command ids for ever (ADR 006): it takes effect once.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from functools import partial

from labkit.log.partition import read_partition
from labkit.ports.clock import Clock
from labkit.ports.store import Document, Store, Writes
from labkit.run.cron import Cron
from labkit.run.positions import Positions
from labkit.run.run import Run
from labkit.run.scheduler import REPORTS, Job

#: Idempotency keys with what they were used for, and at what instant (Unix ms).
KEYS, KEYS_CHECKPOINTS = "api.keys", "api.checkpoints"
KEEP_DAYS = 7
DAY_MS = 86_400_000
#: A transaction forgets so many keys at most.
BATCH = 10_000
#: A report names so many kinds of refusals at most, the most frequent ones.
MOST_REASONS = 20
#: What differs between two refusals of one kind: quoted ids, numbers.
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


def jobs(run: Run, positions: Positions, clock: Clock) -> list[Job]:
    """Of a run. ``positions`` are the caller's to close."""
    nightly = Cron("report_at", run.settings.report_at)
    reports = [
        Job(f"report.{name}", nightly, partial(_report, run, positions, clock, name))
        for name in run.services
    ]
    cleaning = Cron("clean_up_at", run.settings.clean_up_at)
    return [*reports, Job("clean-up", cleaning, partial(clean_up, run.store))]


def clean_up(store: Store, due: int) -> tuple[Document, Writes]:
    """Forget old keys. Two schedulers may both do it: what is gone is gone."""
    forgotten, bound = 0, {"at": due - KEEP_DAYS * DAY_MS}
    while True:
        found = store.find(KEYS, {}, [("at", 1)], BATCH, at_most=bound, fields=["_id"])
        forgotten += len(found)
        writes = Writes(deletes={KEYS: [key["_id"] for key in found]})
        if len(found) < BATCH:
            return {"forgotten": forgotten}, writes
        store.advance(KEYS_CHECKPOINTS, [], writes)


def _report(
    run: Run, positions: Positions, clock: Clock, name: str, due: int
) -> tuple[Document, Writes]:
    """What one service has done since its last report, and how it stands.

    ``commands`` counts commits by outcome, ``refused`` by reason without its values; ``streams``
    and ``backlog`` (offsets) are those of now; ``positions`` is where the next report begins.
    """
    before = run.store.find(REPORTS, {"job": f"report.{name}"}, [("due", -1)], 1)
    since = before[0]["positions"] if before else {}
    outcomes, reasons = Counter[str](), Counter[str]()
    codec = run.services[name].codec
    with closing(run.broker.source(run.topic_name(f"{name}.events"))) as source:
        ends = source.ends()
        for partition, end in ends.items():
            start = since.get(str(partition), 0)
            for records in read_partition(source, partition, start, end=end, clock=clock):
                for record in records:
                    commit, _ = codec.read_commit(record.value)
                    if commit is not None:
                        outcomes[commit.outcome] += 1
                        if commit.outcome == "refused":
                            reasons[_VALUES.sub("…", commit.reason)] += 1
    working = [role for role in ("handler", "projector") if name in run.instances_of(role)]
    fields = {
        "service": name,
        "streams": run.store.count(run.services[name].states),
        "commands": dict(outcomes),
        "refused": [
            {"reason": reason, "commands": n} for reason, n in reasons.most_common(MOST_REASONS)
        ],
        "backlog": {role: positions.lag(role, name) for role in working},
        "positions": {str(partition): end for partition, end in ends.items()},
    }
    return fields, Writes()
