"""The states of the streams that a handler owns: in memory, and saved now and then.

Changed states and the checkpoints are saved in one transaction under the handler's epoch. Only
clean states may leave memory, those that were used longest ago first.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor, Future
from itertools import islice

import stamina
from msgspec import structs

from labkit.errors import Unreachable
from labkit.log.snapshots import Snapshots
from labkit.ports.clock import Clock
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Checkpoint, Store, Writes
from labkit.service import Service
from labkit.write.older_ids import OlderIds, seen_document, seen_id, seen_known
from labkit.write.stream_state import StreamState

#: Made once: for a single command it takes a tenth of a millisecond less than a new retry.
PATIENTLY = stamina.RetryingCaller(attempts=3, wait_initial=0.1).on(Unreachable)


class States:
    """The streams by id; ``reached`` is how far each partition has come, ``saved`` how far that is
    in the store."""

    def __init__(
        self,
        service: Service,
        store: Store,
        snapshots: Snapshots,
        executor: Executor,
        clock: Clock,
        *,
        flush_streams: int,
        flush_seconds: float,
        max_streams: int,
    ) -> None:
        self._service = service
        self._store = store
        self._snapshots = snapshots
        self._executor = executor
        self._clock = clock
        self._flush_streams = flush_streams
        self._flush_seconds = flush_seconds
        self._max_streams = max_streams
        self.streams: dict[str, StreamState] = {}
        self.dirty: dict[str, None] = {}
        self.saved: dict[int, Checkpoint] = {}
        self.reached: dict[int, Checkpoint] = {}
        #: While a partition is taken over: where its checkpoint stands, and the streams that are
        #: folded anew to there.
        self.anew: dict[int, tuple[int, frozenset[str]]] = {}
        self._flushed = clock.seconds()
        self._saving: tuple[Future[None], dict[int, Checkpoint]] | None = None

    def claim(self, partition: int) -> Checkpoint:
        """Take ownership of a partition: its checkpoint, under a raised epoch."""
        checkpoint = self._store.claim(
            self._service.checkpoints, self._service.checkpoint(partition)
        )
        self.saved[partition] = self.reached[partition] = checkpoint
        return checkpoint

    def begin_anew(self, partition: int) -> frozenset[str]:
        """The streams that other code could not fold, as they were before their first commit.

        They are dirty only once they are folded as far as the checkpoint says.
        """
        found = self._store.find(self._service.states, {"anew": partition}, fields=["_id"])
        for document in found:
            # Its ids may have documents of their own; each is looked up, and comes back.
            self.streams[document["_id"]] = StreamState(partition, stored=True, older=OlderIds())
        streams = frozenset(document["_id"] for document in found)
        self.anew[partition] = self.saved[partition].position, streams
        return streams

    def end_anew(self, partition: int) -> None:
        """They are folded that far."""
        _, streams = self.anew.pop(partition)
        self.dirty |= dict.fromkeys(streams)

    def load(self, keys: Iterable[tuple[str, int]]) -> dict[str, StreamState]:
        """The streams among these that are not in memory, and do not get there by this."""
        cold = {key: partition for key, partition in keys if key not in self.streams}
        if not cold:
            return {}
        found = PATIENTLY(self._store.load, self._service.states, cold)
        state = self._service.state
        return {
            key: StreamState.load(found[key], state) if key in found else StreamState(partition)
            for key, partition in cold.items()
        }

    def recall(self, wanted: Iterable[tuple[StreamState, str, str]]) -> None:
        """Bring what is known of (stream, its key, command id), where it is not in memory."""
        cold = {
            seen_id(key, id): (stream, id)
            for stream, key, id in wanted
            if stream.older is not None and stream.known(id) is None
        }
        if not cold:
            return
        for found, document in PATIENTLY(self._store.load, self._service.seen, cold).items():
            stream, id = cold[found]
            stream.recall(id, seen_known(document))

    def put(self, key: str, stream: StreamState) -> None:
        """Keep a changed stream; the streams used last come last."""
        self.streams.pop(key, None)
        self.streams[key] = stream
        self.dirty[key] = None

    def reach(self, partition: int, **fields: int) -> None:
        """Note how far a partition has come."""
        self.reached[partition] = structs.replace(self.reached[partition], **fields)

    def flush_if_due(self) -> None:
        """Save what has changed if there is much of it, or it is old."""
        if self._saving is not None and self._saving[0].done():
            self.settle()
        late = self._clock.seconds() - self._flushed >= self._flush_seconds
        if self.dirty and (late or len(self.dirty) >= self._flush_streams):
            self.flush()

    def flush(self) -> None:
        """Begin to save the changed states and the checkpoints; one transaction at a time."""
        self.settle()
        hit(Failpoint.HANDLER_FLUSHING)
        states = self._service.states
        seen = self._service.seen
        writes = Writes({states: [], seen: []}, {states: []}, {seen: []})
        for key in self.dirty:
            stream = self.streams[key]
            into = writes.replaces if stream.stored else writes.inserts
            into[states].append(stream.document(key))
            stream.stored = True
            if stream.older is not None:
                left, back = stream.older.save()
                writes.inserts[seen] += (seen_document(key, id, k) for id, k in left.items())
                writes.deletes[seen] += (seen_id(key, id) for id in back)
        writes.inserts[self._service.snapshots] = self._snapshots.documents(self._service.fold)
        moves = [
            (old, self.reached[partition])
            for partition, old in self.saved.items()
            if old != self.reached[partition]
        ]
        self.dirty.clear()
        self._snapshots.saved()
        self._flushed = self._clock.seconds()
        saving = self._executor.submit(
            self._store.advance, self._service.checkpoints, moves, writes
        )
        self._saving = saving, dict(self.reached)
        if saving.done():
            self.settle()

    def settle(self) -> None:
        """Wait until what was given to the executor is saved; raises what the store raised."""
        if self._saving is None:
            return
        (saving, reached), self._saving = self._saving, None
        saving.result()
        hit(Failpoint.HANDLER_FLUSHED)
        self.saved |= reached
        unsaved = self.dirty.keys() | {key for _, streams in self.anew.values() for key in streams}
        for key in list(islice(self.streams, max(0, len(self.streams) - self._max_streams))):
            if key not in unsaved:
                del self.streams[key]

    def give_up(self, partitions: frozenset[int]) -> None:
        """Forget what belongs to partitions that have another owner now."""
        self.settle()
        for partition in partitions:
            self.saved.pop(partition, None)
            self.reached.pop(partition, None)
            self.anew.pop(partition, None)
        self.streams = {k: s for k, s in self.streams.items() if s.partition not in partitions}
        self.dirty = {k: None for k in self.dirty if k in self.streams}

    def close(self) -> None:
        """Let go of the executor. Nothing is saved on the way out: crash-only."""
        self._executor.shutdown()
