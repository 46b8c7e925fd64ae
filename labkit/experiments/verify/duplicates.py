"""C2: nothing takes effect twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.verdict import Verdict, verdict
from labkit.messages import Answer, Commit
from labkit.service import Operation


def duplicates(operations: Sequence[Operation], evidence: Evidence) -> Verdict:
    """A command id is decided once, its events appear once, and all repeats get one answer."""
    answered = {o.id for o in operations if o.answer is not None and o.answer.final}
    wrong = [*_decided_twice(evidence.chain), *_answered_twice(operations)]
    return verdict(len(evidence.chain) + len(answered), wrong)


def _decided_twice(chain: Sequence[Commit[Any]]) -> Iterator[str]:
    decided: dict[tuple[str, int], Commit[Any]] = {}  # another body under a used id is refused
    newest: dict[tuple[str, int], Answer] = {}
    for commit in chain:
        body = commit.id, commit.digest
        if commit.outcome == "repeated":
            if commit.repeats not in (None, newest.get(body)):
                yield f"{commit.id!r}: a repeat was answered unlike the first"
            continue
        if commit.outcome != "parked":
            newest[body] = commit.answer
        if commit.final:
            first = decided.setdefault(body, commit)
            # Refused twice alike is no effect: a zombie's refusal may fit by its version.
            if commit is not first and (commit.events or commit.answer != first.answer):
                yield f"{commit.id!r} was decided twice: {first.answer}, then {commit.answer}"


def _answered_twice(operations: Sequence[Operation]) -> Iterator[str]:
    answers: dict[str, Answer] = {}
    for operation in operations:
        if operation.answer is not None and operation.answer.final:
            first = answers.setdefault(operation.id, operation.answer)
            if operation.answer != first:
                yield f"{operation} was told {operation.answer}, before that {first}"
