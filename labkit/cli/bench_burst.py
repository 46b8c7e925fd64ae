"""``labkit bench burst``: peaks, what they leave behind, and what each protection is good for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer

from labkit.cli.bench_service import Service
from labkit.cli.measure import between, measure, show_confidence, table
from labkit.cli.options import Client, JsonFile, LabName, Seed, bug_of, names, number, option, whole
from labkit.errors import UsageError

RATE = "Commands a second that the workers are paced to; what they do is measured in each run."
PEAKS = "Peaks, as multiples of what the workers do."
PLANTS = ("passed-over", "false-refusals")
AT = "The peak at which the mechanisms are compared."


def burst(
    rate: Annotated[float, option(RATE, number(10, 100_000))] = 60,
    peaks: Annotated[str, typer.Option(metavar="TIMES,TIMES", help=PEAKS)] = "2,5,20",
    at: Annotated[float, option(AT, number(1, 1_000))] = 5,
    seconds: Annotated[float, option("Seconds of a peak.", number(0.1, 60))] = 0.5,
    runs: Annotated[int, option("Runs; each has every peak and mechanism.", whole(1, 100))] = 6,
    only: Annotated[str, typer.Option(metavar="NAME,NAME", help="Mechanisms; default: all.")] = "",
    client: Client = "kafka-python",
    seed: Seed = 1,
    service: Service = None,
    plant: Annotated[str | None, bug_of(PLANTS)] = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Send more than the service can do; count what is taken, turned away and lost, and how long
    it takes until all is as usual again."""
    from labkit.experiments.burst import bench
    from labkit.experiments.burst.mechanisms import chosen
    from labkit.experiments.verify.planting import planted

    sizes = bench.Sizes(
        rate=rate,
        peaks=_peaks(peaks),
        at=at,
        seconds=seconds,
        runs=runs,
        only=tuple(m.name for m in chosen(names(only))),
    )
    services = tuple(service or ())
    bench.planned(sizes, seed, services)
    run = partial(bench.burst, lab, sizes, seed, client, services)
    with planted(plant):
        measure(run, json_file, _show)


def _peaks(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in names(given))
    except ValueError:
        raise UsageError(f"--peaks must be numbers such as 2,5,20, got {given!r}") from None


def _show(found: dict[str, Any]) -> str | None:
    able = found["capacity_per_second"]
    print(
        f"The workers do {able['median']:,.1f} commands a second "
        f"({between(able['interval'], ',.1f')}); the clients can make "
        f"{found['clients_are_able']:,.0f} calls a second."
    )
    rows = (
        [f"{row['times']:g} times", *(_cell(row[n], f) for n, f in PEAK_COLUMNS.values())]
        for row in found["peaks"]
    )
    table("Peaks without protection", ("", *PEAK_COLUMNS), rows)
    rows = (
        [row["mechanism"], *(_cell(row[n], f) for n, f in COLUMNS.values())]
        for row in found["mechanisms"]
    )
    title = f"A peak of {found['settings']['at']:g} times what the workers do"
    table(title, ("", *COLUMNS), rows)
    show_confidence(row["measured_s"]["level"] for row in found["mechanisms"])
    if found["late"]:
        print(
            f"In {found['late']} of {len(found['runs'])} bursts the clients were late: the machine "
            "was busy with other work, and the peak was flatter than it should be."
        )
    verdicts = found["checkers"]
    for name in found["red"]:
        for line in verdicts[name]["violations"][:3]:
            print(f"{name}: {line}")
    return f"{', '.join(found['red'])} turned red; see the JSON" if found["red"] else None


#: Columns with the name of the figure and its format.
PEAK_COLUMNS = {
    "commands": ("commands", ",.0f"),
    "accepted": ("accepted", ",.0f"),
    "unknown": ("unknown", ",.0f"),
    "lost": ("lost", ",.0f"),
    "backlog": ("backlog", ",.0f"),
    "drain s, predicted": ("predicted_s", ".1f"),
    "measured": ("measured_s", ".1f"),
    "worked/s": ("worked_per_second", ",.1f"),
    "done p99 ms": ("done_p99_ms", ",.0f"),
    "reads failed": ("reads_failed", ",.0f"),
}
COLUMNS = {
    "accepted": ("accepted", ",.0f"),
    "turned away": ("turned_away", ",.0f"),
    "of the urgent": ("urgent_away", ".0%"),
    "unknown": ("unknown", ",.0f"),
    "lost": ("lost", ",.0f"),
    "told p50 ms": ("told_p50_ms", ",.0f"),
    "told p99 ms": ("told_p99_ms", ",.0f"),
    "done p99 ms": ("done_p99_ms", ",.0f"),
    "reads failed": ("reads_failed", ",.0f"),
    "reads old": ("reads_old", ",.0f"),
    "to normal s": ("measured_s", ".1f"),
}


def _cell(figure: Mapping[str, Any], form: str) -> str:
    if math.isnan(figure["median"]):
        return "-"
    ends = figure["interval"]
    spread = f" ({ends[0]:{form}} - {ends[1]:{form}})" if ends and ends[0] != ends[1] else ""
    return f"{figure['median']:{form}}{spread}"
