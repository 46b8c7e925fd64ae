"""The command handler: a numbered recipe."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import stamina
from msgspec import Struct, structs

from labkit.errors import DecodeError, Unreachable
from labkit.log.crash_only import CrashOnly
from labkit.log.partition import STRETCH, fetch_records, join_group, read_partition
from labkit.log.snapshots import Snapshots
from labkit.messages import MAX_ID, Commit
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, CommandLog, Record, Source
from labkit.ports.clock import Clock, SystemClock
from labkit.ports.executor import AtOnce
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Checkpoint, Store, Writes
from labkit.service import Service
from labkit.write.decisions import Arrival, decide
from labkit.write.stream_state import StreamState
from labkit.write.timers import Timers

#: Each takes a seek; so many of them take far less than the clients' poll interval.
MAX_STRETCHES = 200


#: Made once: for a single command it takes a tenth of a millisecond less than a retry made anew.
PATIENTLY = stamina.RetryingCaller(attempts=3, wait_initial=0.1).on(Unreachable)


class Recovered(Struct, frozen=True):
    """What taking a partition over took: the commits replayed since the checkpoint."""

    partition: int
    commits: int
    seconds: float


class Handler(CrashOnly):
    """Handles the commands of one service.

    ``batch_size`` commands at most go into one transaction; who can wait gathers them for
    ``linger`` seconds. Changed states are flushed when ``flush_streams`` of them have gathered, or
    after ``flush_seconds``; ``max_streams`` clean ones stay in memory. With ``save_in_background``
    a thread writes them while the next batch is decided. Each ``snapshot_every`` versions a stream
    gets a snapshot (0: never). ``report`` is told what each take-over took.
    """

    def __init__(
        self,
        service: Service,
        log: CommandLog,
        store: Store,
        clock: Clock | None = None,
        *,
        batch_size: int = 4_000,
        linger: float = 0.0,
        flush_streams: int = 2_000,
        flush_seconds: float = 0.2,
        max_streams: int = 100_000,
        snapshot_every: int = 1_000,
        save_in_background: bool = False,
        report: Callable[[Recovered], None] = lambda _: None,
    ) -> None:
        self.service = service
        self.ignored = 0
        self._log = log
        self._events = log.events()
        self._commands: Source | None = None
        self._store = store
        self._clock = clock or SystemClock()
        self._batch_size = batch_size
        self._linger = linger
        self._flush_streams = flush_streams
        self._flush_seconds = flush_seconds
        self._max_streams = max_streams
        self._report = report
        self._streams: dict[str, StreamState] = {}
        self._dirty: dict[str, None] = {}
        self._snapshots = Snapshots(snapshot_every)
        self._agenda = Timers()
        self._checkpoints: dict[int, Checkpoint] = {}
        self._reached: dict[int, Checkpoint] = {}
        self._flushed = time.monotonic()
        self._saver: Executor = ThreadPoolExecutor(1, "saver") if save_in_background else AtOnce()
        self._saving: tuple[Future[None], dict[int, Checkpoint]] | None = None

    def step(self, timeout: float = 0.5) -> list[Commit[Any]]:
        """One batch: poll, decide, commit once. Returns the commits, in the order of the log.

        Raises ``Fenced`` if an earlier step failed.
        """
        with self.unbroken():
            return self._step(timeout)

    def _step(self, timeout: float) -> list[Commit[Any]]:
        # 1. Poll, and take over or give up partitions.
        batch = self._gather(timeout)
        polled, wall = self._clock.now(), self._clock.wall()

        # 2. Bring what has waited and is due, and the states of cold streams, in one look-up.
        arrived = list(zip(self._streams_of(batch.records), batch.records, strict=True))
        due = self._due(wall)
        work = self._load((key, record.partition) for key, record in arrived)
        if not arrived and not due:
            self._flush_if_due()
            return []
        hit(Failpoint.HANDLER_POLLED)

        # 3. Decide one after the other; each sees what those before it in the batch did.
        made = [
            self._handle(key, record, work, polled, wall)
            for key, record in due
            if self._working(work, key).may_go(record.offset, wall)
        ]
        answered = {partition: at.command for partition, at in self._reached.items()}
        for key, record in arrived:
            again = record.offset <= answered[record.partition]
            made.append(self._handle(key, record, work, polled, wall, again))
        hit(Failpoint.HANDLER_DECIDED)

        # 4. Commits and command offsets in one transaction: all, or nothing.
        ends = self._log.commit(batch, [record for _, record in made])
        hit(Failpoint.HANDLER_COMMITTED)

        # 5. Only now may memory change; the streams used last come last.
        for key, stream in work.items():
            self._streams.pop(key, None)
            self._streams[key] = stream
            self._dirty[key] = None
        for key in {c.stream for c, _ in made if not c.final or c.release} | {k for k, _ in due}:
            self._agenda.note(work[key].next_due(), work[key].partition, key)
        self._snapshots.settle((commit for commit, _ in made), self._reached)
        for partition, position in batch.positions.items():
            command = max(position - 1, self._reached[partition].command)
            self._reach(partition, command=command)
        for partition, end in ends.items():
            self._reach(partition, position=end)

        # 6. Now and then, save the changed states with the checkpoint.
        self._flush_if_due()
        return [commit for commit, _ in made]

    def join(self, partitions: int) -> None:
        """Own ``partitions`` before the first step: for those who step by hand."""
        self._take_over(join_group(self._log, partitions))

    def close(self) -> None:
        """Leave the group. Nothing is saved on the way out: crash-only."""
        self._saver.shutdown()
        if self._commands is not None:
            self._commands.close()
        self._events.close()
        self._log.close()

    # --- one command

    def _streams_of(self, records: Sequence[Record]) -> list[str]:
        """The stream that each is about: its key, if it can be one and lies where it belongs.

        Anything else gets a name of its own, which no key can have, so that whoever sent it cannot
        get into the way of others.
        """
        keys = [_id(record.key) for record in records]
        homes = {key: s.partition for key in keys if (s := self._streams.get(key)) is not None}
        new = [key for key in dict.fromkeys(keys) if key and key not in homes]
        homes |= zip(new, self._log.partitions_for([key.encode() for key in new]), strict=True)
        return [
            key if homes.get(key) == record.partition else _nameless(record)
            for key, record in zip(keys, records, strict=True)
        ]

    def _working(self, work: dict[str, StreamState], key: str) -> StreamState:
        """A stream as a copy that this batch may change."""
        if (stream := work.get(key)) is None:
            stream = work[key] = self._streams[key].copy()
        return stream

    def _handle(
        self,
        key: str,
        record: Record,
        work: dict[str, StreamState],
        polled: int,
        wall: int,
        again: bool = False,
    ) -> tuple[Commit[Any], Record]:
        stream = self._working(work, key)
        arrival = Arrival(self.service, stream, key, record, polled, wall, again)
        commit, value = decide(arrival, self._clock)
        # Most streams never grow so long, and a call costs more than the comparison.
        if commit.last >= self._snapshots.every and self._snapshots.due(commit):
            self._snapshots.draft(commit, stream)
        return commit, Record(record.partition, 0, key.encode(), value)

    # --- what to work on

    def _gather(self, timeout: float) -> Batch:
        """Poll until there is something; then, for ``linger`` seconds, until the batch is full."""
        timeout = self._agenda.wait(self._clock.wall(), timeout)
        batch = self._poll(self._batch_size, timeout)
        deadline = time.monotonic() + self._linger
        while batch.records and len(batch.records) < self._batch_size:
            if (left := deadline - time.monotonic()) <= 0:
                break
            if sum(len(record.value) for record in batch.records) >= MAX_BATCH_BYTES:
                break
            more = self._poll(self._batch_size - len(batch.records), left)
            batch.records = [r for r in batch.records if r.partition not in more.revoked]
            for partition in more.revoked:
                batch.positions.pop(partition, None)
            batch.records += more.records
            batch.positions |= more.positions
            batch.fence = more.fence
        return batch

    def _poll(self, limit: int, timeout: float) -> Batch:
        batch = self._log.poll(limit, timeout)
        self._give_up(batch.revoked)
        self._take_over(batch.assigned)
        return batch

    def _due(self, now: int) -> list[tuple[str, Record]]:
        """The commands that waited for now, out of the topic that has kept them.

        As many as fit into a batch, in so many stretches of it; the others are looked at again in
        the next step.
        """
        streams = self._agenda.pop(now, self._batch_size)
        self._streams |= self._load(streams.items())
        due: list[tuple[str, int, int]] = []
        stretches: set[tuple[int, int]] = set()
        for key, partition in streams.items():
            for offset in self._streams[key].due(now):
                if len(due) == self._batch_size or len(stretches) == MAX_STRETCHES:
                    self._agenda.note(now, partition, key)
                    break
                stretches.add((partition, offset // STRETCH))
                due.append((key, partition, offset))
        found: dict[int, dict[int, Record | None]] = {}
        for partition in {partition for _, partition, _ in due}:
            self._commands = self._commands or self._log.commands()
            offsets = (offset for _, p, offset in due if p == partition)
            found[partition] = fetch_records(self._commands, partition, offsets)
        # One that is gone decodes as nothing, and parks its stream.
        return [
            (key, found[partition][offset] or Record(partition, offset, key.encode(), b""))
            for key, partition, offset in due
        ]

    # --- states and checkpoints

    def _load(self, keys: Iterable[tuple[str, int]]) -> dict[str, StreamState]:
        """The streams among these that are not in memory, and do not get there by this."""
        cold = {key: partition for key, partition in keys if key not in self._streams}
        if not cold:
            return {}
        found = PATIENTLY(self._store.load, self.service.states, cold)
        return {
            key: StreamState.load(found[key], self.service.state)
            if key in found
            else StreamState(partition)
            for key, partition in cold.items()
        }

    def _reach(self, partition: int, **fields: int) -> None:
        self._reached[partition] = structs.replace(self._reached[partition], **fields)

    def _flush_if_due(self) -> None:
        self._settle_if_saved()
        late = time.monotonic() - self._flushed >= self._flush_seconds
        if self._dirty and (late or len(self._dirty) >= self._flush_streams):
            self._flush()

    def flush(self) -> None:
        """Save the changed states and the checkpoints in one transaction, under the epoch."""
        with self.unbroken():
            self._flush()
            self._settle()

    def _flush(self) -> None:
        """Give what has changed to be saved; one transaction after the other."""
        self._settle()
        hit(Failpoint.HANDLER_FLUSHING)
        writes = Writes({self.service.states: []}, {self.service.states: []})
        for key in self._dirty:
            stream = self._streams[key]
            into = writes.replaces if stream.stored else writes.inserts
            into[self.service.states].append(stream.document(key))
            stream.stored = True
        writes.inserts[self.service.snapshots] = self._snapshots.documents(self.service.fold)
        moves = [
            (old, self._reached[partition])
            for partition, old in self._checkpoints.items()
            if old != self._reached[partition]
        ]
        self._dirty.clear()
        self._snapshots.saved()
        self._flushed = time.monotonic()
        saving = self._saver.submit(self._store.advance, self.service.checkpoints, moves, writes)
        self._saving = saving, dict(self._reached)
        self._settle_if_saved()

    def _settle_if_saved(self) -> None:
        if self._saving is not None and self._saving[0].done():
            self._settle()

    def _settle(self) -> None:
        """Wait until what was given is saved; raises what the store raised."""
        if self._saving is None:
            return
        (saving, reached), self._saving = self._saving, None
        saving.result()
        hit(Failpoint.HANDLER_FLUSHED)
        self._checkpoints |= reached
        # What is clean now may go, those first that were not used for longest.
        for key in list(islice(self._streams, max(0, len(self._streams) - self._max_streams))):
            if key not in self._dirty:
                del self._streams[key]

    def _give_up(self, partitions: frozenset[int]) -> None:
        if not partitions:
            return
        self._settle()
        for partition in partitions:
            self._checkpoints.pop(partition, None)
            self._reached.pop(partition, None)
        self._streams = {k: s for k, s in self._streams.items() if s.partition not in partitions}
        self._dirty = {k: None for k in self._dirty if k in self._streams}
        self._agenda.forget(partitions)
        self._snapshots.forget(partitions)

    def _take_over(self, partitions: frozenset[int]) -> None:
        self._give_up(partitions)
        for partition in sorted(partitions):
            self._recover(partition)

    def _recover(self, partition: int) -> None:
        """Claim a partition, then replay what came after its checkpoint."""
        began, commits = time.monotonic(), 0
        checkpoint = self._store.claim(self.service.checkpoints, self.service.checkpoint(partition))
        hit(Failpoint.HANDLER_CLAIMED)
        self._checkpoints[partition] = self._reached[partition] = checkpoint
        # This fetches the group's offset and waits for a predecessor's pending one; only after
        # that does the high watermark cover all that the predecessor committed.
        self._log.start(partition)
        waiting = {"waiting": partition}
        for document in self._store.find(self.service.states, waiting, fields=["due"]):
            self._agenda.note(document["due"], partition, document["_id"])
        for records in read_partition(self._events, partition, checkpoint.position):
            self._replay(partition, records)
            commits += len(records)
        self._report(Recovered(partition, commits, time.monotonic() - began))

    def _decode(self, record: Record) -> Commit[Any] | None:
        try:
            return self.service.codec.decode_commit(record.value)
        except DecodeError:
            return None

    def _replay(self, partition: int, records: Sequence[Record]) -> None:
        commits = [(record, self._decode(record)) for record in records]
        self._streams |= self._load((c.stream, partition) for _, c in commits if c is not None)
        reached = self._reached[partition]
        ignored = reached.ignored
        for record, commit in commits:
            stream = self._streams[commit.stream] if commit else None
            if commit is None or stream is None or commit.first != stream.version + 1:
                ignored += 1
                continue
            stream.take(commit, self.service.evolve)
            if self._snapshots.due(commit):
                self._snapshots.take(commit, stream, record.offset + 1)
            self._dirty[commit.stream] = None
            if not commit.final or commit.release:
                self._agenda.note(stream.next_due(), partition, commit.stream)
            reached = structs.replace(reached, command=max(reached.command, commit.offset))
        self._reached[partition] = structs.replace(
            reached, position=records[-1].offset + 1, ignored=ignored
        )
        self.ignored += ignored - reached.ignored
        self._flush_if_due()


def _id(key: bytes) -> str:
    """A key as the id of a stream; empty where it cannot be one."""
    try:
        id = key.decode()
    except UnicodeDecodeError:
        return ""
    return id if len(id) <= MAX_ID and not id.startswith("\0") else ""


def _nameless(record: Record) -> str:
    return "\0" + hashlib.sha256(b"%d:%b" % (record.partition, record.key)).hexdigest()
