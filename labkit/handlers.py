"""The command handler: a numbered recipe, and at the end the routing table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from msgspec import Struct, structs

from labkit import eventlog
from labkit.bookkeeping import Stream
from labkit.crashonly import CrashOnly
from labkit.domain import catalog, orders
from labkit.errors import DecodeError, Refused, UsageError
from labkit.failpoints import Failpoint, hit
from labkit.messages import Answer, Codec, Command, Commit, Decisions, Envelope, Event, encode
from labkit.ports import Checkpoint, Clock, CommandLog, Record, Store, SystemClock, Writes

#: Reasons repeat what was sent, and are kept with the stream.
MAX_REASON = 500


class Context:
    """One bounded context: its messages, its decisions, its fold.

    ``fold`` is the schema version of the state; raising it makes handlers fold anew from the log.
    """

    def __init__(
        self,
        name: str,
        commands: Any,
        events: Any,
        state: type[Struct],
        decide: Decisions,
        evolve: Callable[[Any, Event], Any],
        fold: int = 1,
    ) -> None:
        if set(get_args(commands)) != set(decide):
            odd = sorted(c.__name__ for c in set(get_args(commands)) ^ set(decide))
            raise UsageError(f"context {name!r}: not exactly one decision for {', '.join(odd)}")
        self.name = name
        self.decide = decide
        self.evolve = evolve
        self.state = state
        self.codec = Codec(commands, events)
        self.states = f"{name}.state.v{fold}"
        self.checkpoints = f"{name}.checkpoints"

    def checkpoint(self, partition: int) -> str:
        """The id of the handler's checkpoint."""
        return f"{self.states}:{partition}"


class Handler(CrashOnly):
    """Handles the commands of one context.

    ``batch_size`` commands at most go into one transaction. Changed states are flushed when
    ``flush_streams`` of them have gathered, or after ``flush_seconds``; ``max_streams`` clean ones
    stay in memory.
    """

    def __init__(
        self,
        context: Context,
        log: CommandLog,
        store: Store,
        clock: Clock | None = None,
        *,
        batch_size: int = 4_000,
        flush_streams: int = 2_000,
        flush_seconds: float = 0.2,
        max_streams: int = 100_000,
    ) -> None:
        self.context = context
        self.ignored = 0
        self._log = log
        self._events = log.events()
        self._store = store
        self._clock = clock or SystemClock()
        self._batch_size = batch_size
        self._flush_streams = flush_streams
        self._flush_seconds = flush_seconds
        self._max_streams = max_streams
        self._streams: dict[str, Stream] = {}
        self._dirty: dict[str, None] = {}
        self._checkpoints: dict[int, Checkpoint] = {}
        self._reached: dict[int, Checkpoint] = {}
        self._flushed = time.monotonic()

    def step(self, timeout: float = 0.5) -> list[Commit[Any]]:
        """One batch: poll, decide, commit once. Returns the commits, in the order of the log.

        Raises ``Fenced`` if an earlier step failed.
        """
        with self.unbroken():
            return self._step(timeout)

    def _step(self, timeout: float) -> list[Commit[Any]]:
        # 1. Poll, and take over or give up partitions.
        batch = self._log.poll(self._batch_size, timeout)
        polled = self._clock.now()
        self._give_up(batch.revoked)
        self._take_over(batch.assigned)
        if not batch.records:
            self._flush_if_due()
            return []
        hit(Failpoint.HANDLER_POLLED)

        # 2. Bring the states of cold streams, in one look-up.
        keys = {(_text(record.key), record.partition) for record in batch.records}
        self._load(keys)

        # 3. Decide one after the other; each sees what those before it in the batch did.
        work: dict[str, Stream] = {}
        commits = [self._handle(record, work, polled) for record in batch.records]
        hit(Failpoint.HANDLER_DECIDED)

        # 4. Commits and command offsets in one transaction: all, or nothing.
        ends = self._log.commit(
            batch,
            [
                Record(record.partition, 0, record.key, encode(commit))
                for record, commit in zip(batch.records, commits, strict=True)
            ],
        )
        hit(Failpoint.HANDLER_COMMITTED)

        # 5. Only now may memory change.
        for key, stream in work.items():
            self._streams[key] = stream
            self._dirty[key] = None
        for partition, end in ends.items():
            command = batch.positions[partition] - 1
            self._reached[partition] = structs.replace(
                self._reached[partition], position=end, command=command
            )
        # 6. Now and then, save the changed states with the checkpoint.
        self._flush_if_due()
        return commits

    def join(self, partitions: int) -> None:
        """Own ``partitions`` before the first step: for those who step by hand."""
        self._take_over(eventlog.join(self._log, partitions))

    def close(self) -> None:
        """Leave the group. Nothing is saved on the way out: crash-only."""
        self._events.close()
        self._log.close()

    # --- one command

    def _handle(self, record: Record, work: dict[str, Stream], polled: int) -> Commit[Any]:
        key = _text(record.key)
        if (stream := work.get(key)) is None:
            stream = work[key] = self._streams[key].copy()
        commit = self._decide(key, record, stream, polled)
        stream.take(commit, self.context.evolve)
        return commit

    def _decide(self, key: str, record: Record, stream: Stream, polled: int) -> Commit[Any]:
        at = (key, record.partition, record.offset)
        try:
            command = self.context.codec.decode_command(record.value)
            if command.body.stream != key:
                raise DecodeError(f"it is for stream {command.body.stream!r}")
        except DecodeError as error:
            return self._nothing(at, None, stream, polled, "parked", str(error))
        if (first := stream.seen.get(command.id)) is not None:
            return self._nothing(at, command, stream, polled, "repeated", "", first)
        if stream.parked:
            return self._nothing(at, command, stream, polled, "parked", stream.parked)
        if command.expected_version not in (None, stream.version):
            reason = f"expected version {command.expected_version}, it is {stream.version}"
            return self._nothing(at, command, stream, polled, "refused", reason)
        try:
            events = self.context.decide[type(command.body)](stream.state, command.body)
        except Refused as no:
            return self._nothing(at, command, stream, polled, "refused", str(no))
        except Exception as bug:  # a bug in a rule parks its stream, it does not stop the others
            reason = f"{type(bug).__name__}: {bug}"
            return self._nothing(at, command, stream, polled, "parked", reason)
        return Commit(
            stream=key,
            id=command.id,
            partition=record.partition,
            offset=record.offset,
            outcome="accepted",
            first=stream.version + 1,
            last=stream.version + len(events),
            events=events,
            intended=command.intended,
            sent=command.sent,
            polled=polled,
            decided=self._clock.now(),
        )

    def _nothing(
        self,
        at: tuple[str, int, int],
        command: Envelope[Any] | None,
        stream: Stream,
        polled: int,
        outcome: Any,
        reason: str,
        repeats: Answer | None = None,
    ) -> Commit[Any]:
        """A commit without events; the versions say that nothing happened."""
        return Commit(
            stream=at[0],
            id=command.id if command else f"undecodable:{at[1]}:{at[2]}",
            partition=at[1],
            offset=at[2],
            outcome=outcome,
            first=stream.version + 1,
            last=stream.version,
            reason=reason[:MAX_REASON],
            repeats=repeats,
            intended=command.intended if command else 0,
            sent=command.sent if command else 0,
            polled=polled,
            decided=self._clock.now(),
        )

    # --- states and checkpoints

    def _load(self, keys: Iterable[tuple[str, int]]) -> None:
        cold = {key: partition for key, partition in keys if key not in self._streams}
        found = self._store.load(self.context.states, cold)
        for key, partition in cold.items():
            document = found.get(key)
            self._streams[key] = (
                Stream.load(document, self.context.state) if document else Stream(partition)
            )

    def _flush_if_due(self) -> None:
        late = time.monotonic() - self._flushed >= self._flush_seconds
        if self._dirty and (late or len(self._dirty) >= self._flush_streams):
            self._flush()

    def flush(self) -> None:
        """Save the changed states and the checkpoints in one transaction, under the epoch."""
        with self.unbroken():
            self._flush()

    def _flush(self) -> None:
        hit(Failpoint.HANDLER_FLUSHING)
        writes = Writes({self.context.states: []}, {self.context.states: []})
        for key in self._dirty:
            stream = self._streams[key]
            into = writes.replaces if stream.stored else writes.inserts
            into[self.context.states].append(stream.document(key))
        moves = [
            (old, self._reached[partition])
            for partition, old in self._checkpoints.items()
            if old != self._reached[partition]
        ]
        self._store.advance(self.context.checkpoints, moves, writes)
        hit(Failpoint.HANDLER_FLUSHED)
        self._checkpoints = dict(self._reached)
        for key in self._dirty:
            self._streams[key].stored = True
        self._dirty.clear()
        self._flushed = time.monotonic()
        # Everything is clean now, so the oldest may go.
        for key in list(self._streams)[: max(0, len(self._streams) - self._max_streams)]:
            del self._streams[key]

    def _give_up(self, partitions: frozenset[int]) -> None:
        if not partitions:
            return
        for partition in partitions:
            self._checkpoints.pop(partition, None)
            self._reached.pop(partition, None)
        self._streams = {k: s for k, s in self._streams.items() if s.partition not in partitions}
        self._dirty = {k: None for k in self._dirty if k in self._streams}

    def _take_over(self, partitions: frozenset[int]) -> None:
        self._give_up(partitions)
        for partition in sorted(partitions):
            self._recover(partition)

    def _recover(self, partition: int) -> None:
        """Claim a partition, then replay what came after its checkpoint."""
        checkpoint = self._store.claim(self.context.checkpoints, self.context.checkpoint(partition))
        hit(Failpoint.HANDLER_CLAIMED)
        self._checkpoints[partition] = self._reached[partition] = checkpoint
        # This fetches the group's offset and waits for a predecessor's pending one; only after
        # that does the high watermark cover all that the predecessor committed.
        self._log.start(partition)
        for records in eventlog.read(self._events, partition, checkpoint.position):
            self._replay(partition, records)

    def _replay(self, partition: int, records: Sequence[Record]) -> None:
        self._load({(_text(record.key), partition) for record in records})
        reached = self._reached[partition]
        ignored = reached.ignored
        for record in records:
            try:
                commit = self.context.codec.decode_commit(record.value)
            except DecodeError:
                commit = None
            stream = self._streams[_text(record.key)]
            if commit is None or commit.first != stream.version + 1:
                ignored += 1
                continue
            stream.take(commit, self.context.evolve)
            self._dirty[commit.stream] = None
            reached = structs.replace(reached, command=max(reached.command, commit.offset))
        self._reached[partition] = structs.replace(
            reached, position=records[-1].offset + 1, ignored=ignored
        )
        self.ignored += ignored - reached.ignored
        self._flush_if_due()


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


# --- The routing table: which context decides on which command, and how.

CONTEXTS: dict[str, Context] = {
    context.name: context
    for context in (
        Context(
            "orders",
            commands=orders.COMMANDS,
            events=orders.EVENTS,
            state=orders.Order,
            decide=orders.DECIDE,
            evolve=orders.evolve,
        ),
        Context(
            "catalog",
            commands=catalog.COMMANDS,
            events=catalog.EVENTS,
            state=catalog.Entry,
            decide=catalog.DECIDE,
            evolve=catalog.evolve,
        ),
    )
}


def route(contexts: Iterable[Context]) -> dict[type[Command], Context]:
    """Which context a command goes to; a command that two of them claim is refused at start."""
    routes: dict[type[Command], Context] = {}
    for context in contexts:
        for command in context.decide:
            if command in routes:
                raise UsageError(
                    f"{command.__name__} is claimed by {routes[command].name!r} "
                    f"and by {context.name!r}; leave it to one of them"
                )
            routes[command] = context
    return routes


ROUTES = route(CONTEXTS.values())
