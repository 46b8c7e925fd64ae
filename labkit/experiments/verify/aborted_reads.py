"""C3: nothing that an aborted transaction wrote was seen."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.history import Heard
from labkit.experiments.verify.verdict import Verdict, verdict


def aborted_reads(heard: Sequence[Heard], evidence: Evidence) -> Verdict:
    """Whatever a client heard, and whatever a view shows, stands in the log for good."""
    name = evidence.service.name
    committed = {Heard.of(name, commit) for commit in evidence.commits}
    mine = [mark for mark in heard if mark.token.service == name]
    wrong = [
        f"{mark.id!r} at {mark.token} was told {mark.answer}, which no committed record says"
        for mark in mine
        if mark not in committed
    ]
    traces = {(m.token.partition, m.token.offset, m.mark) for m in committed}
    shown = [d for d in evidence.streams if "trace" in d]
    for document in shown:
        t = document["trace"]
        if (t["partition"], t["command"], (t["polled"], t["decided"])) not in traces:
            wrong.append(f"the view of {document['_id']!r} shows what no committed record says")
    return verdict(len(committed) + len(mine) + len(shown) + len(evidence.aborted), wrong)
