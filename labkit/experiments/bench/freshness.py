"""What freshness costs, and what is read without it: the four strategies side by side, under load.

A *try*: a client deposits one cent, waits until it is told that this is done (the commit is in the
log), asks for the account, and looks whether its cent is there. What is timed is the question, from
its call to its answer, at the same instant for all strategies: after the reply. So ``eventual`` is
the price of a read, and the others add what they wait for: the projector, and their looks at its
checkpoint; ``linearizable`` asks Kafka for the ends of the log before that. A read that timed out
counts with the time that it took.

Of the linearizable tries every other one is written by a *second client*, with connections of its
own: the reader knows that the money came, and has neither token nor version.

The clients are processes of their own, and so is the load beside them. Each client goes through the
strategies in rounds, in an order that is drawn anew for each round. No try sleeps, or waits for
anything but what it asked for.

Three strategies promise that nothing stale is read; so says each account's balance, and beside it
checker C10 (``sessions.py``), which goes by versions and instants and knows nothing of balances.

``sample`` makes such tries one by one, for a notebook: there the caller is the only client, and may
also sleep before it asks.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
from hdrh.histogram import HdrHistogram
from msgspec import Struct, structs

from labkit import stack
from labkit.errors import StackError, TimedOut, UsageError
from labkit.experiments.bench.sessions import Read, Write, sessions
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process, settings_of, steadily
from labkit.experiments.results import load_average, machine, versions
from labkit.lab import Lab
from labkit.messages import Answer, Token
from labkit.read.freshness import LINEARIZABLE, STRATEGIES, Fresh, Strategy, Version
from labkit.run.worker import calm_gc
from labkit.services.bank import AccountById, Deposit, OpenAccount

if TYPE_CHECKING:
    import pandas as pd

    from labkit.experiments.demo import Progress

CONTEXT = "bank"
#: A client waits most of its time for replies, so many of them share the cores; each makes at least
#: ``LEAST_TRIES`` of each strategy.
CLIENTS = 10
LEAST_TRIES = 15
#: Of each client; a try takes one of them.
ACCOUNTS = 8
LOAD_PER_SECOND = 200
LOAD_ACCOUNTS = 200
#: A read waits so long for its freshness.
READ_SECONDS = 10.0
#: At most so many of the reads may time out.
TIMEOUTS = 0.001
#: What a histogram can hold: microseconds from 1 to 100 s, with three digits.
RANGE = (1, 100_000_000, 3)
#: Between two reports of a client.
REPORT_SECONDS = 0.5


class Tally(Struct):
    """The tries of one strategy; ``times`` is a histogram in microseconds, encoded."""

    tries: int = 0
    stale: int = 0
    timeouts: int = 0
    by_others: int = 0
    times: str = ""


class Try(Struct, frozen=True):
    """One try: it slept ``pause_ms`` after the reply, and ``ms`` after the reply it was answered.

    ``by_another``: a second client wrote; ``timed_out``: there was no answer, and so no stale one.
    """

    strategy: Strategy
    pause_ms: int
    by_another: bool
    ms: float
    stale: bool = False
    timed_out: bool = False


class Report(Struct):
    """What a client did; with ``tallies`` it is its last word."""

    done: int
    tallies: dict[Strategy, Tally] = msgspec.field(default_factory=dict)
    reads: list[Read] = msgspec.field(default_factory=list)
    writes: list[Write] = msgspec.field(default_factory=list)


def freshness(
    name: str,
    client: str,
    tries: int,
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """So many tries of each strategy on real servers; the result is the JSON.

    Starts servers that are not up, and stops what it started. Raises ``StackError`` and
    ``TimedOut`` where they, or a client, fail.
    """
    clients = max(1, min(CLIENTS, tries // LEAST_TRIES))
    with stack.borrowed(name, report) as servers:
        found: dict[str, Any] = {
            "bench": "freshness",
            "client": client,
            "seed": seed,
            "settings": {
                "clients": clients,
                "accounts_of_each": ACCOUNTS,
                "load_per_second": LOAD_PER_SECOND,
                "read_timeout_s": READ_SECONDS,
                "partitions": 4,
            },
            "machine": machine(),
            "load_average_before": load_average(),
            "stack": servers.kind,
        }
        with Lab(name, client=client, services=[CONTEXT], partitions=4) as lab:
            try:
                lab.start()
                report(f"run {lab.run}: {tries:,} tries of each strategy by {clients} clients")
                found["versions"] = versions(lab.server_versions(), lab.settings.client)
                began = time.monotonic()
                reports, load = _run(lab, clients, tries, seed, progress)
                found["seconds"] = round(time.monotonic() - began, 1)
                found["ignored_commits"] = lab.ignored_commits()
            finally:
                lab.drop()
        found["load_average_after"] = load_average()
    found |= judge(reports, tries)
    found["load"] = {"sent": load, "per_second": round(load / found["seconds"], 1)}
    found["ok"] = found["ok"] and not found["ignored_commits"] and load > 0
    return found


def sample(lab: Lab, tries: int, seed: int, pauses_ms: Sequence[int] = ()) -> pd.DataFrame:
    """So many tries of each strategy by this process, beside the load of the bench; one row each.

    And as many of ``eventual`` after each pause. The columns are the fields of ``Try``. The workers
    of ``lab`` must run. Raises ``UsageError`` for a lab in memory, where all is one process.
    """
    import pandas as pd

    if lab.backend == "memory":
        raise UsageError("how stale reads are is measured between processes, got backend 'memory'")
    rng = Random(f"{seed} sample")
    ways: list[tuple[Strategy, int]] = [(strategy, 0) for strategy in STRATEGIES]
    ways += [("eventual", pause) for pause in pauses_ms]
    rows = []
    with (
        process(deposits, settings_of(lab), seed) as load,
        Lab(**settings_of(lab), start=False) as second,
    ):
        hear(lab, load)
        client = Client("client", lab, second, rng)
        lab.ask(AccountById("none"), fresh=LINEARIZABLE)  # the first one opens a reader
        for round in range(tries):
            for strategy, pause in rng.sample(ways, len(ways)):
                of_another = strategy == "linearizable" and round % 2 == 1
                done = client.attempt(strategy, of_another=of_another, pause_ms=pause)
                rows.append(structs.asdict(done))
        load.send_bytes(b"stop")
        hear(lab, load)
    return pd.DataFrame(rows, columns=Try.__struct_fields__)


def judge(reports: list[Report], tries: int) -> dict[str, Any]:
    """The strategies, C10, and whether what they promise was kept."""
    strategies = {s: _together([r.tallies[s] for r in reports]) for s in STRATEGIES}
    c10 = sessions([x for r in reports for x in r.reads], [x for r in reports for x in r.writes])
    kept = all(
        found["tries"] == tries
        and (s == "eventual" or found["stale"] == 0)
        and found["timeouts"] <= tries * TIMEOUTS
        for s, found in strategies.items()
    )
    return {
        "ok": kept and c10.ok,
        "strategies": strategies,
        "checkers": {"C10": msgspec.to_builtins(c10)},
    }


def percentiles(times: HdrHistogram) -> dict[str, float]:
    """In milliseconds, of a histogram in microseconds."""
    at = {name: times.get_value_at_percentile(p) for name, p in PERCENTILES.items()}
    return {f"{name}_ms": value / 1e3 for name, value in at.items()} | {
        "max_ms": times.get_max_value() / 1e3
    }


def _together(tallies: list[Tally]) -> dict[str, Any]:
    """Histograms are merged, never their percentiles."""
    times = HdrHistogram(*RANGE)
    for tally in tallies:
        times.decode_and_add(base64.b64decode(tally.times))
    return {
        "tries": sum(tally.tries for tally in tallies),
        "stale": sum(tally.stale for tally in tallies),
        "timeouts": sum(tally.timeouts for tally in tallies),
        "by_others": sum(tally.by_others for tally in tallies),
        **percentiles(times),
    }


PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


# --- the processes


def _run(
    lab: Lab, count: int, tries: int, seed: int, progress: Progress
) -> tuple[list[Report], int]:
    """The load beside the clients; their last reports, and how much the load sent until then."""
    settings = settings_of(lab)
    shares = [tries // count + (number < tries % count) for number in range(count)]
    with process(deposits, settings, seed) as loading:
        hear(lab, loading)
        with ExitStack() as opened:
            clients = [
                opened.enter_context(process(_client, settings, seed, number, share))
                for number, share in enumerate(shares)
            ]
            reports = _gather(lab, clients, tries, progress)
        with suppress(BrokenPipeError):  # it is dead, as the next line finds
            loading.send_bytes(b"stop")
        return reports, int(hear(lab, loading))


def _gather(lab: Lab, clients: list[Connection], tries: int, progress: Progress) -> list[Report]:
    reports = {client: Report(0) for client in clients}
    waiting = set(clients)
    while waiting:
        ready = wait(list(waiting), PATIENCE_SECONDS)
        if not ready:
            raise TimedOut(f"no client said anything for {PATIENCE_SECONDS:g} s; see the logs")
        for client in ready:
            assert isinstance(client, Connection)
            reports[client] = msgspec.json.decode(hear(lab, client), type=Report)
            if reports[client].tallies:
                waiting.discard(client)
        done = sum(found.done for found in reports.values())
        progress("tries", done, tries * len(STRATEGIES))
    return [reports[client] for client in clients]


def deposits(
    pipe: Connection, settings: dict[str, Any], seed: int, rate: float = LOAD_PER_SECOND
) -> None:
    """Deposits at a steady rate, until it is told to stop; then it says how many."""
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


def _client(pipe: Connection, settings: dict[str, Any], seed: int, number: int, tries: int) -> None:
    """So many tries of each strategy, in rounds."""
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
        pipe.poll(PATIENCE_SECONDS)  # until the parent has read it all


class Client:
    """Writes and reads accounts of its own; ``second`` writes to them, too."""

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
        """Write, hear that it is done, sleep where a pause is given, read."""
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
        """Its last word."""
        for strategy, tally in self._tallies.items():
            tally.times = base64.b64encode(self._times[strategy].encode()).decode()
        done = sum(tally.tries for tally in self._tallies.values())
        return Report(done, self._tallies, self._reads, self._writes)
