"""What must hold after any run, whatever broke in it: judged by what the clients saw.

A :class:`History` (``history.py``) records every operation as invoked -> ok, failed or **unknown**
(it may have happened). The checkers compare it with the log and the views of any services::

    history = History(lab.bus)
    operation = history.send(OpenTicket(...))      # and again, with the same id, if you like
    history.settle(timeout=30)
    verdicts = check_all(lab, history)             # at quiet: nothing is under way any more

``MEANINGS`` says what each of them looks after. C7 and C8 are ``Service.audits``, under the names
that the service gives them. C9 compares with what ``Service.model`` makes of commands and replies,
and of the ids of commands without a reply; without a model the verdict is unknown. C10 is of
``bench/sessions.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

from labkit.experiments.verify import promises
from labkit.experiments.verify.aborted_reads import aborted_reads
from labkit.experiments.verify.duplicates import duplicates
from labkit.experiments.verify.evidence import Evidence, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.lost_writes import lost_writes
from labkit.experiments.verify.reference import views
from labkit.experiments.verify.verdict import Verdict, together
from labkit.experiments.verify.versions import versions
from labkit.lab import Lab
from labkit.service import Operation, Service

#: What each checker looks after, as a promise that a violation breaks; the last two are the
#: simulator's.
MEANINGS = {
    "C1": "what was acknowledged is decided, and what was accepted is shown",
    "C2": "a command id has one effect and one answer",
    "C3": "nobody is told what a transaction took back",
    "C6": "the versions of a stream are 1, 2, 3, ... and each is made once",
    "C9": "a view shows what the commands made, no more and no less",
    "C10": "a reader sees what its own writes, its session or the log make it see",
    "C11": "a process that began comes to its end, and compensates once",
    "invariants": "every state is a valid one",
    "schemas": "what this code cannot read is held back, and nothing is decided upon it",
    "liveness": "once nothing goes wrong any more, all come to rest",
}


def meanings(services: Iterable[Service]) -> dict[str, str]:
    """The same, with the audits of these services: the first lines of their documentation."""
    found = dict(MEANINGS)
    for service in services:
        for name, audit in service.audits.items():
            first = (inspect.getdoc(audit) or name).partition("\n")[0]
            found.setdefault(name, first.rstrip(".:"))
    return found


def check_all(lab: Lab, history: History, service: str | None = None) -> dict[str, Verdict]:
    """All checkers of a service (the run's first, if none is named), at quiet: every operation has
    settled, the workers caught up."""
    return check(gather(lab, service), history)


def check(evidence: Evidence, history: History) -> dict[str, Verdict]:
    """All checkers of the service that the evidence is about, by name."""
    service = evidence.service
    mine = evidence.own(history)
    raw = [token for token in history.raw if token.service == service.name]
    found = {
        "C1": lost_writes(mine, evidence, raw),
        "C2": duplicates(mine, evidence),
        "C3": aborted_reads(history.heard, evidence),
        "C6": versions(mine, evidence),
        "C9": views(mine, evidence),
    }
    if service.invariants:
        found["invariants"] = promises.invariants(evidence)
    for name, audited in promises.audits(mine, evidence).items():
        found[name] = together([found[name], audited]) if name in found else audited
    return found


def check_run(lab: Lab, history: History, evidence: Mapping[str, Evidence]) -> dict[str, Verdict]:
    """All checkers of all services and processes of a run; ``evidence`` by service."""
    verdicts: dict[str, list[Verdict]] = {}
    for each in evidence.values():
        for name, verdict in check(each, history).items():
            verdicts.setdefault(name, []).append(verdict)
    if lab.processes:
        cases = {name: each.case(history) for name, each in evidence.items()}
        instances = {name: lab.store.find(f"{name}.instances", {}) for name in lab.processes}
        ended = promises.processes(lab.processes, cases, instances)
        verdicts.setdefault("C11", []).append(ended)
    return {name: together(found) for name, found in verdicts.items()}


__all__ = [
    "MEANINGS",
    "Evidence",
    "History",
    "Operation",
    "Verdict",
    "aborted_reads",
    "check",
    "check_all",
    "check_run",
    "duplicates",
    "gather",
    "lost_writes",
    "meanings",
    "versions",
    "views",
]
