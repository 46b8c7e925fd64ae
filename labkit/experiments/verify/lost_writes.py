"""C1: no write is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.verdict import Verdict, verdict
from labkit.messages import Token
from labkit.ports.store import Checkpoint
from labkit.service import Operation


def lost_writes(
    operations: Sequence[Operation], evidence: Evidence, raw: Sequence[Token] = ()
) -> Verdict:
    """What was acknowledged has its commit; what was accepted is in states and views.

    ``raw`` are places of acknowledged records that are no operations: they have a commit, too.
    """
    wrong = [*_without_a_commit(operations, evidence, raw), *_not_shown(operations, evidence)]
    wrong += [*_held_back(evidence), *_views_behind(evidence)]
    wrong += _stale_states(evidence)
    checked = len(operations) + len(raw) + len(evidence.saved) + len(evidence.checkpoints)
    return verdict(checked, wrong)


def _without_a_commit(
    operations: Sequence[Operation], evidence: Evidence, raw: Sequence[Token]
) -> Iterator[str]:
    # A repeat without an answer is a second delivery, longer ago than is remembered.
    told = [c for c in evidence.commits if c.outcome != "repeated" or c.repeats is not None]
    by_place = {(c.partition, c.offset): c for c in told}
    misfits = {(c.partition, c.offset) for c, _ in evidence.misfits}
    for operation in operations:
        if operation.token is None:
            continue
        place = (operation.token.partition, operation.token.offset)
        commit = by_place.get(place)
        if commit is None or commit.id != operation.id:
            yield f"{operation} was acknowledged at {place} and has no commit"
            continue
        if place in misfits:
            yield f"{operation} was decided, and readers ignore its commit"
        if operation.answer not in (None, commit.answer):
            yield f"{operation} was told {operation.answer}, its commit says {commit.answer}"
    for _, *rest in raw:
        if tuple(rest) not in by_place:
            yield f"what was sent raw was acknowledged at {rest} and has no commit"


def _not_shown(operations: Sequence[Operation], evidence: Evidence) -> Iterator[str]:
    if not evidence.service.views:
        return
    shown = {d["_id"]: d["version"] for d in evidence.streams}
    for operation in operations:
        answer = operation.answer
        if answer and answer.accepted and shown.get(operation.command.stream, 0) < answer.version:
            yield f"{operation} was accepted, and the view does not show it"


def _held_back(evidence: Evidence) -> Iterator[str]:
    ignored = sum(c.ignored for c in evidence.checkpoints)
    if ignored or evidence.misfits:
        yield f"readers ignored {ignored} commits, {len(evidence.misfits)} do not fit"
    unread = Counter(p for p, _ in {(c.partition, c.stream) for c in evidence.unread})
    for checkpoint in evidence.checkpoints:
        reader, partition = _reader(checkpoint)
        may = unread[partition] if reader == evidence.service.view else 0
        if checkpoint.parked != may:
            unknown = f"; {may} have events that this code does not know" if may else ""
            yield f"{checkpoint.id} holds {checkpoint.parked} streams back{unknown}"
    for role, lag in evidence.lag.items():
        if lag:
            yield f"the {role} is {lag} offsets behind"


def _views_behind(evidence: Evidence) -> Iterator[str]:
    newest: dict[int, int] = {}
    for commit in evidence.chain:
        if commit in evidence.unread:
            continue
        newest[commit.partition] = max(newest.get(commit.partition, -1), commit.offset)
    for checkpoint in evidence.checkpoints:
        reader, partition = _reader(checkpoint)
        last = newest.get(partition, -1)
        if reader == evidence.service.view and checkpoint.command != last:
            yield f"the view says command {checkpoint.command}, it is {last}"


def _reader(checkpoint: Checkpoint) -> tuple[str, int]:
    """Whose it is, whatever the generation, and of which partition."""
    reader, _, partition = checkpoint.id.rpartition(":")
    return reader.partition("@")[0], int(partition)


def _stale_states(evidence: Evidence) -> Iterator[str]:
    """Stored states that are not what the log says up to their checkpoint."""
    for stream, version in evidence.saved.items():
        if evidence.states.get(stream, {}).get("version") != version:
            yield f"the stored state of {stream!r} is not of version {version}"
