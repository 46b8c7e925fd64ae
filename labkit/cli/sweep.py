"""``labkit bench sweep``: throughput against one factor."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated

from labkit.cli.bench_service import Service, named
from labkit.cli.measure import measure, show_confidence, table
from labkit.cli.options import Client, JsonFile, LabName, Rounds, Seed, chosen, option, whole

if TYPE_CHECKING:
    from labkit.experiments.bench.scaling import Scaling
    from labkit.experiments.bench.sweeps import Swept

#: A copy of ``sweeps.FACTORS``, because the help must not wait for pandas; a test compares them.
FACTORS = ("batch", "partitions", "workers", "payload", "client", "delivery", "log")

COLUMNS = (
    *("", "commands/s", "interval", "to the first", "a transaction", "core s/1000"),
    "thrown out",
)


def sweep(
    factor: Annotated[str, chosen(FACTORS)],
    rounds: Rounds = 6,
    commands: Annotated[
        int | None, option("Commands in the topic; default: 5 s of them.", whole(100, 10_000_000))
    ] = None,
    client: Client = "kafka-python",
    seed: Seed = 1,
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Vary one factor, and measure the throughput of the same commands, with all checkers on."""
    from labkit.experiments.bench import sweeps

    arms = sweeps.arms_of(factor, client, commands, named(service))
    measure(partial(sweeps.sweep, lab, factor, arms, rounds, seed), json_file, _show)


def _show(found: Swept) -> str | None:
    from labkit.experiments.intervals import LEAST_SECONDS

    rows = (
        [
            *(str(row["arm"]), _rate(row["commands_per_second"])),
            f"{_rate(row['low'])} - {_rate(row['high'])}",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f} - {row['ratio_high']:.2f})",
            f"{row['per_transaction']:,.0f}",
            f"{row['core_seconds_per_1000']:.3f}",
            f"{row['thrown_out']} of {row['runs']}",
        ]
        for row in found.arms.to_dict("records")
    )
    table("Commands a second, from the topic to the view; all checkers green", COLUMNS, rows)
    show_confidence(found.arms["level"])
    for run in found.runs[~found.runs["green"]].to_dict("records"):
        print(f"{run['arm']}, round {run['round'] + 1}: {run['red']} turned red; no rate")
    short = found.runs[(found.runs["seconds"] < LEAST_SECONDS) | ~found.runs["steady"]]
    if len(short):
        print(
            f"{len(short)} of {len(found.runs)} runs were measured for less than "
            f"{LEAST_SECONDS:g} s (the shortest for {short['seconds'].min():.2f} s), too short to "
            "compare: the warm-up decides. Give more --commands."
        )
    if found.scaling:
        _show_scaling(found.scaling)
    return None if found.ok else "a checker turned red, and these runs have no rate; see the JSON"


def _show_scaling(scaling: Scaling) -> None:
    law = scaling.law
    ends = {name: scaling.interval(name) for name in ("sigma", "kappa", "peak")}
    print(
        f"Universal Scalability Law: contention sigma {law.sigma:.3f} "
        f"({ends['sigma'][0]:.3f} - {ends['sigma'][1]:.3f}), coherency kappa {law.kappa:.4f} "
        f"({ends['kappa'][0]:.4f} - {ends['kappa'][1]:.4f}); the mean error of a run is "
        f"{scaling.error:.1%}."
    )
    if law.peak is None:
        print("It has no peak: in the measured range, more workers increase the throughput.")
        return
    beyond = "" if law.peak <= scaling.most else ", beyond the measured range"
    high = f"{ends['peak'][1]:.1f}" if math.isfinite(ends["peak"][1]) else "no peak at all"
    print(f"Its peak is at {law.peak:.1f} workers ({ends['peak'][0]:.1f} - {high}){beyond}.")


def _rate(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"
