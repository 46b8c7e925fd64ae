"""Checker C10: what a reader was promised, judged by the reads and writes that clients made.

A :class:`Write` is one that its client was told of; a :class:`Read` is what a query showed. All
instants are monotonic nanoseconds of one host, so "before" is true of the whole machine::

    promise          a read shows at least ...                     kept by
    own writes       what its own client was told of before it     token, version, linearizable,
                                                                   and any read of a Session
    others' writes   what anybody was told of before it            linearizable
    monotonic        what its client was shown before it           any read of a Session
                     what a linearizable read of anybody showed    linearizable
                     that had ended before it

The token and version strategies promise the writes that they wait for; here that is the newest
write of the client to that stream. ``eventual`` promises nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from labkit.experiments.verify.verdict import Verdict, verdict
from labkit.read.freshness import Strategy

#: The strategies that show a client its own writes.
OWN_WRITES: frozenset[Strategy] = frozenset({"token", "version", "linearizable"})


class Write(Struct, frozen=True, array_like=True):
    """``version`` of a stream was made by ``client``, who was told so at ``at``."""

    client: str
    stream: str
    version: int
    at: int


class Read(Struct, frozen=True, array_like=True):
    """``version`` of a stream was shown to ``client`` (0: nothing); ``session``: through one."""

    client: str
    stream: str
    strategy: Strategy
    version: int
    began: int
    ended: int
    session: bool = False

    def __str__(self) -> str:
        return f"{self.client!r} ({self.strategy}) was shown version {self.version}"


class _Newest:
    """The highest version that was known before an instant."""

    def __init__(self) -> None:
        self._facts: list[tuple[int, int]] = []
        self._instants: list[int] = []
        self._highest: list[int] = []

    def add(self, at: int, version: int) -> None:
        self._facts.append((at, version))

    def settle(self) -> _Newest:
        """All facts are there: put them in order."""
        highest = 0
        for at, version in sorted(self._facts):
            highest = max(highest, version)
            self._instants.append(at)
            self._highest.append(highest)
        return self

    def before(self, instant: int) -> int:
        """0: nothing was."""
        place = bisect_left(self._instants, instant)
        return self._highest[place - 1] if place else 0


class _Known(Struct):
    """What was known of one stream: told to anybody, told to and shown to each client."""

    told: _Newest = msgspec.field(default_factory=_Newest)
    shown: _Newest = msgspec.field(default_factory=_Newest)
    own: dict[str, _Newest] = msgspec.field(default_factory=dict)
    seen: dict[str, _Newest] = msgspec.field(default_factory=dict)

    def settle(self) -> None:
        for newest in (self.told, self.shown, *self.own.values(), *self.seen.values()):
            newest.settle()


def sessions(reads: Sequence[Read], writes: Iterable[Write]) -> Verdict:
    """C10: every read shows what its strategy promised."""
    streams: dict[str, _Known] = {}
    for write in writes:
        known = streams.setdefault(write.stream, _Known())
        known.told.add(write.at, write.version)
        known.own.setdefault(write.client, _Newest()).add(write.at, write.version)
    for read in reads:
        known = streams.setdefault(read.stream, _Known())
        if read.strategy == "linearizable":
            known.shown.add(read.ended, read.version)
        known.seen.setdefault(read.client, _Newest()).add(read.ended, read.version)
    for known in streams.values():
        known.settle()
    checked = 0
    wrong: list[str] = []
    for read in reads:
        for promise, least in _promised(read, streams[read.stream]):
            checked += 1
            if read.version < least:
                wrong.append(f"{promise}: {read} of {read.stream!r} after version {least}")
    return verdict(checked, wrong)


def _promised(read: Read, known: _Known) -> Iterable[tuple[str, int]]:
    own = known.own.get(read.client)
    if own is not None and (read.session or read.strategy in OWN_WRITES):
        yield "own writes", own.before(read.began)
    if read.session:
        yield "monotonic", known.seen[read.client].before(read.began)
    if read.strategy == "linearizable":
        yield "others' writes", known.told.before(read.began)
        yield "monotonic", known.shown.before(read.began)
