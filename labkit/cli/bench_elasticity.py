"""``labkit bench elasticity``: autoscaled workers against fixed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.cli.bench_service import Service, named
from labkit.cli.measure import Progress, Say, measure, show_confidence, table
from labkit.cli.options import Client, JsonFile, LabName, Rounds, Seed, number, one_of, option

if TYPE_CHECKING:
    from labkit.experiments.bench.elasticity import Stretched

#: A copy of ``elasticity.LOADS``, because the help must not wait for pandas; a test compares them.
LOADS = ("peak", "days")
COLUMNS = (
    *("load", "arm", "lag above it", "longest lag", "p99", "worker s", "of the most"),
    *("dip", "a worker's CPU", "thrown out"),
)


def _loads(param: typer.CallbackParam, given: list[str] | None) -> list[str]:
    return [one_of(LOADS)("--load", load) for load in dict.fromkeys(given or LOADS)]


def elasticity(
    load: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(LOADS)}; may be repeated; default: all.", callback=_loads),
    ] = None,
    seconds: Annotated[float, option("Seconds of each run.", number(20, 120))] = 60,
    rounds: Rounds = 6,
    client: Client = "kafka-python",
    seed: Seed = 1,
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Autoscale handlers by their time lag, and by their CPU; compare with one and with many.

    Handlers are paced, so that each has the same known capacity and the machine is not the limit.
    """
    from labkit.experiments.bench import elasticity as experiment

    loads = [known for known in experiment.LOADS if known in (load or ())]
    only = named(service)
    for one in loads:
        experiment.plan_of(one, seconds, seed, only)

    def stretch(progress: Progress, say: Say) -> Stretched:
        return experiment.stretch(
            lab,
            loads=loads,
            seconds=seconds,
            rounds=rounds,
            seed=seed,
            client=client,
            service=only,
            progress=progress,
            report=say,
        )

    measure(stretch, json_file, _show)


def _show(found: Stretched) -> str | None:
    rows = (
        [
            *(str(arm["load"]), str(arm["arm"])),
            *(_figure(arm, name, ".1f", " s") for name in ("reaction_s", "max_lag_s", "p99_s")),
            _figure(arm, "worker_seconds", ".0f"),
            *(_figure(arm, name, ".2f") for name in ("cost_to_many", "dip", "cpu_while_above")),
            f"{arm['thrown_out']} of {arm['runs'] + arm['thrown_out']}",
        ]
        for arm in found.arms.to_dict("records")
    )
    bound = found.report["settings"]["up_above_s"]
    title = f"The longest time with a lag above {bound:g} s, and what the workers cost"
    table(title, COLUMNS, rows, left=2)
    show_confidence(found.arms["level"])
    if found.ok:
        return None
    wrong = found.runs[found.runs["red"] != ""].iloc[0]
    return (
        f"{wrong['red']} turned red in round {wrong['round'] + 1} of {wrong['arm']}; see the JSON"
    )


def _figure(arm: Mapping[Any, Any], name: str, form: str, unit: str = "") -> str:
    """The median and its interval."""
    value, low, high = (arm[name + end] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "-"
    ends = "" if math.isnan(low) else f" ({low:{form}} - {high:{form}})"
    return f"{value:{form}}{unit}{ends}"
