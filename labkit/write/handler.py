"""The command handler: a numbered recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

from msgspec import structs

from labkit.log.crash_only import CrashOnly
from labkit.log.partition import STRETCH, fetch_records, join_group
from labkit.log.snapshots import Snapshots
from labkit.messages import Commit, command_id
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, CommandLog, Record, Source
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.executor import AtOnce
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Store
from labkit.service import Service
from labkit.write.decisions import Arrival, decide
from labkit.write.names import nameless, stream_id
from labkit.write.states import States
from labkit.write.stream_state import StreamState
from labkit.write.take_over import Recovered, TakeOver
from labkit.write.timers import Timers

#: Each takes a seek; so many of them take far less than the clients' poll interval.
MAX_STRETCHES = 200
#: While partitions are taken over, a step waits at most this long for their commits. The last wait
#: takes all of it, since no record comes at the end of a transaction.
TAKE_OVER_SECONDS = 0.02
LATER_MS = 100
#: Changed states that are saved in one transaction.
FLUSH_STREAMS = 2_000


class Handler(CrashOnly):
    """Handles the commands of one service.

    At most ``batch_size`` commands go into one transaction; with ``linger`` the handler gathers
    them for that many seconds. It saves changed states when there are ``flush_streams`` of them or
    after ``flush_seconds``, in ``executor``; at most ``max_streams`` clean ones stay in memory.
    A stream gets a snapshot each ``snapshot_every`` versions (0: never). ``report`` is given what
    each take-over took.
    """

    def __init__(
        self,
        service: Service,
        log: CommandLog,
        store: Store,
        clock: Clock = SYSTEM,
        *,
        batch_size: int = 4_000,
        linger: float = 0.0,
        flush_streams: int = FLUSH_STREAMS,
        flush_seconds: float = 0.2,
        max_streams: int = 100_000,
        snapshot_every: int = 1_000,
        executor: Executor | None = None,
        report: Callable[[Recovered], None] = lambda _: None,
    ) -> None:
        self.service = service
        self.ignored = 0
        self._log = log
        self._events = log.events()
        self._commands: Source | None = None
        self._store = store
        self._clock = clock
        self._batch_size = batch_size
        self._linger = linger
        self._report = report
        self._snapshots = Snapshots(snapshot_every)
        self._timers = Timers()
        self._states = States(
            service,
            store,
            self._snapshots,
            executor or AtOnce(),
            clock,
            flush_streams=flush_streams,
            flush_seconds=flush_seconds,
            max_streams=max_streams,
        )
        self._take_over = TakeOver(log, self._events, clock, self._replay, self._recovered)

    def step(self, timeout: float = 0.5) -> list[Commit[Any]]:
        """One batch: poll, decide, commit once. Returns the commits, in the order of the log.

        Raises ``Fenced`` if an earlier step failed.
        """
        with self.unbroken():
            return self._step(timeout)

    def _step(self, timeout: float) -> list[Commit[Any]]:
        # 1. Poll; go on with the partitions that are being taken over.
        if self._take_over:
            timeout = min(timeout, TAKE_OVER_SECONDS)
            if self._take_over.step(timeout):
                timeout = 0.0
        batch = self._gather(timeout)
        polled, wall = self._clock.now(), self._clock.wall()

        # 2. Bring what has waited and is due, and the states of cold streams, in one look-up.
        arrived = list(zip(self._streams_of(batch.records), batch.records, strict=True))
        due = self._due(wall)
        work = self._states.load((key, record.partition) for key, record in arrived)
        self._states.recall(self._named(work, [*due, *arrived]))
        if not arrived and not due:
            self._states.flush_if_due()
            return []
        hit(Failpoint.HANDLER_POLLED)

        # 3. Decide one after the other; each sees what those before it in the batch did.
        made = [
            self._handle(key, record, work, polled, wall)
            for key, record in due
            if self._working(work, key).may_go(record.offset, wall)
        ]
        answered = {partition: at.command for partition, at in self._states.reached.items()}
        for key, record in arrived:
            again = record.offset <= answered[record.partition]
            made.append(self._handle(key, record, work, polled, wall, again))
        hit(Failpoint.HANDLER_DECIDED)

        # 4. Commits and command offsets in one transaction: all, or nothing.
        ends = self._log.commit(batch, [record for _, record in made])
        hit(Failpoint.HANDLER_COMMITTED)

        # 5. Only now may memory change; the streams used last come last.
        for key, stream in work.items():
            self._states.put(key, stream)
        for key in {c.stream for c, _ in made if not c.final or c.release} | {k for k, _ in due}:
            self._timers.note(work[key].next_due(), work[key].partition, key)
        self._snapshots.settle((commit for commit, _ in made), self._states.reached)
        for partition, position in batch.positions.items():
            command = max(position - 1, self._states.reached[partition].command)
            self._states.reach(partition, command=command)
        for partition, end in ends.items():
            self._states.reach(partition, position=end)

        # 6. Now and then, save the changed states with the checkpoint.
        self._states.flush_if_due()
        return [commit for commit, _ in made]

    def join(self, partitions: int) -> None:
        """Own ``partitions`` before the first step, and wait for them: for stepping by hand."""
        self._claim(join_group(self._log, partitions, clock=self._clock))
        while self._take_over:
            self._take_over.step(TAKE_OVER_SECONDS)

    def flush(self) -> None:
        """Save the changed states and the checkpoints in one transaction, under the epoch."""
        with self.unbroken():
            self._states.flush()
            self._states.settle()

    def close(self) -> None:
        """Leave the group. Nothing is saved on the way out: crash-only."""
        self._states.close()
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
        keys = [stream_id(record.key) for record in records]
        homes = {
            key: s.partition for key in keys if (s := self._states.streams.get(key)) is not None
        }
        new = [key for key in dict.fromkeys(keys) if key and key not in homes]
        homes |= zip(new, self._log.partitions_for([key.encode() for key in new]), strict=True)
        return [
            key if homes.get(key) == record.partition else nameless(record)
            for key, record in zip(keys, records, strict=True)
        ]

    def _named(
        self, work: dict[str, StreamState], records: Iterable[tuple[str, Record]]
    ) -> Iterator[tuple[StreamState, str, str]]:
        """The command ids of those streams that have had more than they remember themselves."""
        for key, record in records:
            stream = work.get(key) or self._states.streams[key]
            if stream.older and (id := command_id(record.value)):
                yield stream, key, id

    def _working(self, work: dict[str, StreamState], key: str) -> StreamState:
        """A stream as a copy that this batch may change."""
        if (stream := work.get(key)) is None:
            stream = work[key] = self._states.streams[key].copy()
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
        timeout = self._timers.wait(self._clock.wall(), timeout)
        batch = self._poll(self._batch_size, timeout)
        deadline = self._clock.seconds() + self._linger
        while batch.records and len(batch.records) < self._batch_size:
            if (left := deadline - self._clock.seconds()) <= 0:
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
        self._claim(batch.assigned)
        return batch

    def _due(self, now: int) -> list[tuple[str, Record]]:
        """The commands that waited for now, out of the topic that has kept them.

        As many as fit into a batch, in so many stretches of it; the others are looked at again in
        the next step.
        """
        streams = self._timers.pop(now, self._batch_size)
        for key, partition in list(streams.items()):
            if partition in self._take_over:  # its states are not what they will be
                del streams[key]
                self._timers.note(now + LATER_MS, partition, key)
        self._states.streams |= self._states.load(streams.items())
        due: list[tuple[str, int, int]] = []
        stretches: set[tuple[int, int]] = set()
        for key, partition in streams.items():
            stream = self._states.streams[key]
            if not (ripe := stream.due(now)):  # what was noted has gone; more may wait
                self._timers.note(stream.next_due(), partition, key)
            for offset in ripe:
                if len(due) == self._batch_size or len(stretches) == MAX_STRETCHES:
                    self._timers.note(now, partition, key)
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

    # --- taking partitions over

    def _give_up(self, partitions: frozenset[int]) -> None:
        if not partitions:
            return
        self._take_over.give_up(partitions)
        self._states.give_up(partitions)
        self._timers.forget(partitions)
        self._snapshots.forget(partitions)

    def _claim(self, partitions: frozenset[int]) -> None:
        """Claim partitions; their commands come once what followed the checkpoint is replayed."""
        self._give_up(partitions)
        for partition in sorted(partitions):
            checkpoint = self._states.claim(partition)
            hit(Failpoint.HANDLER_CLAIMED)
            anew = self._states.begin_anew(partition)
            self._take_over.begin(partition, 0 if anew else checkpoint.position)
        if partitions:
            self._take_over.step(0)

    def _recovered(self, recovered: Recovered) -> None:
        """From now on its commands are handled, and those that wait for an instant."""
        self._states.end_anew(recovered.partition)
        waiting = {"waiting": recovered.partition}
        for document in self._store.find(self.service.states, waiting, fields=["due"]):
            self._timers.note(document["due"], recovered.partition, document["_id"])
        self._report(recovered)

    def _replay(self, partition: int, records: Sequence[Record]) -> None:
        saved, anew = self._states.anew[partition]
        commits = [
            (record, *self.service.codec.read_commit(record.value))
            for record in records
            if record.offset >= saved or record.key.decode("utf-8", "replace") in anew
        ]
        streams = self._states.streams
        streams |= self._states.load((c.stream, partition) for _, c, _ in commits if c is not None)
        self._states.recall((streams[c.stream], c.stream, c.id) for _, c, _ in commits if c)
        reached = self._states.reached[partition]
        ignored = reached.ignored
        waits: dict[str, StreamState] = {}
        for record, commit, unread in commits:
            stream = streams[commit.stream] if commit else None
            if commit is None or stream is None or commit.first != stream.version + 1:
                ignored += record.offset >= saved
                continue
            if unread:
                stream.skip(commit, unread)
            else:
                stream.replay(commit, self.service.evolve)
            if not commit.final or commit.release:
                waits[commit.stream] = stream
            if record.offset < saved:
                continue  # saved when it is folded to where the checkpoint stands
            if self._snapshots.due(commit) and not stream.unfit:
                self._snapshots.take(commit, stream, record.offset + 1)
            self._states.dirty[commit.stream] = None
            reached = structs.replace(reached, command=max(reached.command, commit.offset))
        for key, stream in waits.items():  # once: thousands may wait in one stream
            self._timers.note(stream.next_due(), partition, key)
        position = max(reached.position, records[-1].offset + 1)
        self._states.reached[partition] = structs.replace(
            reached, position=position, ignored=ignored
        )
        self.ignored += ignored - reached.ignored
        self._states.flush_if_due()
