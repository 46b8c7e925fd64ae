"""One command, from its bytes to its commit: parse, validate, decide. Pure; writes nothing.

Whatever arrives gets a commit, so that no record can stop the others: what is not a command of
this schema parks its stream, what the rules forbid is refused with the reason.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from labkit.errors import DecodeError, Refused, Transient, said
from labkit.messages import (
    MAX_COMMAND_BYTES,
    Commit,
    Envelope,
    Outcome,
    ReleaseParked,
    digest,
    encode,
)
from labkit.ports.broker import Record
from labkit.ports.clock import Clock
from labkit.service import Service
from labkit.write.names import undecodable_id
from labkit.write.stream_state import MAX_WAITING, StreamState

#: Reasons repeat what was sent, and are kept with the stream.
MAX_REASON = 500
#: What Kafka is asked to take as one record (``max.message.bytes``), less room for its headers.
MAX_COMMIT_BYTES = 8_000_000

DAY_MS = 86_400_000
#: How far ahead a command may be scheduled.
MAX_AHEAD_MS = 366 * DAY_MS
#: One that its own instant has overtaken on the way is delivered at once, unless it is so old.
MAX_LATE_MS = DAY_MS

#: What may pass is tried again after 0.2 s, 0.4 s, ... (51 s in all), then the stream is parked.
FIRST_RETRY_MS = 200
MAX_TRIES = 8


class Arrival(Struct, frozen=True, gc=False):
    """One delivery of a command: ``polled`` is monotonic, ``wall`` Unix milliseconds.

    ``again``: this place in the log has its commit already (the group's offsets went back).
    """

    service: Service
    stream: StreamState
    key: str
    record: Record
    polled: int
    wall: int
    again: bool = False

    def commit(
        self,
        command: Envelope[Any] | None,
        outcome: Outcome,
        reason: str = "",
        **fields: Any,
    ) -> Commit[Any]:
        """A commit without events; the versions say that nothing happened."""
        version = self.stream.version
        return Commit(
            stream=self.key,
            id=command.id if command else undecodable_id(self.record),
            partition=self.record.partition,
            offset=self.record.offset,
            outcome=outcome,
            first=version + 1,
            last=version,
            reason=_printable(reason),
            correlation=command.correlation if command else "",
            intended=command.intended if command else 0,
            sent=command.sent if command else 0,
            polled=self.polled,
            at=self.wall,
            **fields,
        )


def decide(arrival: Arrival, clock: Clock) -> tuple[Commit[Any], bytes]:
    """The commit of one delivery with its JSON, folded into the stream's bookkeeping.

    The stream changes, so give a copy.
    """
    commit = _decide(arrival, clock)
    stream, service = arrival.stream, arrival.service
    try:
        value = encode(commit)
        if len(value) > MAX_COMMIT_BYTES:
            raise ValueError(f"its commit has {len(value)} bytes, at most {MAX_COMMIT_BYTES} fit")
        stream.take(commit, service.evolve)
    except Exception as bug:  # events that cannot be written or folded: the rule has a bug
        command = service.codec.decode_command(arrival.record.value)
        commit = _stuck(arrival, command, bug)
        value = encode(commit)
        stream.take(commit, service.evolve)
    return commit, value


def _decide(arrival: Arrival, clock: Clock) -> Commit[Any]:
    """The commit of one delivery: the first of these steps that has an answer gives it."""
    # 1. Parse.
    try:
        command = _parsed(arrival)
    except DecodeError as error:
        return _unreadable(arrival, str(error))
    return (
        # 2. Was it delivered, dropped or seen before?
        _known(arrival, command)
        # 3. Does something hold it up? 4. Is it for later?
        or _held_up(arrival, command)
        or _for_later(arrival, command)
        # 5. What does the rule say?
        or _ruled(arrival, command, clock)
    )


def _parsed(arrival: Arrival) -> Envelope[Any]:
    size = len(arrival.record.value)
    if size > MAX_COMMAND_BYTES:
        raise DecodeError(f"it has {size} bytes, at most {MAX_COMMAND_BYTES} fit")
    command = arrival.service.codec.decode_command(arrival.record.value)
    try:
        stream = command.body.stream
    except Exception as bug:  # a property of the command's own
        raise DecodeError(f"it names no stream: {said(bug)}") from bug
    if stream != arrival.key:
        raise DecodeError(f"it is for stream {stream!r}")
    return command


def _unreadable(arrival: Arrival, reason: str) -> Commit[Any]:
    """What is not a command of this schema parks its stream."""
    stream, offset = arrival.stream, arrival.record.offset
    if arrival.again:
        return _as_it_stands(arrival, None)
    if stream.dropping and offset == stream.head:
        return arrival.commit(None, "dropped", stream.parked)
    full = len(stream.held) >= MAX_WAITING and offset not in stream.held
    return arrival.commit(None, "refused" if full else "parked", reason)


def _known(arrival: Arrival, command: Envelope[Any]) -> Commit[Any] | None:
    """A second delivery, a dropped command, or a repeat, which gets the first answer.

    A used id does not fit another command.
    """
    stream, offset = arrival.stream, arrival.record.offset
    scheduled = offset in stream.scheduled
    known = stream.known(command.id)
    if arrival.again and (scheduled or offset in stream.held or known is None):
        return _as_it_stands(arrival, command)
    if stream.dropping and offset == stream.head:
        return arrival.commit(command, "dropped", digest=digest(command.body))
    if known is None or scheduled:
        return None
    answer, first = known
    body = digest(command.body)
    if first != body:
        if arrival.again:
            return _as_it_stands(arrival, command)
        reason = f"command id {command.id!r} was used for another command"
        return arrival.commit(command, "refused", reason, digest=body)
    return arrival.commit(command, "repeated", digest=body, repeats=answer)


def _held_up(arrival: Arrival, command: Envelope[Any]) -> Commit[Any] | None:
    """Nothing overtakes a command that is stuck, but for its release.

    What a process sends always has room: it would take a refusal for the word of a rule.
    """
    stream = arrival.stream
    if isinstance(command.body, ReleaseParked):
        return _release(arrival, command, digest(command.body))
    if not stream.held or arrival.record.offset in stream.held:
        return None
    body = digest(command.body)
    if len(stream.held) >= MAX_WAITING and not command.correlation:
        reason = f"{len(stream.held)} commands wait in this stream, no more fit"
        return arrival.commit(command, "refused", reason, digest=body)
    reason = f"waits behind the command at offset {stream.head}: {stream.parked or 'retried'}"
    return arrival.commit(command, "parked", reason, digest=body)


def _for_later(arrival: Arrival, command: Envelope[Any]) -> Commit[Any] | None:
    """A command whose instant has not come is scheduled, if the instant is reasonable."""
    if command.deliver_at is None:
        return None
    ahead, waiting = command.deliver_at - arrival.wall, arrival.stream.scheduled
    # A replay of one that was scheduled and got stuck early waits on, and is not judged again.
    judged = arrival.record.offset not in waiting and not command.correlation
    if judged and (no := _unreasonable(ahead, len(waiting))):
        reason = f"deliver_at {command.deliver_at} {no}"
        return arrival.commit(command, "refused", reason, digest=digest(command.body))
    if ahead > 0:
        body = digest(command.body)
        return arrival.commit(command, "scheduled", digest=body, due=command.deliver_at)
    return None


def _ruled(arrival: Arrival, command: Envelope[Any], clock: Clock) -> Commit[Any]:
    """The rule's answer: events, or a refusal with its reason."""
    stream, record, body = arrival.stream, arrival.record, digest(command.body)
    if stream.unfit:
        return arrival.commit(command, "parked", stream.unfit, digest=body)
    if command.expected_version not in (None, stream.version):
        reason = f"expected version {command.expected_version}, it is {stream.version}"
        return arrival.commit(command, "refused", reason, digest=body)
    try:
        command.body.validate()
        events = arrival.service.decide[type(command.body)](stream.state, command.body)
    except Refused as no:
        return arrival.commit(command, "refused", str(no), digest=body)
    except Exception as error:
        return _stuck(arrival, command, error)
    return Commit(
        stream=arrival.key,
        id=command.id,
        partition=record.partition,
        offset=record.offset,
        outcome="accepted",
        first=stream.version + 1,
        last=stream.version + len(events),
        events=events,
        correlation=command.correlation,
        digest=body,
        at=arrival.wall,
        intended=command.intended,
        sent=command.sent,
        polled=arrival.polled,
        decided=clock.now(),
    )


def _as_it_stands(arrival: Arrival, command: Envelope[Any] | None) -> Commit[Any]:
    """Of a command that has its commit, and whose answer is not at hand: change nothing."""
    stream, offset = arrival.stream, arrival.record.offset
    body = digest(command.body) if command else 0
    if offset in stream.held:
        retried = offset == stream.head and not stream.parked
        due = (stream.retry_at or arrival.wall) if retried else 0
        return arrival.commit(command, "parked", stream.parked or "waits", digest=body, due=due)
    if offset in stream.scheduled:
        return arrival.commit(command, "scheduled", digest=body, due=stream.scheduled[offset])
    return arrival.commit(command, "repeated", "it was answered before", digest=body)


def _release(arrival: Arrival, command: Envelope[Any], body: int) -> Commit[Any]:
    if not arrival.stream.parked:
        reason = f"stream {arrival.key!r} is not parked"
        return arrival.commit(command, "refused", reason, digest=body)
    if command.body.head not in (None, arrival.stream.head):
        reason = f"the command at offset {arrival.stream.head} is first, not {command.body.head}"
        return arrival.commit(command, "refused", reason, digest=body)
    release = "drop" if command.body.drop else "replay"
    return arrival.commit(command, "accepted", digest=body, release=release)


def _unreasonable(ahead_ms: int, waiting: int) -> str:
    if ahead_ms > MAX_AHEAD_MS:
        return f"is {ahead_ms // DAY_MS} days ahead, at most {MAX_AHEAD_MS // DAY_MS} are allowed"
    if ahead_ms < -MAX_LATE_MS:
        return f"was {-ahead_ms // DAY_MS} days ago"
    if ahead_ms > 0 and waiting >= MAX_WAITING:
        return f"must wait, and {waiting} commands of this stream do so already"
    return ""


def _stuck(arrival: Arrival, command: Envelope[Any], error: Exception) -> Commit[Any]:
    """What may pass is tried again; anything else is a bug in a rule and parks its stream."""
    stream, body = arrival.stream, digest(command.body)
    if isinstance(error, Transient):
        tries = stream.tries if arrival.record.offset == stream.head else 0
        if tries < MAX_TRIES:
            due = arrival.wall + FIRST_RETRY_MS * 2**tries
            return arrival.commit(command, "parked", f"tried again: {error}", digest=body, due=due)
        return arrival.commit(
            command, "parked", f"given up after {tries + 1} tries: {error}", digest=body
        )
    return arrival.commit(command, "parked", said(error), digest=body)


def _printable(reason: str) -> str:
    """Short, and without the half characters that no JSON can hold."""
    return reason[:MAX_REASON].encode("utf-8", "backslashreplace").decode()
