"""C9: views equal what the service's reference model makes of commands and replies alone.

The log is not folded: a command handled twice would stand in the log twice, and a fold over it
would agree with the view. The model knows the rules a second time, in plain values. From the log
are taken only the versions that a commit made and, if no client was told of them, the id of its
command.

A command without an answer may have happened. It has if a commit names it, and then it must be one
that a client sent, one that made no other version, and one that the model accepts there. So each
version is explained by at most one command, however many have no answer. To try which of them fit
would take exponential time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import said
from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.verdict import Verdict, unknown, verdict
from labkit.messages import Answer, Commit, Document
from labkit.service import Operation, ReferenceModel

State = Document | None


class Told(Struct):
    """What the clients were told of one stream: one operation for each command id.

    ``idle`` commands were accepted and changed nothing. ``open`` ones, by id, have no final answer.
    """

    accepted: dict[int, Operation] = msgspec.field(default_factory=dict)
    idle: list[Operation] = msgspec.field(default_factory=list)
    refused: list[Operation] = msgspec.field(default_factory=list)
    open: dict[str, Operation] = msgspec.field(default_factory=dict)


class Explained(Struct):
    """The stream as it must be, by the model; ``None`` if nothing explains it, or it is empty."""

    state: State
    violations: list[str]


def views(operations: Sequence[Operation], evidence: Evidence) -> Verdict:
    """The views equal the model; every reply is one that the model can explain."""
    service = evidence.service
    if service.model is None:
        return unknown(f"service {service.name!r} has no reference model")
    try:
        wrong = _compare(operations, evidence, service.model)
    except Exception as error:  # whatever stands in a service
        wrong = [f"the reference model failed: {said(error)}"]
    return verdict(len(operations) + sum(map(len, evidence.views.values())), wrong)


def _compare(
    operations: Sequence[Operation], evidence: Evidence, model: ReferenceModel
) -> list[str]:
    known = {d["_id"]: d["version"] for d in evidence.streams}
    commits: dict[str, list[Commit[Any]]] = {}
    for commit in evidence.chain:
        commits.setdefault(commit.stream, []).append(commit)
    calls: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.status != "failed":
            calls.setdefault(operation.command.stream, []).append(operation)
    wrong: list[str] = []
    streams: dict[str, Document] = {}
    for stream, asked in calls.items():
        made = commits.get(stream, [])
        told, contradictions = tell(stream, asked, made)
        last = max([known.get(stream, 0), *told.accepted])
        found = explain(stream, told, last, made, model)
        wrong += contradictions + found.violations
        if found.state is not None:
            streams[stream] = found.state
    if evidence.service.views:
        wrong += model.compare(streams, evidence.views)
    return wrong


def tell(
    stream: str, calls: Sequence[Operation], commits: Iterable[Commit[Any]]
) -> tuple[Told, list[str]]:
    """What was told of a stream, and what contradicts itself. Repeats tell nothing new."""
    told, wrong = Told(), list[str]()
    answers: dict[str, Answer] = {}
    idle = {c.id for c in commits if c.outcome == "accepted" and not c.events}
    for operation in calls:
        if (answer := operation.answer) is None or not answer.final:
            continue
        if operation.id in answers:
            if answers[operation.id] != answer:
                wrong.append(f"{operation} got two answers")
            continue
        answers[operation.id] = answer
        if answer.outcome == "refused":
            told.refused.append(operation)
        elif not answer.accepted:
            continue  # dropped by somebody who had looked at it
        elif operation.id in idle:
            told.idle.append(operation)
        elif answer.version in told.accepted:
            wrong.append(f"{stream!r}: version {answer.version} was told to two commands")
        else:
            told.accepted[answer.version] = operation
    # A parked or scheduled command is still to come, and one without an answer may have happened.
    told.open = {o.id: o for o in calls if o.id not in answers}
    return told, wrong


def explain(
    stream: str, told: Told, last: int, commits: Iterable[Commit[Any]], model: ReferenceModel
) -> Explained:
    """Apply the accepted commands in the order of their versions, up to ``last``.

    A version without a commit is the whole of what its command made.
    """
    made = {commit.first: commit for commit in commits if commit.events}
    maybe = dict(told.open)
    version = 0
    state: State = None
    states = {version: state}
    while version < last:
        commit = made.get(version + 1)
        version = commit.last if commit else version + 1
        known = told.accepted.get(version) or (maybe.pop(commit.id, None) if commit else None)
        state = model.apply(state, known.command) if known else None
        if state is None:
            asked = known or "none of the commands without an answer"
            return Explained(None, [f"{stream!r}: nothing explains version {version}: {asked}"])
        states[version] = state
    return Explained(state, [] if told.open else list(_unjust(told, states, model)))


def _unjust(told: Told, states: Mapping[int, State], model: ReferenceModel) -> Iterator[str]:
    """Refusals that the model does not know, and changes that it knows and nobody saw."""
    for operation in told.refused:
        assert operation.answer is not None
        version = operation.answer.version
        if version not in states:
            yield f"{operation} was refused at version {version}, which never was"
        elif (
            operation.expected_version in (None, version)
            and model.apply(states[version], operation.command) is not None
        ):
            yield f"{operation} was refused without a reason: {operation.answer.reason}"
    for operation in told.idle:
        assert operation.answer is not None
        version = operation.answer.version
        state = states.get(version)
        if version not in states or model.apply(state, operation.command) not in (None, state):
            yield f"{operation} was accepted and changed nothing, which the model does not say"
