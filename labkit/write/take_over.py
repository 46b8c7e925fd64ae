"""Taking over partitions: claim, then replay what came after the checkpoint.

A take-over goes on a little in each step and waits for nobody: while a predecessor's offsets are
unsettled or its transaction is open, the next step asks again, and the other partitions go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from labkit.errors import Pending, TimedOut
from labkit.log.partition import READ_TIMEOUT
from labkit.ports.broker import CommandLog, Record, Source
from labkit.ports.clock import Clock

#: Commits that are replayed in one step, at most.
REPLAYED = 5_000


class Recovered(Struct, frozen=True):
    """What taking a partition over took: the commits replayed since the checkpoint."""

    partition: int
    commits: int
    seconds: float


class _Partition(Struct):
    """``end`` is the high watermark at the take-over; ``None``: offsets are not settled yet."""

    position: int
    began: float
    moved: float
    end: int | None = None
    offset: int = 0
    commits: int = 0


class TakeOver:
    """The partitions that a handler has claimed and not recovered yet.

    ``replay(partition, records)`` folds records of the events topic; ``done`` is told of each
    partition that is recovered, after its commands were started.
    """

    def __init__(
        self,
        log: CommandLog,
        events: Source,
        clock: Clock,
        replay: Callable[[int, Sequence[Record]], None],
        done: Callable[[Recovered], None],
    ) -> None:
        self._log = log
        self._events = events
        self._clock = clock
        self._replay = replay
        self._done = done
        self._partitions: dict[int, _Partition] = {}

    def __contains__(self, partition: int) -> bool:
        return partition in self._partitions

    def __bool__(self) -> bool:
        return bool(self._partitions)

    def begin(self, partition: int, position: int) -> None:
        """Take a partition over whose checkpoint stands at ``position`` of the events."""
        now = self._clock.seconds()
        self._partitions[partition] = _Partition(position, now, now)

    def give_up(self, partitions: Iterable[int]) -> None:
        """Forget partitions that have another owner now."""
        for partition in partitions:
            if self._partitions.pop(partition, None) is not None:
                self._events.stop(partition)

    def step(self, timeout: float) -> bool:
        """Go on with all partitions, waiting up to ``timeout`` seconds for the next commits.

        Returns whether there were any to wait for: not while offsets are unsettled. Raises
        ``TimedOut`` if a partition got no further for ``READ_TIMEOUT`` seconds.
        """
        for partition, at in self._partitions.items():
            if at.end is None:
                self._find_end(partition, at)
        self._finish()
        if reading := [p for p, at in self._partitions.items() if at.end is not None]:
            batch = self._events.poll(REPLAYED, timeout)
            for partition in reading:
                at = self._partitions[partition]
                assert at.end is not None
                mine = [r for r in batch.records if r.partition == partition and r.offset < at.end]
                if mine:
                    self._replay(partition, mine)
                    at.commits += len(mine)
                if partition in batch.positions:
                    at.position, at.moved = batch.positions[partition], self._clock.seconds()
            self._finish()
        self._check()
        return bool(reading)

    def _find_end(self, partition: int, at: _Partition) -> None:
        """The group's offset, and only after that the end of the events: it covers all that the
        predecessor has committed."""
        try:
            at.offset = self._log.start(partition)
        except Pending:
            return
        self._log.stop(partition)
        at.end = self._events.ends()[partition]
        if at.position < at.end:
            self._events.start(partition, at.position)

    def _finish(self) -> None:
        for partition, at in list(self._partitions.items()):
            if at.end is not None and at.position >= at.end:
                del self._partitions[partition]
                self._events.stop(partition)
                self._log.start(partition, at.offset)
                self._done(Recovered(partition, at.commits, self._clock.seconds() - at.began))

    def _check(self) -> None:
        for partition, at in self._partitions.items():
            if self._clock.seconds() - at.moved > READ_TIMEOUT:
                raise TimedOut(
                    f"partition {partition} was replayed to offset {at.position} of "
                    f"{'?' if at.end is None else at.end}, then nothing came for "
                    f"{READ_TIMEOUT:.0f} s: a transaction is open, or the broker is gone; see "
                    "`labkit status`"
                )
