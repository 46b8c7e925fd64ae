"""What services and processes promise beyond messages: invariants, audits, and C11."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from labkit.errors import said
from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.verdict import Verdict, verdict
from labkit.messages import Document
from labkit.service import Case, Operation, Process


def invariants(evidence: Evidence) -> Verdict:
    """The service's invariants hold of every state that a commit made."""
    service = evidence.service
    states: dict[str, Any] = {}
    # What stands after an event that this code does not know, nobody can fold.
    broken = {commit.stream for commit in evidence.unread}
    checked, wrong = 0, list[str]()
    for commit in evidence.chain:
        stream = commit.stream
        if not commit.events or stream in broken:
            continue
        where = f"{stream!r} version {commit.last}"
        try:
            state = states.get(stream)
            for event in commit.events:
                state = service.evolve(state, event)
            states[stream] = state
            failed = [name for name, holds in service.invariants.items() if not holds(state)]
        except Exception as error:  # whatever stands in a service
            broken.add(stream)
            wrong.append(f"{where}: {said(error)}")
            continue
        checked += len(service.invariants)
        wrong += [f"{where}: {name!r} does not hold of {state}" for name in failed]
    return verdict(checked, wrong)


def audits(operations: Iterable[Operation], evidence: Evidence) -> dict[str, Verdict]:
    """The service's own checkers, by name."""
    case = evidence.case(operations)
    checked = sum(len(commit.events) for commit in evidence.chain) + len(evidence.states)
    checked += sum(map(len, evidence.views.values()))
    return {
        name: verdict(checked, _violations(audit, case))
        for name, audit in evidence.service.audits.items()
    }


def processes(
    taking_part: Mapping[str, Process],
    cases: Mapping[str, Case],
    instances: Mapping[str, list[Document]],
) -> Verdict:
    """C11: each process that was begun has ended, and its own audit finds nothing.

    ``cases`` by service, ``instances`` by process.
    """
    checked, wrong = 0, list[str]()
    for name, process in taking_part.items():
        known = {d["_id"]: d for d in instances[name]}
        begun = process.begun(cases)
        checked += len(known) + len(begun)
        wrong += [f"{name} {id!r} was never begun" for id in sorted(begun - set(known))]
        wrong += [
            f"{name} {id!r} has not ended: {document['state']}"
            for id, document in known.items()
            if not document["ended"]
        ]
        wrong += _violations(process.audit, cases)
    return verdict(checked, wrong)


def _violations(audit: Callable[[Any], Iterable[str]], what: Any) -> list[str]:
    found: list[str] = []
    try:
        found += audit(what)
    except Exception as error:  # whatever stands in a service
        found.append(f"the audit failed: {said(error)}")
    return found
