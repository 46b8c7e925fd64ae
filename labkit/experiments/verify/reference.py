"""C9: views equal what the service's reference model makes of commands and replies alone.

The log is not folded: a command handled twice would stand in the log twice, and a fold over it
would agree with the view. The model knows the rules a second time, in plain values. All that is
taken from the log is how many versions a commit made.

A command without an answer may have happened. If a version was told to nobody, one of these made
it, and every way to explain that is followed, at most ``MOST_WAYS`` of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.verdict import Verdict, unknown, verdict
from labkit.messages import Answer, Command, Commit, Document, digest
from labkit.service import KeyedView, Operation, ReferenceModel

#: Ways to explain a stream that are followed at once.
MOST_WAYS = 1_000
State = Document | None


class Told(Struct):
    """What the clients were told of one stream: one operation for each command id.

    ``idle`` commands were accepted and changed nothing. ``open`` ones have no final answer.
    """

    accepted: dict[int, Operation] = msgspec.field(default_factory=dict)
    idle: list[Operation] = msgspec.field(default_factory=list)
    refused: list[Operation] = msgspec.field(default_factory=list)
    open: list[Operation] = msgspec.field(default_factory=list)


class Way(NamedTuple):
    """A state, and the digests of the open commands that led to it, sorted."""

    state: State
    used: tuple[int, ...] = ()


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
        wrong = [f"the reference model failed: {type(error).__name__}: {error}"]
    return verdict(len(operations) + sum(map(len, evidence.views.values())), wrong)


def _compare(
    operations: Sequence[Operation], evidence: Evidence, model: ReferenceModel
) -> list[str]:
    known = {d["_id"]: d["version"] for d in evidence.streams}
    by_stream = any(not isinstance(view, KeyedView) for view in evidence.service.views)
    shown = {d["_id"]: model.shown(d) for d in evidence.streams} if by_stream else {}
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
        ends = {c.first: c.last for c in made if c.events}
        last = max([known.get(stream, 0), *told.accepted])
        found = explain(stream, told, last, ends, model, shown.get(stream))
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
    told.open = list({o.id: o for o in calls if o.id not in answers}.values())
    return told, wrong


def explain(
    stream: str,
    told: Told,
    last: int,
    ends: Mapping[int, int],
    model: ReferenceModel,
    shown: State,
) -> Explained:
    """Apply the accepted commands in the order of their versions, up to ``last``.

    ``ends``: the last version of the commit that begins with a version; without an entry, that is
    the same. ``shown`` is what the view shows of the stream: if it is one of several possible
    states, it is taken.
    """
    maybe = Counter(digest(o.command) for o in told.open)
    commands = {digest(o.command): o.command for o in told.open}
    version, ways = 0, [Way(None)]
    states: dict[int, list[State]] = {0: [None]}
    while version < last:
        version = ends.get(version + 1, version + 1)
        known = told.accepted.get(version)
        if known is not None:
            ways = _distinct(_after(ways, known.command, model))
        else:
            ways = _distinct(_guessed(ways, maybe, commands, model))
        if not ways:
            asked = known or "none of the commands without an answer"
            return Explained(None, [f"{stream!r}: nothing explains version {version}: {asked}"])
        if len(ways) > MOST_WAYS:
            return Explained(
                None,
                [
                    f"{stream!r}: more than {MOST_WAYS:,} ways lead to version {version}: too many "
                    f"commands without an answer ({len(told.open):,})"
                ],
            )
        states[version] = [way.state for way in ways]
    finals = states[version]
    state = shown if shown is not None and shown in finals else finals[0]
    return Explained(state, [] if told.open else list(_unjust(told, states, model)))


def _after(ways: Iterable[Way], command: Command, model: ReferenceModel) -> Iterator[Way]:
    for state, used in ways:
        if (new := model.apply(state, command)) is not None:
            yield Way(new, used)


def _guessed(
    ways: Iterable[Way],
    maybe: Counter[int],
    commands: Mapping[int, Command],
    model: ReferenceModel,
) -> Iterator[Way]:
    """The ways on by one of the open commands; those with equal bodies are the same."""
    for way in ways:
        for body, command in commands.items():
            if way.used.count(body) < maybe[body]:
                for state, used in _after([way], command, model):
                    yield Way(state, tuple(sorted((*used, body))))


def _distinct(ways: Iterable[Way]) -> list[Way]:
    """Each once; a few more than ``MOST_WAYS`` are enough to know that there are too many."""
    found: dict[str, Way] = {}
    for way in ways:
        if len(found) > MOST_WAYS:
            break
        found[f"{way.used}{way.state}" if way.used else ""] = way  # one way at most uses none
    return list(found.values())


def _unjust(told: Told, states: Mapping[int, list[State]], model: ReferenceModel) -> Iterator[str]:
    """Refusals that the model does not know, and changes that it knows and nobody saw."""
    for operation in told.refused:
        assert operation.answer is not None
        version = operation.answer.version
        if version not in states:
            yield f"{operation} was refused at version {version}, which never was"
        elif operation.expected_version in (None, version) and all(
            model.apply(state, operation.command) is not None for state in states[version]
        ):
            yield f"{operation} was refused without a reason: {operation.answer.reason}"
    for operation in told.idle:
        assert operation.answer is not None
        known = states.get(operation.answer.version, [])
        if all(model.apply(state, operation.command) not in (None, state) for state in known):
            yield f"{operation} was accepted and changed nothing, which the model does not say"
