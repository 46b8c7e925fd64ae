"""``labkit bench cost``: CRUD and CQRS side by side."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from labkit.cli.measure import between, measure, show_confidence, table
from labkit.cli.options import Client, JsonFile, LabName, Seed, names, number, option, whole
from labkit.experiments.intervals import LEAST_SECONDS

#: A client says nothing while it measures, and one that says nothing for a minute hangs.
LONGEST_SECONDS = 30


def cost(
    runs: Annotated[int, option("Runs; each runs every arm.", whole(1, 100))] = 6,
    rate: Annotated[float, option("Commands a second, for latencies.", number(1, 100_000))] = 100,
    writers: Annotated[int, option("Writers, for throughput.", whole(1, 64))] = 16,
    seconds: Annotated[
        float, option("Seconds of each measurement.", number(0.2, LONGEST_SECONDS))
    ] = 5,
    only: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Measurements; default: all.")
    ] = "",
    client: Client = "kafka-python",
    seed: Seed = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Compare CRUD (well made, naive, with a fed view) and labkit: speed, contention, the past."""
    from labkit.experiments.cost import cost as experiment
    from labkit.experiments.cost.trial import Sizes

    chosen = names(only)
    experiment.chosen(chosen)
    sizes = Sizes(rate, writers, seconds)
    measure(partial(experiment.cost, lab, client, sizes, runs, chosen, seed), json_file, _show)


def _show(found: dict[str, Any]) -> str | None:
    _wins("Where CRUD is better", found["wins"])
    _wins("Where labkit is better", found["losses"])
    figures = found["figures"]
    arms = [a for a in found["checkers"] if any(a in f["arms"] for f in figures.values())]
    rows = (
        [_named(figure), *(_cell(figure["arms"].get(arm)) for arm in arms)]
        for figure in figures.values()
    )
    settings = found["settings"]
    print(
        f"{settings['runs']} runs; {settings['rate']:g} commands a second for latencies; "
        f"{settings['writers']} writers, then {settings['many_writers']}, for throughput; "
        f"{settings['accounts']} accounts."
    )
    table("All figures: the median of the runs, and its interval", ("", *arms), rows)
    of_all = (a["level"] for figure in figures.values() for a in figure["arms"].values())
    show_confidence(of_all)
    for checker, each in found["anomalies"].items():
        print(f"naive: {checker} found {', '.join(map(str, each))} anomalies in the runs.")
    if short := found["too_short"]:
        said = ", ".join(f"{name} ({seconds:g} s)" for name, seconds in short.items())
        print(
            f"Too short to compare: {said}; below {LEAST_SECONDS:g} s the warm-up decides. "
            "Give more --seconds."
        )
    if late := found["not_sustained"]:
        print(
            f"The rate was not sustained by {', '.join(late)}: these latencies are those of a "
            "queue. Give a lower --rate."
        )
    if settings["runs"] == 1:
        print("One run has no interval: which arm is better is what this run says.")
    for line in found["wrong"][:5]:
        print(line)
    return None if found["ok"] else "an arm is not what it claims to be; see above and the JSON"


def _wins(title: str, wins: list[dict[str, Any]]) -> None:
    if not wins:
        print(f"{title}: in nothing that was measured.")
        return
    rows = (
        [
            _named(won),
            *(_number(won["crud"]), _number(won["labkit"])),
            "" if won["crud_to_labkit"] is None else f"{won['crud_to_labkit']:.2f}",
            between(won["interval"], ".2f"),
        ]
        for won in wins
    )
    table(title, ("", "crud", "labkit", "crud/labkit", "interval"), rows)


def _named(figure: dict[str, Any]) -> str:
    return ", ".join(filter(None, (figure["words"], figure["unit"])))


def _cell(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    ends = found["interval"]
    within = f" ({_number(ends[0])} to {_number(ends[1])})" if ends and ends[0] < ends[1] else ""
    return f"{_number(found['median'])}{within}"


def _number(value: float) -> str:
    """Three digits, and no power of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
