"""C6: versions without gap, and one winner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.verdict import Verdict, verdict
from labkit.service import Operation


def versions(operations: Sequence[Operation], evidence: Evidence) -> Verdict:
    """The versions of a stream are 1..n; an expected version is met or refused."""
    wrong = [*_gaps(evidence), *_two_winners(operations, evidence)]
    accepted = {o.id for o in operations if o.answer is not None and o.answer.accepted}
    return verdict(len(evidence.commits) + len(accepted), wrong)


def _gaps(evidence: Evidence) -> Iterator[str]:
    for c, known in evidence.misfits:
        yield f"{c.stream!r}: a commit of {c.id!r} starts at version {c.first}, after {known}"
    for c in evidence.commits:
        if c.last - c.first + 1 != len(c.events):
            yield f"{c.stream!r}: {len(c.events)} events take the versions {c.first} to {c.last}"


def _two_winners(operations: Sequence[Operation], evidence: Evidence) -> Iterator[str]:
    firsts = {c.id: c.first for c in evidence.chain if c.outcome == "accepted"}
    winners: dict[tuple[str, int], Operation] = {}
    for operation in operations:
        if operation.answer is None or not operation.answer.accepted:
            continue
        stream, version = operation.command.stream, operation.answer.version
        first = firsts.get(operation.id, version)
        if first <= version:  # else it changed nothing, and made no version
            other = winners.setdefault((stream, version), operation)
            if other.id != operation.id:
                yield f"{stream!r}: both {other} and {operation} made version {version}"
        expected = operation.expected_version
        if expected is not None and expected + 1 != first:
            yield f"{operation} expected version {expected} and made {version}"
