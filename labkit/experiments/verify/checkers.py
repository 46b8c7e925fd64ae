"""What must hold after any run, whatever broke in it: judged by what the clients saw.

A :class:`History` (``history.py``) records every operation as invoked -> ok, failed or **unknown**
(it may have happened). The checkers compare it with the log and the views::

    history = History(lab.bus)
    operation = history.send(PlaceOrder(...))      # and again, with the same id, if you like
    history.settle(timeout=30)
    verdicts = check_all(lab, history)             # at quiet: nothing is under way any more

========  ===========================================================================
C1        lost write: what was acknowledged is decided, what was accepted is visible
C2        duplicate: one effect a command id, one answer to all who asked
C3        aborted read: nobody was told what an aborted transaction had written
C6        versions: 1..n without gap; of two writers with one expected version one wins
C9        views: equal to an account that is made of commands and replies alone
C10       sessions: own writes, and never back (``sessions.py``)
C7, C8    what stock and bank promise (``invariants.py``)
C11       each process between streams ends, and compensates once (``invariants.py``)
========  ===========================================================================

C9 does not fold the log: a command handled twice would stand in the log twice, and a fold over it
would agree with the view. Its account (``accounts.py``) knows the business rules a second
time, in plain dicts, and nothing of events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import DecodeError, UsageError
from labkit.experiments.verify import invariants
from labkit.experiments.verify.history import Heard, History, Operation
from labkit.experiments.verify.reference_models import MODELS, ReferenceModel
from labkit.experiments.verify.verdict import Evidence, Verdict, verdict
from labkit.lab import Lab
from labkit.log.event_log import EventLog
from labkit.log.partition import read_partition
from labkit.messages import Answer, Commit, Token
from labkit.ports.store import Document
from labkit.services.services import CONTEXTS
from labkit.services.views import PROJECTIONS


def gather(lab: Lab, service: str = "orders") -> Evidence:
    """Read the log, the states and the views of a service."""
    source = lab.broker.source(lab.topic_name(f"{service}.events"))
    try:
        commits = list(EventLog(CONTEXTS[service], source).commits())
    finally:
        source.close()
    marks = {Heard.of(service, commit) for commit in commits}
    known: dict[str, int] = {}
    chain: list[Commit[Any]] = []
    misfits: list[tuple[Commit[Any], int]] = []
    for commit in commits:
        if commit.first == known.get(commit.stream, 0) + 1:
            known[commit.stream] = commit.last
            chain.append(commit)
        else:
            misfits.append((commit, known.get(commit.stream, 0)))
    return Evidence(
        service=service,
        commits=commits,
        chain=chain,
        misfits=misfits,
        checkpoints=[c for c in lab.positions.checkpoints() if c.id.startswith(f"{service}.")],
        states={d["_id"]: d for d in lab.store.find(CONTEXTS[service].states, {})},
        views={name: lab.store.find(lab.where(name), {}) for name in PROJECTIONS[service].indexes},
        lag={role: lab.lag(role, service) for role in ("handler", "projector")},
        aborted=[written for written in _written(lab, service) if written not in marks],
    )


def _written(lab: Lab, service: str) -> Iterable[Heard]:
    """Every commit of the topic, those of open and aborted transactions too."""
    source = lab.broker.source(lab.topic_name(f"{service}.events"), uncommitted=True)
    try:
        for partition in sorted(source.ends()):
            for records in read_partition(source, partition):
                for record in records:
                    with suppress(DecodeError):
                        yield Heard.of(service, CONTEXTS[service].codec.decode_commit(record.value))
    finally:
        source.close()


def check_all(lab: Lab, history: History, service: str = "orders") -> dict[str, Verdict]:
    """All checkers of a service, at quiet: every operation has settled, the workers caught up.

    Raises ``UsageError`` for a service that nobody keeps an account of.
    """
    return check(gather(lab, service), history)


def check(evidence: Evidence, history: History) -> dict[str, Verdict]:
    """All checkers of the service that the evidence is about."""
    service = evidence.service
    mine = [o for o in history if type(o.command) in CONTEXTS[service].decide]
    found = {
        "C1": lost_writes(mine, evidence, [t for t in history.raw if t.service == service]),
        "C2": duplicates(mine, evidence),
        "C3": aborted_reads(history.heard, evidence),
        "C6": versions(mine, evidence),
        "C9": views(mine, evidence),
    }
    if service == "inventory":
        found["C7"] = invariants.stock(mine, evidence)
    if service == "bank":
        found["C8"] = invariants.bank(mine, evidence)
    return found


#: What each checker stands for, in a few words.
MEANINGS = {
    "C1": "no write is lost",
    "C2": "nothing takes effect twice",
    "C3": "nothing aborted was seen",
    "C6": "versions without gap, one winner",
    "C7": "stock adds up",
    "C8": "money adds up",
    "C9": "views equal an independent account",
    "C10": "readers see what they were promised",
    "C11": "processes end, and compensate once",
}


# --- C1


def lost_writes(
    operations: list[Operation], evidence: Evidence, raw: Sequence[Token] = ()
) -> Verdict:
    """What was acknowledged has its commit; what was accepted is in states and views.

    ``raw`` are places of acknowledged records that are no operations: they have a commit, too.
    """
    wrong: list[str] = []
    service = CONTEXTS[evidence.service]
    # A repeat without an answer is a second delivery, longer ago than is remembered.
    told = [c for c in evidence.commits if c.outcome != "repeated" or c.repeats is not None]
    by_place = {(c.partition, c.offset): c for c in told}
    misfits = {(c.partition, c.offset) for c, _ in evidence.misfits}
    shown = _versions(evidence.views[PROJECTIONS[evidence.service].streams])
    for operation in operations:
        if operation.token is None:
            continue
        place = (operation.token.partition, operation.token.offset)
        commit = by_place.get(place)
        if commit is None or commit.id != operation.id:
            wrong.append(f"{operation} was acknowledged at {place} and has no commit")
            continue
        if place in misfits:
            wrong.append(f"{operation} was decided, and readers ignore its commit")
        if (answer := operation.answer) is None:
            continue
        if answer != commit.answer:
            wrong.append(f"{operation} was told {answer}, its commit says {commit.answer}")
        if answer.accepted and shown.get(operation.command.stream, 0) < answer.version:
            wrong.append(f"{operation} was accepted, and the view does not show it")
    wrong += [
        f"what was sent raw was acknowledged at {place} and has no commit"
        for _, *place in raw
        if tuple(place) not in by_place
    ]
    ignored = sum(c.ignored for c in evidence.checkpoints)
    if ignored or evidence.misfits:
        wrong.append(f"readers ignored {ignored} commits, {len(evidence.misfits)} do not fit")
    if parked := sum(c.parked for c in evidence.checkpoints):
        wrong.append(f"readers hold {parked} streams back")
    wrong += [f"the {role} is {lag} offsets behind" for role, lag in evidence.lag.items() if lag]
    stored = 0
    for checkpoint in evidence.checkpoints:
        reader, _, partition = checkpoint.id.rpartition(":")
        mine = [c for c in evidence.chain if c.partition == int(partition)]
        if reader.partition("@")[0] == PROJECTIONS[evidence.service].name:
            newest = max((c.offset for c in mine), default=-1)
            if checkpoint.command != newest:
                wrong.append(f"the view says command {checkpoint.command}, it is {newest}")
        elif reader == service.states:
            reached = {c.stream: c.last for c in mine if c.offset <= checkpoint.command}
            for stream, version in reached.items():
                stored += 1
                if evidence.states.get(stream, {}).get("version") != version:
                    wrong.append(f"the stored state of {stream!r} is not of version {version}")
    return verdict(len(operations) + len(raw) + stored + len(evidence.checkpoints), wrong)


# --- C2


def duplicates(operations: list[Operation], evidence: Evidence) -> Verdict:
    """A command id is decided once, its events appear once, and all repeats get one answer."""
    wrong: list[str] = []
    decided: dict[tuple[str, int], Commit[Any]] = {}  # another body under a used id is refused
    newest: dict[tuple[str, int], Answer] = {}
    for commit in evidence.chain:
        body = commit.id, commit.digest
        if commit.outcome == "repeated":
            if commit.repeats not in (None, newest.get(body)):
                wrong.append(f"{commit.id!r}: a repeat was answered unlike the first")
            continue
        if commit.outcome != "parked":
            newest[body] = commit.answer
        if commit.final:
            first = decided.setdefault(body, commit)
            # Refused twice alike is no effect: a zombie's refusal may fit by its version.
            if commit is not first and (commit.events or commit.answer != first.answer):
                wrong.append(
                    f"{commit.id!r} was decided twice: {first.answer}, then {commit.answer}"
                )
    answers: dict[str, Answer] = {}
    for operation in operations:
        if operation.answer is not None and operation.answer.final:
            first_answer = answers.setdefault(operation.id, operation.answer)
            if operation.answer != first_answer:
                wrong.append(f"{operation} was told {operation.answer}, before that {first_answer}")
    return verdict(len(evidence.chain) + len(answers), wrong)


# --- C3


def aborted_reads(heard: list[Heard], evidence: Evidence) -> Verdict:
    """Whatever a client heard, and whatever a view shows, stands in the log for good."""
    committed = {Heard.of(evidence.service, commit) for commit in evidence.commits}
    mine = [mark for mark in heard if mark.token.service == evidence.service]
    wrong = [
        f"{mark.id!r} at {mark.token} was told {mark.answer}, which no committed record says"
        for mark in mine
        if mark not in committed
    ]
    traces = {(m.token.partition, m.token.offset, m.mark) for m in committed}
    shown = [d for d in evidence.views[PROJECTIONS[evidence.service].streams] if "trace" in d]
    for document in shown:
        t = document["trace"]
        if (t["partition"], t["command"], (t["polled"], t["decided"])) not in traces:
            wrong.append(f"the view of {document['_id']!r} shows what no committed record says")
    return verdict(len(committed) + len(mine) + len(shown) + len(evidence.aborted), wrong)


# --- C6


def versions(operations: list[Operation], evidence: Evidence) -> Verdict:
    """The versions of a stream are 1..n; an expected version is met or refused."""
    wrong = [
        f"{c.stream!r}: a commit of {c.id!r} starts at version {c.first}, after {known}"
        for c, known in evidence.misfits
    ]
    wrong += [
        f"{c.stream!r}: {len(c.events)} events take the versions {c.first} to {c.last}"
        for c in evidence.commits
        if c.last - c.first + 1 != len(c.events)
    ]
    firsts = {c.id: c.first for c in evidence.chain if c.outcome == "accepted"}
    winners: dict[tuple[str, int], Operation] = {}
    for operation in operations:
        if operation.answer is None or not operation.answer.accepted:
            continue
        stream, version = operation.command.stream, operation.answer.version
        other = winners.setdefault((stream, version), operation)
        if other.id != operation.id:
            wrong.append(f"{stream!r}: both {other} and {operation} made version {version}")
        expected = operation.expected_version
        if expected is not None and expected + 1 != firsts.get(operation.id, version):
            wrong.append(f"{operation} expected version {expected} and made {version}")
    return verdict(len(evidence.commits) + len(winners), wrong)


# --- C9


def views(operations: list[Operation], evidence: Evidence) -> Verdict:
    """The views equal the account; every reply is one that the account can explain."""
    if (account := MODELS.get(evidence.service)) is None:
        raise UsageError(
            f"no account is kept of service {evidence.service!r}; there are: {', '.join(MODELS)}"
        )
    shown = {d["_id"]: d for d in evidence.views[PROJECTIONS[evidence.service].streams]}
    wrong: list[str] = []
    streams: dict[str, Document] = {}
    by_stream: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.status != "failed":
            by_stream.setdefault(operation.command.stream, []).append(operation)
    for stream, calls in by_stream.items():
        told = _told(stream, calls, wrong)
        final = _explain(stream, told, account, shown.get(stream), wrong)
        if final is not None:
            streams[stream] = final
    wrong += account.compare(streams, evidence.views)
    return verdict(len(operations) + sum(map(len, evidence.views.values())), wrong)


class _Told(Struct):
    """What the clients were told of one stream."""

    accepted: dict[int, Operation] = msgspec.field(default_factory=dict)
    refused: list[Operation] = msgspec.field(default_factory=list)
    open: list[Operation] = msgspec.field(default_factory=list)


def _told(stream: str, calls: list[Operation], wrong: list[str]) -> _Told:
    """One operation for each command id, by its answer: repeats tell nothing new."""
    told = _Told()
    answers: dict[str, Answer] = {}
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
        elif answer.version in told.accepted:
            wrong.append(f"{stream!r}: version {answer.version} was told to two commands")
        else:
            told.accepted[answer.version] = operation
    # A parked or scheduled command is still to come, and one without an answer may have happened.
    told.open = list({o.id: o for o in calls if o.id not in answers}.values())
    return told


def _explain(
    stream: str, told: _Told, account: ReferenceModel, shown: Document | None, wrong: list[str]
) -> Document | None:
    """The stream as it must be: the accepted commands in the order of their versions.

    Where there is no answer for a version, one of the open operations must have made it. All
    ways are followed; ``shown``, the view's document, says how far the open ones went after the
    last answer, and which way it was, if it was one of them.
    """
    last = max([0, *told.accepted, shown["version"] if shown else 0])
    ways: list[tuple[Document | None, frozenset[str]]] = [(None, frozenset())]
    states: list[list[Document | None]] = [[None]]
    for version in range(1, last + 1):
        known = told.accepted.get(version)
        if known and len(ways) == 1:  # the usual case, and streams may be long
            state, used = ways[0]
            if (new := account.apply(state, known.command)) is None:
                wrong.append(f"{stream!r}: nothing explains version {version}: {known}")
                return None
            ways = [(new, used)]
            states.append([new])
            continue
        following: dict[str, tuple[Document | None, frozenset[str]]] = {}
        for state, used in ways:
            for operation in [known] if known else told.open:
                if operation.id not in used and (new := account.apply(state, operation.command)):
                    way = (new, used | {operation.id})
                    following[f"{sorted(way[1])}{new}"] = way
        if not following:
            asked = known if known else "none of the commands without an answer"
            wrong.append(f"{stream!r}: nothing explains version {version}: {asked}")
            return None
        ways = list(following.values())
        states.append([state for state, _ in ways])
    if not told.open:
        wrong += _unjust(told.refused, states, account)
    finals = [state for state, _ in ways]
    return account.shown(shown) if shown and account.shown(shown) in finals else finals[0]


def _unjust(
    refused: list[Operation], states: list[list[Document | None]], account: ReferenceModel
) -> Iterable[str]:
    for operation in refused:
        assert operation.answer is not None
        version = operation.answer.version
        if version >= len(states):
            yield f"{operation} was refused at version {version}, which never was"
        elif operation.expected_version in (None, version) and all(
            account.apply(state, operation.command) is not None for state in states[version]
        ):
            yield f"{operation} was refused without a reason: {operation.answer.reason}"


def _versions(documents: list[Document]) -> dict[str, int]:
    return {d["_id"]: d["version"] for d in documents}


__all__ = [
    "Evidence",
    "History",
    "Operation",
    "Verdict",
    "aborted_reads",
    "check",
    "check_all",
    "duplicates",
    "gather",
    "lost_writes",
    "versions",
    "views",
]
