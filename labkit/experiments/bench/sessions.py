"""Checker C10: session guarantees and linearizability, by the clients' reads and writes.

A :class:`Write` is one that was acknowledged to its client; a :class:`Read` is the result of a
query. All instants are monotonic nanoseconds of one host, so "before" holds across processes::

    promise          a read shows at least ...                     kept by
    own writes       its client's writes acknowledged before it    token, version, linearizable,
                                                                   and any read of a Session
    others' writes   all writes acknowledged before it             linearizable
    monotonic        its client's reads that ended before it       any read of a Session
                     all linearizable reads that ended before it   linearizable

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
    """``client`` wrote ``version`` of a stream, and got the answer at ``at``."""

    client: str
    stream: str
    version: int
    at: int


class Read(Struct, frozen=True, array_like=True):
    """A query showed ``version`` of a stream to ``client`` (0: nothing), maybe in a Session."""

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
    """The highest version known at an instant."""

    def __init__(self) -> None:
        self._facts: list[tuple[int, int]] = []
        self._instants: list[int] = []
        self._highest: list[int] = []

    def add(self, at: int, version: int) -> None:
        self._facts.append((at, version))

    def settle(self) -> _Newest:
        """Sort the facts, after the last one was added."""
        highest = 0
        for at, version in sorted(self._facts):
            highest = max(highest, version)
            self._instants.append(at)
            self._highest.append(highest)
        return self

    def before(self, instant: int) -> int:
        """The highest version known before ``instant``; 0 if there is none."""
        place = bisect_left(self._instants, instant)
        return self._highest[place - 1] if place else 0


class _Known(Struct):
    """The known versions of a stream: of all clients (``told``, ``shown``) and of each client."""

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
