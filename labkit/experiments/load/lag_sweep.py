"""Consistency lag against load, batch size, linger, number of projectors, write concern.

One factor varies, everything else stays the same. Each run is one load (``load.offer``) with new
topics, a new database and new workers. A round contains each value once, in random order, so that
other activity of the machine affects all values alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from labkit import stack
from labkit.errors import UsageError
from labkit.experiments.intervals import interval_if_any
from labkit.experiments.load import arrivals, consistency
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.offer import Loaded, offer
from labkit.experiments.results import archive, machine
from labkit.experiments.scratch import scratch_run, versions_on

if TYPE_CHECKING:
    import pandas as pd

#: The factors and their values; rates are shares of the plan's rate.
FACTORS: Mapping[str, Sequence[Any]] = {
    "rate": (0.25, 0.5, 1.0, 1.5),
    "batch_size": (1, 10, 100, 4_000),
    "linger": (0.0, 0.01, 0.05),
    "projectors": (1, 2, 4),
    "write_concern": ("majority", "1"),
}


class LagSweep(Struct):
    """``runs`` has a row for each run, see ``row``; ``values`` a row for each value, with medians
    over the rounds and their intervals. ``report`` is the JSON, ``folder`` holds all of it."""

    runs: pd.DataFrame
    values: pd.DataFrame
    report: dict[str, Any]
    folder: Path


def known(factor: str) -> None:
    """Raises ``UsageError`` for an unknown factor."""
    if factor not in FACTORS:
        raise UsageError(f"factor must be one of {', '.join(FACTORS)}, got {factor!r}")


def sweep(
    name: str,
    factor: str,
    plan: Plan,
    *,
    client: str = "kafka-python",
    rounds: int = 6,
    values: Sequence[Any] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> LagSweep:
    """Measure the lag at each value of a factor, in several rounds, and keep the results.

    ``plan.seed`` draws the order, too. Starts servers that are not up, and stops what it started.
    Raises ``UsageError`` for an unknown factor or fewer than two rounds; ``StackError`` and
    ``TimedOut`` where servers or workers fail.
    """
    import pandas as pd

    known(factor)
    if rounds < 2:
        raise UsageError(f"an interval needs at least 2 rounds, got {rounds}")
    values = FACTORS[factor] if values is None else values
    rng, rows = Random(plan.seed), list[dict[str, Any]]()
    with stack.borrowed(name, report) as servers:
        for number in range(rounds):
            for value in rng.sample(list(values), len(values)):
                again = structs.replace(plan, seed=plan.seed + number)
                loaded = _run(name, factor, value, again, client)
                rows.append({factor: value, "round": number, "order": len(rows)} | row(loaded))
                report(f"{factor} {value}: p50 {rows[-1]['p50']:.1f} ms")
        server_versions = versions_on(name, client)
    runs = pd.DataFrame(rows)
    found = summary(runs, factor)
    whole = {
        "bench": "lag",
        "factor": factor,
        "settings": {"plan": arrivals.shape(plan), "client": client, "rounds": rounds},
        "seed": plan.seed,
        "versions": server_versions,
        "machine": machine(),
        "stack": servers.kind,
        "values": found.to_dict("records"),
    }
    folder = archive("lag", whole, {"runs": runs, "values": found})
    return LagSweep(runs, found, whole | {"folder": str(folder)}, folder)


def _run(name: str, factor: str, value: Any, plan: Plan, client: str) -> Loaded:
    settings = {} if factor in ("rate", "projectors") else {factor: value}
    with scratch_run(name, services=[plan.service], client=client, start=False, **settings) as lab:
        lab.start(projectors=value if factor == "projectors" else 1)
        return offer(lab, plan.at(plan.rate * value) if factor == "rate" else plan, dry=False)


def row(loaded: Loaded) -> dict[str, Any]:
    """The figures of a run: percentiles of the lag in ms, for its later and (``at_least_``) its
    earlier end;
    ``reply_p50``; how many commands a batch of the handler and of the projector had in the mean;
    ``ok``, and why it does not count if it does not (``trouble``)."""
    table = consistency.table(consistency.stages(loaded.commands))
    commands = loaded.commands
    reply = consistency.histogram((commands["heard"] - commands["intended"]) / 1e6)
    lag, early = (
        table.loc[name].to_dict() for name in (consistency.LAG, f"{consistency.LAG} (at least)")
    )
    return {
        **{name: float(lag[name]) for name in (*consistency.PERCENTILES, "max")},
        **{f"at_least_{name}": float(early[name]) for name in consistency.PERCENTILES},
        "reply_p50": reply.get_value_at_percentile(50) / 1e3,
        "handler_batch": float(commands.groupby("polled").size().mean()),
        "projector_batch": float(commands.groupby("fetched").size().mean()),
        "never": int(lag["never"]),
        "ok": loaded.ok,
        "trouble": "; ".join(loaded.trouble),
    }


def summary(runs: pd.DataFrame, factor: str) -> pd.DataFrame:
    """One row for each value: the medians of p50, p99 and reply_p50 over the runs that count, each
    with an interval (NaN for fewer than two runs) and its confidence ``level``, and the number of
    discarded runs."""
    import pandas as pd

    rows = []
    for value, all_runs in runs.groupby(factor, sort=False):
        mine = all_runs[all_runs["ok"]]
        found: dict[str, Any] = {factor: value, "runs": len(mine)}
        found["thrown_out"] = len(all_runs) - len(mine)
        for name in ("p50", "p99", "reply_p50"):
            low, high, found["level"] = interval_if_any(mine[name].tolist())
            found |= {name: mine[name].median(), f"{name}_low": low, f"{name}_high": high}
        rows.append(found)
    return pd.DataFrame(rows).sort_values(factor, ignore_index=True)
