"""The clients of the freshness bench: each writes to its accounts and reads them back.

Clients and load run in separate processes.
"""

from __future__ import annotations

import base64
import time
from multiprocessing.connection import Connection
from random import Random
from typing import Any

import msgspec
from hdrh.histogram import HdrHistogram
from msgspec import Struct

from labkit.errors import StackError, TimedOut
from labkit.experiments.bench.sessions import Read, Write
from labkit.experiments.percentiles import RANGE
from labkit.experiments.processes import PATIENCE_SECONDS, steadily
from labkit.lab import Lab
from labkit.messages import Answer, Token
from labkit.read.freshness import STRATEGIES, Fresh, Strategy, Version
from labkit.run.worker import calm_gc
from labkit.services.bank import AccountById, Deposit, OpenAccount

CONTEXT = "bank"
#: Accounts of each client.
ACCOUNTS = 8
LOAD_PER_SECOND = 200
LOAD_ACCOUNTS = 200
#: The timeout of a read.
READ_SECONDS = 10.0
#: Between two reports of a client.
REPORT_SECONDS = 0.5


class Tally(Struct):
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
    tallies: dict[Strategy, Tally] = msgspec.field(default_factory=dict)
    reads: list[Read] = msgspec.field(default_factory=list)
    writes: list[Write] = msgspec.field(default_factory=list)


def deposits(
    pipe: Connection, settings: dict[str, Any], seed: int, rate: float = LOAD_PER_SECOND
) -> None:
    """Deposit at a steady rate until told to stop; then report the number of deposits."""
    rng = Random(f"{seed} load")
    with Lab(**settings, start=False) as lab:
        calm_gc()
        accounts = [f"load-{number}" for number in range(LOAD_ACCOUNTS)]
        for account in accounts:
            lab.bus.send(OpenAccount(account, "load"))
        lab.bus.flush(PATIENCE_SECONDS)
        pipe.send_bytes(b"ready")
        sent = steadily(pipe, rate, lambda _: lab.bus.send(Deposit(rng.choice(accounts), 1)))
        lab.bus.flush(PATIENCE_SECONDS)
        pipe.send_bytes(str(sent).encode())


def run_client(
    pipe: Connection, settings: dict[str, Any], seed: int, number: int, tries: int
) -> None:
    """Make ``tries`` tries of each strategy, in rounds."""
    rng = Random(f"{seed} client {number}")
    with Lab(**settings, start=False) as lab, Lab(**settings, start=False) as second:
        calm_gc()
        client = Client(f"client-{number}", lab, second, rng)
        told = time.monotonic()
        for round in range(tries):
            for strategy in rng.sample(STRATEGIES, len(STRATEGIES)):
                client.attempt(strategy, of_another=strategy == "linearizable" and round % 2 == 1)
            if time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                pipe.send_bytes(msgspec.json.encode(Report((round + 1) * len(STRATEGIES))))
        pipe.send_bytes(msgspec.json.encode(client.report()))
        pipe.poll(PATIENCE_SECONDS)  # keep the pipe open until the parent has read the report


class Client:
    """Writes to its own accounts and reads them; ``second`` writes to them as well."""

    def __init__(self, name: str, lab: Lab, second: Lab, rng: Random) -> None:
        self._name = name
        self._lab, self._second = lab, second
        self._rng = rng
        self._cents = {f"{name}-{number}": 0 for number in range(ACCOUNTS)}
        self._tallies = {strategy: Tally() for strategy in STRATEGIES}
        self._times = {strategy: HdrHistogram(*RANGE) for strategy in STRATEGIES}
        self._reads: list[Read] = []
        self._writes: list[Write] = []
        for writer in (lab, second):
            writer.bus.listen(CONTEXT)
        for account in self._cents:
            if not lab.bus.execute(OpenAccount(account, name), timeout=PATIENCE_SECONDS).accepted:
                raise StackError(f"account {account!r} could not be opened")

    def attempt(self, strategy: Strategy, *, of_another: bool, pause_ms: int = 0) -> Try:
        """Write, wait for the answer, sleep for the pause, read."""
        account = self._rng.choice(list(self._cents))
        token, answer = self._deposit(account, self._second if of_another else self._lab)
        writer = f"{self._name}'s second" if of_another else self._name
        self._writes.append(Write(writer, account, answer.version, time.monotonic_ns()))
        fresh = self._fresh(strategy, token, Version(CONTEXT, account, answer.version))
        tally = self._tallies[strategy]
        tally.tries += 1
        tally.by_others += of_another
        began = time.monotonic_ns()
        if pause_ms:
            time.sleep(pause_ms / 1e3)
        try:
            shown = self._lab.queries.ask(AccountById(account), fresh=fresh) or {
                "balance": 0,
                "version": 0,
            }
        except TimedOut:
            tally.timeouts += 1
            took = time.monotonic_ns() - began
            self._times[strategy].record_value(took // 1_000)
            return Try(strategy, pause_ms, of_another, took / 1e6, timed_out=True)
        ended = time.monotonic_ns()
        self._times[strategy].record_value(max(1, (ended - began) // 1_000))
        stale = shown["balance"] < self._cents[account]
        tally.stale += stale
        self._reads.append(Read(self._name, account, strategy, shown["version"], began, ended))
        return Try(strategy, pause_ms, of_another, (ended - began) / 1e6, stale)

    def _deposit(self, account: str, writer: Lab) -> tuple[Token, Answer]:
        token = writer.bus.send(Deposit(account, 1)).token(PATIENCE_SECONDS)
        answer = writer.bus.answer(token, PATIENCE_SECONDS)
        if not answer.accepted:
            raise StackError(f"a deposit to {account!r} was {answer.outcome}: {answer.reason}")
        self._cents[account] += 1
        return token, answer

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
