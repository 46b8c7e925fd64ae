"""``labkit bench lag``: the consistency lag against one factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from labkit.cli.bench_service import Service, named
from labkit.cli.measure import Progress, Say, cells, measure, show_confidence, table
from labkit.cli.options import Client, JsonFile, LabName, Rounds, Seed, chosen, number, option
from labkit.services import MEASURED

if TYPE_CHECKING:
    from labkit.experiments.load.lag_sweep import LagSweep

#: A copy of ``lag_sweep.FACTORS``, because the help must not wait for pandas; a test compares them.
FACTORS = ("rate", "batch_size", "linger", "projectors", "write_concern")
WARM_UP_SECONDS = 2.0


def lag(
    factor: Annotated[str, chosen(FACTORS)],
    rate: Annotated[float, option("Commands a second.", number(1, 1_000_000))] = 300,
    seconds: Annotated[float, option("Measured seconds of each run.", number(1, 3_600))] = 10,
    rounds: Rounds = 6,
    client: Client = "kafka-python",
    seed: Seed = 1,
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Vary one factor, and measure how long a commit stays invisible to queries."""
    from labkit.experiments.load import lag_sweep
    from labkit.experiments.load.arrivals import Plan

    only = named(service)
    plan = Plan(
        rate=rate,
        seconds=seconds,
        warm_up=WARM_UP_SECONDS,
        services=MEASURED if only is None else (only,),
        seed=seed,
    ).check()

    def sweep(_: Progress, say: Say) -> LagSweep:
        return lag_sweep.sweep(lab, factor, plan, client=client, rounds=rounds, report=say)

    measure(sweep, json_file, _show)


def _show(found: LagSweep) -> str | None:
    factor = found.report["factor"]
    rows = (
        [
            *(str(row[factor]), f"{row['p50']:,.1f}"),
            f"{row['p50_low']:,.1f} - {row['p50_high']:,.1f}",
            *cells(row, ",.1f", "p99", "reply_p50"),
            f"{row['thrown_out']} of {row['runs'] + row['thrown_out']}",
        ]
        for row in found.values.to_dict("records")
    )
    columns = (factor, "p50", "interval", "p99", "reply p50", "thrown out")
    table("Consistency lag: from the reply to the first query that shows it, in ms", columns, rows)
    show_confidence(found.values["level"])
    if found.runs["ok"].all():
        return None
    return "some runs do not count; see the column `trouble` of the kept runs"
