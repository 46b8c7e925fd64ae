"""``labkit bench sweep``: no logic, only arguments and tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from labkit.cli.bench import Client, JsonFile, LabName, bars, known, whole
from labkit.errors import CheckFailed
from labkit.experiments.results import check_writable, save, to_json

if TYPE_CHECKING:
    from labkit.experiments.bench.scaling import Scaling
    from labkit.experiments.bench.sweeps import Swept

#: Said in the help, which must not wait for pandas; a test holds it to ``sweeps.FACTORS``.
FACTORS = "batch, partitions, workers, payload, client, delivery, log"


def sweep(
    factor: Annotated[str, typer.Argument(help=FACTORS)],
    rounds: Annotated[str, typer.Option(metavar="N", help="Of each arm.")] = "5",
    commands: Annotated[
        str | None,
        typer.Option(metavar="N", help="In the topic, at most; by default enough for 5 seconds."),
    ] = None,
    client: Client = "kafka-python",
    seed: Annotated[int, typer.Option(help="Of the order of the runs.")] = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """One factor varied, all else alike: how fast the same commands go, with the checkers on."""
    from labkit.experiments.bench import sweeps

    known(client)
    count = whole("--commands", commands, 100, 10_000_000) if commands is not None else None
    arms = sweeps.arms_of(factor, client, count)
    number = whole("--rounds", rounds, 2, 1_000)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = sweeps.sweep(lab, factor, arms, number, seed, progress, say)
    save("--json", json_file, to_json(found.report))
    _show(found)
    if not found.ok:
        raise CheckFailed("a checker turned red, and these runs have no rate; see the JSON")


def _show(found: Swept) -> None:
    from labkit.experiments.bench.sweeps import LEAST_SECONDS

    table = Table(title="Commands a second, from the topic to the view; all checkers green")
    for column in (
        "",
        "commands/s",
        "95 % interval",
        "to the first",
        "a transaction",
        "core s/1000",
    ):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("thrown out", justify="right")
    for row in found.arms.to_dict("records"):
        table.add_row(
            str(row["arm"]),
            _number(row["commands_per_second"]),
            f"{_number(row['low'])} - {_number(row['high'])}",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f} - {row['ratio_high']:.2f})",
            f"{row['per_transaction']:,.0f}",
            f"{row['core_seconds_per_1000']:.3f}",
            f"{row['thrown_out']} of {row['runs']}",
        )
    Console().print(table)
    for run in found.runs[~found.runs["green"]].to_dict("records"):
        print(f"{run['arm']}, round {run['round'] + 1}: {run['red']} turned red; no rate")
    short = found.runs[(found.runs["seconds"] < LEAST_SECONDS) | ~found.runs["steady"]]
    if len(short):
        print(
            f"{len(short)} of {len(found.runs)} runs counted for less than {LEAST_SECONDS:g} s "
            f"(the shortest for {short['seconds'].min():.2f} s): a try. Give more --commands."
        )
    if found.scaling:
        _show_scaling(found.scaling)
    print(f"The runs are kept in {found.folder}")


def _show_scaling(scaling: Scaling) -> None:
    law = scaling.law
    ends = {name: scaling.interval(name) for name in ("sigma", "kappa", "peak")}
    print(
        f"Universal Scalability Law: contention sigma {law.sigma:.3f} "
        f"({ends['sigma'][0]:.3f} - {ends['sigma'][1]:.3f}), coherency kappa {law.kappa:.4f} "
        f"({ends['kappa'][0]:.4f} - {ends['kappa'][1]:.4f}); a run is {scaling.error:.1%} off it, "
        "in the mean."
    )
    if law.peak is None:
        print("It has no peak: within what was measured, more workers bring more.")
        return
    beyond = "" if law.peak <= scaling.most else ", beyond what was measured"
    high = f"{ends['peak'][1]:.1f}" if math.isfinite(ends["peak"][1]) else "no peak at all"
    print(f"Its peak is at {law.peak:.1f} workers ({ends['peak'][0]:.1f} - {high}){beyond}.")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"
