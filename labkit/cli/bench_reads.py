"""``labkit bench``: restarts, reads, rebuilds and the query cache."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Annotated, Any

from labkit.cli.bench_service import Service, named
from labkit.cli.measure import cells, measure, show_too_short, table
from labkit.cli.options import Client, JsonFile, LabName, Seed, number, option, whole
from labkit.plots.rule_of_three import counted

MOST = 10_000_000
TIMES = ("p50_ms", "p99_ms")


def restart(
    client: Client = "kafka-python",
    scale: Annotated[float, option("Factor for all sizes.", number(0.001, 1))] = 1.0,
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Measure how much time snapshots save, and whether a longer log slows a restart."""
    from labkit.experiments.bench import restart as experiment
    from labkit.experiments.bench.restart_sizes import Sizes

    sizes = Sizes().scaled(scale)
    run = partial(experiment.restart, lab, client, sizes, service=named(service))
    measure(run, json_file, _show_restart)


def _show_restart(found: dict[str, Any]) -> str | None:
    sizes, seconds = found["sizes"], found["restart_s"]
    print(
        f"A stream of {found['snapshots']['events']:,} events loads "
        f"{found['snapshot_speedup']:,.1f} times faster from its newest snapshot."
    )
    print(
        f"A handler of {sizes['streams']:,} streams restarts in {seconds['short_log']:.2f} s; with "
        f"a log {sizes['times_longer']} times longer, in {seconds['long_log']:.2f} s "
        f"(ratio {found['restart_ratio']:.2f})."
    )
    return None if found["same_state"] else "a state differs from the expected one; see the JSON"


def freshness(
    tries: Annotated[int, option("Reads with each strategy.", whole(1, MOST))] = 10_000,
    client: Client = "kafka-python",
    seed: Seed = 1,
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Measure how often a read is stale, and what each of four strategies against it costs."""
    from labkit.experiments.bench import freshness as experiment

    run = partial(experiment.freshness, lab, client, tries, seed, service=named(service))
    measure(run, json_file, _show_freshness)


def _show_freshness(found: dict[str, Any]) -> str | None:
    rows = (
        [
            *(strategy, counted(row["stale"], row["tries"])),
            *(*cells(row, ",", "timeouts"), *cells(row, ".1f", *TIMES)),
        ]
        for strategy, row in found["strategies"].items()
    )
    columns = ("", "stale", "timed out", "p50 ms", "p99 ms")
    table("Reads just after the reply to a write", columns, rows)
    for line in found["checkers"]["C10"]["violations"][:3]:
        print(f"C10: {line}")
    if found["ok"]:
        return None
    return "a strategy did not keep what it promises; see the table and the JSON"


def rebuild(
    events: Annotated[int, option("Events in the log at the start.", whole(1, MOST))] = 200_000,
    rounds: Annotated[int, option("Measured rounds.", whole(1, 100))] = 3,
    probes: Annotated[int, option("Reads during the rebuilds, at least.", whole(1, MOST))] = 10_000,
    client: Client = "kafka-python",
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Rebuild a view while it serves: compare with a bare loop, and check what readers see."""
    from labkit.experiments.bench import rebuild as experiment

    sizes = events, rounds, probes
    run = partial(experiment.rebuild, lab, client, sizes, service=named(service))
    measure(run, json_file, _show_rebuild)


def _show_rebuild(found: dict[str, Any]) -> str | None:
    speed = {arm: statistics.median(each) for arm, each in found["events_per_second"].items()}
    print(
        f"The rebuild applies {speed['rebuild']:,.0f} events a second, a bare loop "
        f"{speed['bare']:,.0f} (ratio {found['ratio_to_bare']:.2f})."
    )
    show_too_short(found["too_short"])
    missed = round((1 - found["availability"]) * found["probes"])
    print(
        f"{counted(missed, found['probes'])} reads during the rebuilds were not answered; the "
        f"slowest took {found['slowest_probe_ms']:.0f} ms."
    )
    for line in found["trouble"][:5]:
        print(line)
    for name, verdict in found["checkers"].items():
        for line in verdict["violations"][:3]:
            print(f"{name}: {line}")
    return None if found["ok"] else "a reader noticed the rebuild, or the view is wrong; see above"


def cache(
    queries: Annotated[int, option("Queries on each side.", whole(100, MOST))] = 10_000,
    client: Client = "kafka-python",
    seed: Seed = 1,
    service: Service = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Measure what a query handler gains from a cache, and how often its answers are stale."""
    from labkit.experiments.bench import caching as experiment

    run = partial(experiment.cache, lab, client, queries, seed, service=named(service))
    measure(run, json_file, _show_cache)


def _show_cache(found: dict[str, Any]) -> str | None:
    rows = (
        [
            *(side, f"{row['answers_per_second']:,.0f}", *cells(row, ".1f", *TIMES)),
            *(f"{row['cached'] / row['asked']:.1%}", counted(row["stale"], row["looked"])),
        ]
        for side, row in found["sides"].items()
    )
    columns = ("cache", "answers/s", "p50 ms", "p99 ms", "cache hits", "stale")
    table("The query bus with and without a cache, while the documents change", columns, rows)
    if found["ok"]:
        return None
    return "a query failed, or a side used its cache wrongly; see the table and the JSON"
