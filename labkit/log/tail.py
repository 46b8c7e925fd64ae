"""A reader that is kept: whatever interrupts a poll, the next one goes on where the last one was.

Ctrl-C may come anywhere, also in the middle of a client's own bookkeeping, and some clients never
recover from that. So a poll that did not end as it should costs its reader: the next poll opens a
new one, at the record that nobody has had.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from labkit.ports.broker import Record, Source


class Tail:
    """Reads a topic from where ``begin`` says, given the ends of its partitions."""

    def __init__(
        self,
        open: Callable[[], Source],
        begin: Callable[[Mapping[int, int]], Mapping[int, int]] = lambda ends: ends,
    ) -> None:
        self._open = open
        self._begin = begin
        self._at: dict[int, int] = {}
        self._source: Source | None = self._opened()

    def records(self, timeout: float, limit: int = 5_000) -> Iterator[Record]:
        """What comes next, waiting up to ``timeout`` seconds for the first.

        A record counts as read once the next one is asked for.
        """
        source, self._source = self._source or self._opened(), None
        try:
            batch = source.poll(limit, timeout)
            for record in batch.records:
                yield record
                self._at[record.partition] = record.offset + 1
            self._at.update(batch.positions)
        except BaseException:
            leave(source)
            raise
        self._source = source

    @property
    def partitions(self) -> list[int]:
        """Those that are read."""
        return list(self._at)

    def close(self) -> None:
        """Let go of the reader."""
        if self._source is not None:
            self._source.close()

    def _opened(self) -> Source:
        source = self._open()
        if not self._at:
            self._at.update(self._begin(source.ends()))
        for partition, position in self._at.items():
            source.start(partition, position)
        return source


def leave(source: Source) -> None:
    """Close a reader that may hang, without waiting for it."""

    def close() -> None:
        with suppress(Exception):
            source.close()

    threading.Thread(target=close, daemon=True).start()
