"""``labkit bench``: throughput beside peers, latency, memory, and speed over a long run."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer

from labkit.cli.bench_service import Service, named
from labkit.cli.measure import (
    between,
    cells,
    measure,
    show_confidence,
    show_target,
    show_too_short,
    table,
)
from labkit.cli.options import Client, JsonFile, LabName, Seed, names, option, whole
from labkit.errors import UsageError
from labkit.experiments.intervals import LEAST_SECONDS

SOME, MANY = whole(1_000, 10_000_000), whole(1_000, 100_000_000)
TIMES = ("p50_ms", "p95_ms", "p99_ms", "max_ms")


def peers(
    commands: Annotated[int, option("Commands a round, for slow contestants.", SOME)] = 50_000,
    fast_commands: Annotated[int, option("The same on confluent-kafka.", SOME)] = 300_000,
    rounds: Annotated[int, option("Rounds; each runs every contestant.", whole(1, 100))] = 6,
    only: Annotated[str, typer.Option(metavar="NAME,NAME", help="Contestants; default: all.")] = "",
    seed: Seed = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Compare labkit, FastStream, Quix Streams and bare clients on one job, with their promises."""
    experiment = _peers()

    sizes = experiment.PeerSizes(commands, fast_commands, rounds)
    chosen = names(only)
    experiment.choose(chosen)
    measure(partial(experiment.peers, lab, sizes, chosen, seed), json_file, _show_peers)


def _peers() -> Any:
    """``benchmarks.peers`` of a clone. Raises ``UsageError`` in a wheel, which does not hold it."""
    try:
        return import_module("benchmarks.peers")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.peers"):
            raise
    raise UsageError(
        "the bench of peers is not in the wheel; clone the repository, install the extra `peers` "
        "(pip install -e '.[peers]'), and run it there"
    )


def _show_peers(found: dict[str, Any]) -> str | None:
    rates, full = found["rates"], found["rates_full_view"]
    rows = (
        [
            *(name, f"{rates[name]:,.0f}", between(found["intervals"][name], ",.0f")),
            f"{full[name]:,.0f}" if full.get(name) else "",
        ]
        for name in rates
    )
    columns = ("", "commands/s", "interval", "with the full view")
    table("From preloaded commands to documents in MongoDB", columns, rows)
    show_confidence([found["level"]])
    for target in found["targets"]:
        bound = f"at least {target['at_least']:g}"
        ends = between(found["ratio_intervals"][target["ratio"]], ".2f")
        show_target(target["ratio"], target["median"], bound, target["reached"], ends)
    if found["too_short"]:
        print(
            f"Too short to compare: {', '.join(found['too_short'])} ran for less than "
            f"{LEAST_SECONDS:g} s, and the warm-up decides. Give more --commands."
        )
    return None if found["ok"] else f"wrong documents by {', '.join(found['wrong'])}; see the JSON"


def latency(
    rounds: Annotated[int, option("Rounds of one block a kind.", whole(1, 1_000))] = 6,
    commands: Annotated[int, option("Commands in a block.", whole(1, 100_000))] = 200,
    client: Client = "kafka-python",
    seed: Seed = 1,
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Time one command at a time until its reply and its view; compare with a bare transaction."""
    from labkit.experiments.bench import latency as experiment

    sizes = rounds, commands
    run = partial(experiment.latency, lab, client, sizes, seed, service=named(service))
    measure(run, json_file, _show_latency)


def _show_latency(found: dict[str, Any]) -> str | None:
    ratios = found["ratios"]
    rows = (
        [
            *(kind, *cells(row, ",", "commands"), *cells(row, ".1f", *TIMES)),
            f"{ratios[kind]['median']:.2f}" if kind in ratios else "",
            between(ratios.get(kind, {}).get("interval"), ".2f"),
        ]
        for kind, row in found["times"].items()
    )
    columns = ("", "commands", "p50 ms", "p95 ms", "p99 ms", "max ms", "to bare", "interval")
    table("One command in flight; its ratio to a bare transaction of the same round", columns, rows)
    show_confidence(ratio["level"] for ratio in ratios.values())
    _show_targets(found)
    return None if found["ok"] else "a command was not there when it should have been; see the JSON"


def memory(
    commands: Annotated[int, option("Commands in the topic.", MANY)] = 1_000_000,
    client: Client = "kafka-python",
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Measure the memory of a handler and of a projector after a million streams."""
    from labkit.experiments.bench import memory as experiment

    run = partial(experiment.memory, lab, client, commands, service=named(service))
    measure(run, json_file, _show_memory)


def _show_memory(found: dict[str, Any]) -> str | None:
    _show_targets(found)
    return None if found["ok"] else "; ".join(found["run"]["wrong"])


def growth(
    commands: Annotated[int, option("Commands in the long run.", MANY)] = 1_000_000,
    small: Annotated[int, option("Commands in each short run.", SOME)] = 50_000,
    client: Client = "confluent",
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Compare the throughput of a million commands with that of fifty thousand."""
    from labkit.experiments.bench import growth as experiment

    if commands <= small:
        raise UsageError(f"--small must be less than --commands, got {small} and {commands}")

    sizes = commands, small
    run = partial(experiment.growth, lab, client, sizes, service=named(service))
    measure(run, json_file, _show_growth)


def _show_growth(found: dict[str, Any]) -> str | None:
    if not found["ok"]:
        return f"{found['wrong'][0]}; see the JSON"
    sizes, speed = found["settings"], found["commands_per_second"]
    ends = between(found["ratio_interval"], ".2f")
    print(
        f"{sizes['commands']:,} commands: {speed['long']:,.0f} a second; {sizes['small']:,}: "
        f"{speed['short']:,.0f} (ratio {found['ratio']:.2f}, {ends})."
    )
    show_confidence([found["level"]])
    show_too_short(found["too_short"])
    tenths = ", ".join(f"{each:,.0f}" for each in found["tenths"])
    print(f"Commands a second in each tenth; the first includes the start: {tenths}.")
    show_target("ratio", found["ratio"], f"at least {found['at_least']:g}", found["reached"])
    return None


def _show_targets(found: dict[str, Any]) -> None:
    for name, target in found["targets"].items():
        show_target(name, found[name], f"at most {target['at_most']:,g}", target["reached"])
