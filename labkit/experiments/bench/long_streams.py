"""The long streams of a workload: what the restart bench is made of.

The service's own rules decide here which commands are accepted (``decided.py``), and how far they
bring a stream. A workload with an option ``lap`` is asked for streams of that length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct

from labkit.errors import UsageError
from labkit.experiments.bench.decided import MOST_IN_VAIN, DecidedStreams, Taken
from labkit.experiments.bench.subject import Subject

#: Of the workload; the bench has no option for it.
SEED = 1
#: The longest stream is sought among this number of commands.
SOUGHT = 10_000


def one_stream(measured: Subject, events: int) -> list[Taken]:
    """Commands that bring one stream to version ``events``: the busiest of the workload.

    Raises ``UsageError`` if the workload has no such stream.
    """
    first = islice(_taken(measured), min(SOUGHT, events))
    [(stream, _)] = Counter(taken.stream for taken in first).most_common(1)
    found: list[Taken] = []
    in_vain = 0
    for taken in _taken(measured):
        in_vain += 1
        if taken.stream == stream:
            in_vain = 0
            found.append(taken)
            if taken.version >= events:
                return found
        elif in_vain >= MOST_IN_VAIN:
            break
    raise UsageError(
        f"the workload of service {measured.name!r} brings its busiest stream, {stream!r}, to "
        f"version {found[-1].version} only; the bench 'restart' needs long streams, of version "
        f"{events:,}"
    )


class Even(Struct):
    """Streams of a workload that get ``length`` commands at least."""

    measured: Subject
    streams: list[str]
    length: int

    def commands(self, times: int) -> Iterator[Taken]:
        """The first ``times`` commands to each stream."""
        return self._some(self.streams, 1, times)

    def next(self, streams: Iterable[str], times: int) -> list[Taken]:
        """The command to each of these streams that follows the first ``times``."""
        return list(self._some(streams, times + 1, times + 1))

    def _some(self, streams: Iterable[str], first: int, last: int) -> Iterator[Taken]:
        counts = dict.fromkeys(streams, 0)
        missing = len(counts)
        for taken in _taken(self.measured, self.length):
            if (count := counts.get(taken.stream)) is None or count >= last:
                continue
            counts[taken.stream] = count + 1
            missing -= count + 1 == last
            if count + 1 >= first:
                yield taken
            if not missing:
                return


def even_streams(measured: Subject, streams: int, length: int) -> Even:
    """Streams that get ``length`` accepted commands each. Raises ``UsageError`` if they are few."""
    counts = Counter[str]()
    found: list[str] = []
    in_vain = 0
    for taken in _taken(measured, length):
        in_vain += 1
        counts[taken.stream] += 1
        if counts[taken.stream] == length:
            in_vain = 0
            found.append(taken.stream)
            if len(found) == streams:
                return Even(measured, found, length)
        elif in_vain >= max(MOST_IN_VAIN, streams * length):
            break
    raise UsageError(
        f"of the streams of the workload of service {measured.name!r} {len(found):,} get {length} "
        f"commands; the bench 'restart' needs {streams:,}"
    )


def _taken(measured: Subject, lap: int | None = None) -> Iterator[Taken]:
    return DecidedStreams(measured.service).taken(measured.all(SEED, lap=lap))
