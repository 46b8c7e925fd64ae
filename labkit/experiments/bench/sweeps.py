"""``labkit bench sweep``: throughput against one factor, with everything else fixed.

Each round drains every arm once (``drain.py``), in random order, with its own topics, database and
workers: other activity on the machine affects all arms alike, and the *ratio* to the first arm is
taken within a round. A run with a red checker has no rate. The figure of an arm is the median of
its runs, with an interval (``intervals.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
from msgspec import Struct, structs

from labkit import stack
from labkit.errors import UsageError
from labkit.experiments.bench.drain import Arm, Drained, drain
from labkit.experiments.bench.observer import LOOKS_PER_SECOND
from labkit.experiments.bench.preload import REPEATED
from labkit.experiments.bench.scaling import LEAST_POINTS, Scaling, fit
from labkit.experiments.bench.subject import about
from labkit.experiments.bench.window import WARM_UP
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import interval_if_any
from labkit.experiments.processes import fast_client
from labkit.experiments.results import archive, load_average, machine
from labkit.experiments.scratch import versions_on
from labkit.ports.broker import DELIVERIES
from labkit.run.settings import CLIENTS, DEFAULTS, LOGS
from labkit.run.worker import calm_gc

if TYPE_CHECKING:
    import pandas as pd

Factor = Literal["batch", "partitions", "workers", "payload", "client", "delivery", "log"]
FACTORS: tuple[Factor, ...] = get_args(Factor)

#: About ten seconds of work on two cores, of which at least five count.
COMMANDS = {"kafka-python": 100_000, "confluent": 300_000}
#: With small batches, this number of transactions takes as long.
TRANSACTIONS = {"kafka-python": 600, "confluent": 2_000}
#: The MongoDB log is slower.
LOG_COMMANDS = {"kafka": max(COMMANDS.values()), "mongodb": 20_000}
#: The most payload that an arm sends, in bytes.
BALLAST_BYTES = 100 << 20
BATCHES = (1, 10, 100, 1_000, 4_000)
PARTITIONS = (1, 2, 4, 8, 16)
#: This number of partitions can be divided evenly among each of these.
WORKERS, SHARED_PARTITIONS = (1, 2, 3, 4, 6), 12
PAYLOADS = (0, 100, 1_000, 10_000)


class Swept(Struct):
    """The result of a sweep.

    ``runs`` has one row for each run: arm, value, round, order (its position among all runs),
    commands, commands_per_second (NaN if a checker is red), committed_per_second and
    visible_per_second (whatever the checkers say), seconds (of the measured window), steady, green,
    red, transactions, markers, bytes_per_command, and CPU seconds by role. ``arms`` has one row for
    each arm: see ``summary``.
    """

    runs: pd.DataFrame
    arms: pd.DataFrame
    scaling: Scaling | None
    report: dict[str, Any]
    folder: Path

    @property
    def ok(self) -> bool:
        """Whether every run counts."""
        return bool(self.runs["green"].all())


def arms_of(
    factor: str,
    client: str = DEFAULTS.client,
    commands: int | None = None,
    service: str | None = None,
) -> list[Arm]:
    """The arms of a factor; the others are compared with the first. Raises ``UsageError``.

    ``commands`` is the most that a topic holds; the default depends on the client. ``service`` is a
    name or ``module:ATTRIBUTE``; ``None``: the built-in one.
    """
    if factor not in FACTORS:
        raise UsageError(f"FACTOR must be one of {', '.join(FACTORS)}, got {factor!r}")
    if client not in CLIENTS:
        raise UsageError(f"client must be one of {', '.join(CLIENTS)}, got {client!r}")
    most = COMMANDS[client] if commands is None else commands

    def arm(name: str, value: int | str, count: int = most, **more: Any) -> Arm:
        shape = {key: more.pop(key) for key in ("workers", "payload") if key in more}
        settings = {"client": client} | more
        found = Arm(
            name=name,
            value=value,
            commands=min(count, most),
            settings=settings,
            service=service,
            **shape,
        )
        _ = found.subject  # it is refused before servers are started
        return found

    match factor:
        case "batch":
            each = TRANSACTIONS[client]
            return [arm(f"{n:,} a batch", n, each * n, batch_size=n) for n in BATCHES]
        case "partitions":
            return [arm(_so_many(n, "partition"), n, partitions=n) for n in PARTITIONS]
        case "workers":
            shared = SHARED_PARTITIONS
            return [arm(_so_many(n, "worker"), n, workers=n, partitions=shared) for n in WORKERS]
        case "payload":
            return [
                arm(f"{n:,} bytes", n, 2 * BALLAST_BYTES // max(1, n), payload=n) for n in PAYLOADS
            ]
        case "client":
            most = max(COMMANDS.values()) if commands is None else commands
            return [arm(c, c, COMMANDS[c], client=c) for c in CLIENTS]
        case "delivery":
            return [arm(level, level, delivery=level) for level in reversed(DELIVERIES)]
    return [arm(f"{log} log", log, LOG_COMMANDS[log], log=log) for log in LOGS]


def _so_many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def sweep(
    name: str,
    factor: str,
    arms: Sequence[Arm],
    rounds: int = 6,
    seed: int = 1,
    progress: Progress = lambda *_: None,
    report: Callable[[str], None] = lambda _: None,
) -> Swept:
    """Drain each arm ``rounds`` times on real servers, and archive the result.

    Starts servers that are not up, and stops what it started. Raises ``UsageError`` for fewer than
    two arms or rounds, ``StackError`` and ``TimedOut`` where servers or workers fail.
    """
    import pandas as pd

    if len(arms) < 2 or len({arm.name for arm in arms}) < len(arms):
        raise UsageError(f"a sweep compares arms of different names, got {[a.name for a in arms]}")
    if rounds < 2:
        raise UsageError(f"an interval needs at least 2 rounds, got {rounds}")
    measured = [arm.subject for arm in arms]
    calm_gc()
    rng, before = Random(seed), load_average()
    drained: list[tuple[Arm, int, Drained]] = []
    with stack.borrowed(name, report) as servers:
        clients = {arm.settings.get("client", DEFAULTS.client) for arm in arms}
        server_versions = versions_on(name, *sorted(clients), fast_client())
        for number in range(rounds):
            for arm in rng.sample(list(arms), len(arms)):
                done = len(drained)
                report(f"round {number + 1} of {rounds}: {arm.name}, {arm.commands:,} commands")
                found = drain(
                    name,
                    arm,
                    seed + number,
                    lambda now, all, at=done: progress(  # type: ignore[misc]
                        "drained", at * all + now, rounds * len(arms) * all
                    ),
                )
                drained.append((arm, number, found))
    rows = [
        {**found.row, "round": number, "order": order}
        for order, (_, number, found) in enumerate(drained)
    ]
    runs = pd.DataFrame(rows)
    table = summary(runs, [arm.name for arm in arms])
    scaling = _scaling(factor, runs, seed)
    looks = pd.DataFrame(
        [
            {"order": order, "at": x.at, "committed": x.committed, "visible": x.visible, **x.cpu}
            for order, (_, _, found) in enumerate(drained)
            for x in found.looks
        ]
    )
    whole = {
        "bench": "sweep",
        "factor": factor,
        "ok": bool(runs["green"].all()),
        "settings": {
            "rounds": rounds,
            "arms": [structs.asdict(arm) for arm in arms],
            "warm_up_share": WARM_UP,
            "repeated_share": REPEATED,
            "looks_per_second": LOOKS_PER_SECOND,
            **about(measured[0]),
        },
        "seed": seed,
        "versions": server_versions,
        "machine": machine(),
        "load_average_before": before,
        "stack": servers.kind,
        "arms": {name: _plain(row) for name, row in table.set_index("arm").T.to_dict().items()},
        "scaling": scaling.report() if scaling else None,
        "checkers": [
            {"arm": arm.name, "round": number, **msgspec.to_builtins(found.verdicts)}
            for arm, number, found in drained
        ],
    }
    folder = archive("sweep", whole, {"runs": runs, "arms": table, "looks": looks})
    return Swept(runs, table, scaling, whole | {"folder": str(folder)}, folder)


def summary(runs: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """One row for each arm: the median rate of its green runs (NaN without any), and its interval.

    Columns: arm, value, runs, thrown_out, commands_per_second, low, high, level (the confidence of
    the interval), ratio, ratio_low, ratio_high (to the first arm, within a round), seconds
    (median), per_transaction (commands, median), core_seconds_per_1000 (CPU of all roles).
    """
    import pandas as pd

    rates = runs.pivot(index="round", columns="arm", values="commands_per_second")
    used = runs.filter(like="cpu_").sum(axis=1)
    counted = runs["visible_per_second"] * runs["seconds"]
    per_transaction = runs["commands"] / runs["transactions"]
    rows = []
    for arm in arms:
        mine = runs[runs["arm"] == arm]
        counted_rates = rates[arm].dropna().tolist()
        ratios = (rates[arm] / rates[arms[0]]).dropna().tolist()
        low, high, level = interval_if_any(counted_rates)
        ratio_low, ratio_high, _ = interval_if_any(ratios)
        rows.append(
            {
                "arm": arm,
                "value": mine["value"].iloc[0],
                "runs": len(mine),
                "thrown_out": int((~mine["green"]).sum()),
                "commands_per_second": _median(counted_rates),
                "low": low,
                "high": high,
                "level": level,
                "ratio": _median(ratios),
                "ratio_low": ratio_low,
                "ratio_high": ratio_high,
                "seconds": float(mine["seconds"].median()),
                "per_transaction": float(per_transaction[mine.index].median()),
                "core_seconds_per_1000": float((1_000 * used / counted)[mine.index].median()),
            }
        )
    return pd.DataFrame(rows)


def _median(values: list[float]) -> float:
    return median(values) if values else math.nan


def _scaling(factor: str, runs: pd.DataFrame, seed: int) -> Scaling | None:
    """The scaling law of a sweep over workers, if enough arms have a rate."""
    if factor != "workers":
        return None
    counted = runs.dropna(subset=["commands_per_second"])
    by_workers: dict[int, list[float]] = {}
    for workers, rate in zip(counted["value"], counted["commands_per_second"], strict=True):
        by_workers.setdefault(int(workers), []).append(float(rate))
    return fit(by_workers, seed) if len(by_workers) >= LEAST_POINTS else None


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row for the JSON, with NaN as ``null``."""
    return {name: None if value != value else value for name, value in row.items()}
