"""The clients of the freshness bench: each writes to its own streams and reads them back.

Clients and load run in separate processes. All of them go through the same workload, and each takes
the commands to its own streams, so that no client is refused for what another has done.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from random import Random
from typing import Any

import msgspec
from hdrh.histogram import HdrHistogram
from msgspec import Struct

from labkit.errors import StackError, TimedOut
from labkit.experiments.bench.decided import DecidedStreams, Share, Taken
from labkit.experiments.bench.sessions import Read, Write
from labkit.experiments.bench.subject import Chosen, Subject
from labkit.experiments.percentiles import RANGE
from labkit.experiments.processes import PATIENCE_SECONDS, steadily
from labkit.lab import Lab
from labkit.messages import Answer, Token
from labkit.read.freshness import STRATEGIES, Fresh, Strategy, Version
from labkit.run.worker import calm_gc

#: Clients spend most of their time waiting, so several share the cores.
CLIENTS = 10
#: Of every 280 streams of the workload each client owns 8, and the load 200.
STREAMS, LOAD_STREAMS = 8, 200
TOTAL = CLIENTS * STREAMS + LOAD_STREAMS
LOAD_SLOTS = range(CLIENTS * STREAMS, TOTAL)
LOAD_PER_SECOND = 200
#: The timeout of a read.
READ_SECONDS = 10.0
#: Between two reports of a client.
REPORT_SECONDS = 0.5


class ReadCounts(Struct):
    """The tries of one strategy; ``times`` is an encoded histogram in microseconds."""

    tries: int = 0
    stale: int = 0
    timeouts: int = 0
    by_others: int = 0
    times: str = ""


class Try(Struct, frozen=True):
    """One try: a read after a pause of ``pause_ms``, answered ``ms`` after the reply to the write.

    ``by_another``: a second client wrote. ``timed_out``: the read got no answer, so none was stale.
    """

    strategy: Strategy
    pause_ms: int
    by_another: bool
    ms: float
    stale: bool = False
    timed_out: bool = False


class Report(Struct):
    """Progress of a client; only its last report has ``tallies``."""

    done: int
    tallies: dict[Strategy, ReadCounts] = msgspec.field(default_factory=dict)
    reads: list[Read] = msgspec.field(default_factory=list)
    writes: list[Write] = msgspec.field(default_factory=list)


class Writer:
    """The commands of a workload to the streams of one process."""

    def __init__(self, subject: Subject, seed: int, slots: range, total: int = TOTAL) -> None:
        share, streams = Share(slots, total), DecidedStreams(subject.service)
        #: What comes first, and what follows without end.
        self.opening = list(streams.taken(share.own(subject.opening(seed))))
        self.commands: Iterator[Taken] = streams.taken(share.own(subject.commands(seed)))


def load(
    pipe: Connection,
    settings: dict[str, Any],
    chosen: Chosen,
    seed: int,
    slots: range = LOAD_SLOTS,
    total: int = TOTAL,
    rate: float = LOAD_PER_SECOND,
) -> None:
    """Write at a steady rate until told to stop; then report the number of commands."""
    with Lab(**settings, start=False) as lab:
        calm_gc()
        writer = Writer(chosen.of(lab), seed, slots, total)
        for taken in writer.opening:
            lab.bus.send(taken.command)
        lab.bus.flush(PATIENCE_SECONDS)
        pipe.send_bytes(b"ready")
        sent = steadily(pipe, rate, lambda _: lab.bus.send(next(writer.commands).command))
        lab.bus.flush(PATIENCE_SECONDS)
        pipe.send_bytes(str(sent).encode())


def run_client(
    pipe: Connection,
    settings: dict[str, Any],
    chosen: Chosen,
    seed: int,
    number: int,
    tries: int,
) -> None:
    """Make ``tries`` tries of each strategy, in rounds."""
    rng = Random(f"{seed} client {number}")
    with Lab(**settings, start=False) as lab, Lab(**settings, start=False) as second:
        calm_gc()
        client = FreshnessClient(number, lab, second, chosen, seed)
        told = time.monotonic()
        for round in range(tries):
            for strategy in rng.sample(STRATEGIES, len(STRATEGIES)):
                client.attempt(strategy, of_another=strategy == "linearizable" and round % 2 == 1)
            if time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                pipe.send_bytes(msgspec.json.encode(Report((round + 1) * len(STRATEGIES))))
        pipe.send_bytes(msgspec.json.encode(client.report()))
        pipe.poll(PATIENCE_SECONDS)  # keep the pipe open until the parent has read the report


class FreshnessClient:
    """Writes to its own streams and reads them; ``second`` writes to them as well."""

    def __init__(self, number: int, lab: Lab, second: Lab, chosen: Chosen, seed: int) -> None:
        self._name = f"client-{number}"
        self._lab, self._second = lab, second
        self._subject = chosen.of(lab)
        writer = Writer(self._subject, seed, range(number * STREAMS, (number + 1) * STREAMS))
        self._commands = writer.commands
        self._tallies = {strategy: ReadCounts() for strategy in STRATEGIES}
        self._times = {strategy: HdrHistogram(*RANGE) for strategy in STRATEGIES}
        self._reads: list[Read] = []
        self._writes: list[Write] = []
        for each in (lab, second):
            each.bus.listen(self._subject.name)
        sent = [(taken, lab.bus.send(taken.command)) for taken in writer.opening]
        for taken, delivery in sent:
            token = delivery.token(PATIENCE_SECONDS)
            self._check(taken, lab.bus.answer(token, PATIENCE_SECONDS))

    def attempt(self, strategy: Strategy, *, of_another: bool, pause_ms: int = 0) -> Try:
        """Write, wait for the answer, sleep for the pause, read."""
        taken = next(self._commands)
        stream = taken.stream
        token, answer = self._write(taken, self._second if of_another else self._lab)
        writer = f"{self._name}'s second" if of_another else self._name
        self._writes.append(Write(writer, stream, answer.version, time.monotonic_ns()))
        fresh = self._fresh(strategy, token, Version(self._subject.name, stream, answer.version))
        tally = self._tallies[strategy]
        tally.tries += 1
        tally.by_others += of_another
        began = time.monotonic_ns()
        if pause_ms:
            time.sleep(pause_ms / 1e3)
        try:
            found = self._lab.queries.ask(self._subject.document(stream), fresh=fresh)
        except TimedOut:
            tally.timeouts += 1
            took = time.monotonic_ns() - began
            self._times[strategy].record_value(took // 1_000)
            return Try(strategy, pause_ms, of_another, took / 1e6, timed_out=True)
        ended = time.monotonic_ns()
        self._times[strategy].record_value(max(1, (ended - began) // 1_000))
        shown = found["version"] if found else 0
        stale = shown < answer.version
        tally.stale += stale
        self._reads.append(Read(self._name, stream, strategy, shown, began, ended))
        return Try(strategy, pause_ms, of_another, (ended - began) / 1e6, stale)

    def _write(self, taken: Taken, writer: Lab) -> tuple[Token, Answer]:
        token = writer.bus.send(taken.command).token(PATIENCE_SECONDS)
        answer = writer.bus.answer(token, PATIENCE_SECONDS)
        self._check(taken, answer)
        return token, answer

    def _check(self, taken: Taken, answer: Answer) -> None:
        """Raises ``StackError`` for an answer that the rules do not give."""
        if (answer.outcome, answer.version) != ("accepted", taken.version):
            raise StackError(
                f"{type(taken.command).__name__} to {taken.stream!r} was {answer.outcome} at "
                f"version {answer.version}, not accepted at {taken.version}: {answer.reason}"
            )

    def _fresh(self, strategy: Strategy, token: Token, version: Version) -> Fresh:
        match strategy:
            case "token":
                return Fresh("token", (token,), READ_SECONDS)
            case "version":
                return Fresh("version", (version,), READ_SECONDS)
        return Fresh(strategy, timeout=READ_SECONDS)

    def report(self) -> Report:
        """The final report."""
        for strategy, tally in self._tallies.items():
            tally.times = base64.b64encode(self._times[strategy].encode()).decode()
        done = sum(tally.tries for tally in self._tallies.values())
        return Report(done, self._tallies, self._reads, self._writes)
