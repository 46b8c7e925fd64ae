"""``labkit bench lag``: no logic, only arguments and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from labkit.cli.bench import Client, JsonFile, LabName, known, whole
from labkit.cli.load import number
from labkit.errors import CheckFailed
from labkit.experiments.results import check_writable, save, to_json

if TYPE_CHECKING:
    from labkit.experiments.load.lag_sweep import Swept

#: Said in the help, which must not wait for pandas; a test holds it to ``lag_sweep.FACTORS``.
FACTORS = "rate, batch_size, linger, projectors, write_concern"
WARM_UP_SECONDS = 2.0


def lag(
    factor: Annotated[str, typer.Argument(help=FACTORS)],
    rate: Annotated[str, typer.Option(help="Commands a second.")] = "300",
    seconds: Annotated[str, typer.Option(help="That count, of each run.")] = "10",
    rounds: Annotated[str, typer.Option(metavar="N", help="Of each value.")] = "5",
    client: Client = "kafka-python",
    seed: Annotated[str, typer.Option(metavar="N", help="Of timetables and order.")] = "1",
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """One factor varied, all else alike: how long a commit stays unseen, under the same load."""
    from labkit.experiments.load import lag_sweep
    from labkit.experiments.load.arrivals import Plan

    known(client)
    plan = Plan(
        rate=number("--rate", rate, 1, 1_000_000),
        seconds=number("--seconds", seconds, 1, 3_600),
        warm_up=WARM_UP_SECONDS,
        seed=whole("--seed", seed, 0, 2**32),
    ).check()
    times = whole("--rounds", rounds, 2, 1_000)
    lag_sweep.known(factor)
    check_writable("--json", json_file)
    console = Console(stderr=True)
    found = lag_sweep.sweep(
        lab, factor, plan, client=client, rounds=times, report=lambda line: console.print(line)
    )
    save("--json", json_file, to_json(found.report))
    _show(found)
    if not found.runs["ok"].all():
        raise CheckFailed("some runs do not count: see `trouble` in the frames that are kept")


def _show(found: Swept) -> None:
    factor = found.report["factor"]
    table = Table(title="Consistency lag: from the reply to the first query that shows it, in ms")
    for column in (factor, "p50", "95 % interval", "p99", "reply p50", "thrown out"):
        table.add_column(column, justify="left" if column == factor else "right")
    for row in found.values.to_dict("records"):
        table.add_row(
            str(row[factor]),
            f"{row['p50']:,.1f}",
            f"{row['p50_low']:,.1f} - {row['p50_high']:,.1f}",
            f"{row['p99']:,.1f}",
            f"{row['reply_p50']:,.1f}",
            f"{row['thrown_out']} of {row['runs'] + row['thrown_out']}",
        )
    Console().print(table)
    print(f"kept: {found.folder}")
