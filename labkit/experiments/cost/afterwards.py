"""The measurements at quiet: storage, the audit question, a second view, states of a new shape."""

from __future__ import annotations

import time
from collections.abc import Iterator

from labkit.adapters.mongo import connect, translated
from labkit.experiments.bench.filling import NEVER, handler_of
from labkit.experiments.cost import subject
from labkit.experiments.cost.crud import CHECKPOINTS
from labkit.experiments.cost.row import ROWS, document
from labkit.experiments.cost.trial import Trial
from labkit.experiments.cost.under_load import Figures
from labkit.experiments.intervals import quotient
from labkit.lab import Lab
from labkit.log.partition import read_partition
from labkit.messages import Document
from labkit.ports.store import Writes
from labkit.stack.state import lab_folder

#: What each of these takes, in words; ``view`` and ``outbox`` are as ``crud``.
HOW: dict[str, dict[str, str]] = {
    "audit": {
        "crud": "rows hold the present alone; a table of the past must be there beforehand",
        "labkit": "the log is folded up to the instant, from the nearest snapshot",
    },
    "second-view": {
        "crud": "backfill: all rows are read and copied; it begins with the present",
        "labkit": "replay: the log is read from its start beside the view that serves",
    },
    "new-state": {
        "crud": "migration: all rows are read and replaced, with what can be told from them",
        "labkit": "fold + 1: handlers fold the log anew when they start",
    },
    "rule": {
        "crud": "a release of the code, where the state stays as it is; no row is touched",
        "labkit": "a release of the code, where the state stays as it is; no event is touched",
    },
    "agreement": {
        "crud": "one transaction over both rows; with two databases, an outbox and a relay",
        "labkit": "a process manager: a second command, and compensation if it is refused",
    },
}
#: Rows in one transaction of a copy or of a migration.
BATCH = 1_000
SECOND = "crud.second"


def storage(trial: Trial) -> Figures:
    """Bytes for each command that was sent, whatever came of it.

    ``stored``: the documents, their indexes and the records as they are; ``disk``: as compressed.
    """
    trial.quiet()
    commands = len({bytes(told.envelope) for told in trial.told})
    lab = trial.lab
    assert lab.servers is not None
    client, db = connect(lab.servers.mongo_uri, lab.of.database)
    try:
        with translated("measure the database"):
            client.admin.command("fsync")
            found = db.command("dbStats")
    finally:
        client.close()
    stored = int(found["dataSize"]) + int(found["indexSize"])
    disk = int(found["storageSize"]) + int(found["indexSize"])
    topics = [lab.topic_name(f"{lab.first}.{kind}") for kind in ("commands", "events")]
    files = [f for topic in topics for f in lab_folder(lab.name).rglob(f"{topic}-*/*.log")]
    disk += sum(file.stat().st_size for file in files)
    stored += sum(_record_bytes(lab, topic) for topic in topics)
    return {
        "stored_bytes": quotient(stored, commands),
        "disk_bytes": quotient(disk, commands) if files else float("nan"),
        "commands": commands,
    }


def _record_bytes(lab: Lab, topic: str) -> int:
    source = lab.broker.source(topic)
    try:
        return sum(
            len(record.key) + len(record.value)
            for partition in sorted(source.ends())
            for records in read_partition(source, partition)
            for record in records
        )
    finally:
        source.close()


def audit(trial: Trial) -> Figures:
    """What was an account at an instant that has passed? Asked of the state that the rules know.

    Rows hold the present alone, so the answer is not to be had; a table of the past that somebody
    thought of before is a log.
    """
    if trial.name != "labkit" or trial.noted is None:
        return {"past_answered": 0.0}
    at, documents = trial.noted
    log, took, right = trial.lab.log(), 0.0, 0
    some = documents[:: max(1, len(documents) // 10)]
    for shown in some:
        began = time.monotonic()
        state = log.state(shown["_id"], at=at)
        took += time.monotonic() - began
        right += state == log.state(shown["_id"], version=shown["version"])
    return {
        "past_answered": quotient(right, len(some)),
        "past_ms": quotient(took * 1e3, len(some)),
    }


def second_view(trial: Trial) -> Figures:
    """A view that nobody thought of is added: seconds until it is served, and the past in it.

    CRUD copies its rows (a backfill); labkit replays its log. ``past``: the share of the log that
    the view was made from. The next release of the workers comes with it, so they are stopped.
    """
    lab, service = trial.lab, subject.WITH_SECOND_VIEW
    began = time.monotonic()
    if trial.name != "labkit":
        made = 0
        for rows in _batches(lab.store.find(ROWS, {})):
            lab.store.advance(CHECKPOINTS, [], Writes({SECOND: [document(r) for r in rows]}))
            made += len(rows)
        return {"second_s": time.monotonic() - began, "second_past": 0.0, "second_documents": made}
    lab.stop()
    lab.of.services[lab.first] = service
    began = time.monotonic()
    progress = lab.rebuild_view(service.view, keep=0)
    took = time.monotonic() - began
    made = lab.store.count(lab.where(service.collection(service.views[1])))
    return {
        "second_s": took,
        "second_past": quotient(progress.done, progress.total),
        "second_documents": made,
    }


def new_state(trial: Trial) -> Figures:
    """The rules need states of another shape: seconds until each has it.

    CRUD migrates its rows, from what they hold; labkit's handlers fold the log anew, so that the
    new field can be about the past. A rule that needs no new state is a release in all arms.
    """
    lab = trial.lab
    began = time.monotonic()
    if trial.name != "labkit":
        for rows in _batches(lab.store.find(ROWS, {})):
            after = [{**row, "rev": row["rev"] + 1, "shape": 2} for row in rows]
            lab.store.advance(CHECKPOINTS, [], Writes(replaces={ROWS: after}))
        return {"new_state_s": time.monotonic() - began, "new_state_from_past": 0.0}
    lab.stop()
    handler = handler_of(subject.WITH_NEW_STATE, lab, lab, NEVER)
    try:
        handler.join(lab.partitions)
        handler.flush()
    finally:
        handler.close()
    return {"new_state_s": time.monotonic() - began, "new_state_from_past": 1.0}


def _batches(rows: list[Document]) -> Iterator[list[Document]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]
