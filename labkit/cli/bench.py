"""``labkit bench`` and ``labkit verify``: no logic, only arguments and tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import rich.progress
import typer
from rich.console import Console
from rich.table import Table

from labkit.errors import CheckFailed, UsageError
from labkit.experiments.results import check_writable, save, to_json
from labkit.run.settings import CLIENTS

Client = Annotated[str, typer.Option(help=" or ".join(CLIENTS))]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")]
LabName = Annotated[str, typer.Option(help="The lab (its servers).")]

bench = typer.Typer(help="Measure ratios side by side, on real servers.", no_args_is_help=True)
verify = typer.Typer(help="Does it hold? Load, faults, then checkers.", no_args_is_help=True)


@bench.command("restart")
def bench_restart(
    client: Client = "kafka-python",
    scale: Annotated[float, typer.Option(help="Of all sizes; below 1 it is a try.")] = 1.0,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """What snapshots save of a long stream, and whether a longer log slows a restart."""
    from labkit.experiments.bench.restart import restart
    from labkit.experiments.bench.restart_sizes import Sizes

    known(client)
    sizes = Sizes().scaled(scale)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = restart(lab, client, sizes, progress, say)
    save("--json", json_file, to_json(found))
    print(
        f"The state of a stream of {found['snapshots']['events']:,} events comes "
        f"{found['snapshot_speedup']:,.1f} times faster from its newest snapshot."
    )
    restarts = found["restart_s"]
    print(
        f"A handler of {sizes.streams:,} streams restarts in {restarts['short_log']:.2f} s; on a "
        f"log {sizes.times_longer} times longer in {restarts['long_log']:.2f} s "
        f"(ratio {found['restart_ratio']:.2f})."
    )
    if not found["same_state"]:
        raise CheckFailed("the states differ from those that were expected; see the JSON")


@bench.command("freshness")
def bench_freshness(
    tries: Annotated[str, typer.Option(metavar="N", help="Of each strategy.")] = "10000",
    client: Client = "kafka-python",
    seed: Annotated[int, typer.Option(help="Of the order of the tries.")] = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """How often a read is stale, and what it costs that it is not: four strategies under load."""
    from labkit.experiments.bench.freshness import freshness

    known(client)
    count = whole("--tries", tries, 1, 10_000_000)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = freshness(lab, client, count, seed, progress, say)
    save("--json", json_file, to_json(found))
    table = Table(title="Reads just after the reply to a write")
    for column in ("", "tries", "stale", "timed out", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right" if column else "left")
    for strategy, row in found["strategies"].items():
        counts = [f"{row[name]:,}" for name in ("tries", "stale", "timeouts")]
        table.add_row(strategy, *counts, f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}")
    Console().print(table)
    for line in found["checkers"]["C10"]["violations"][:3]:
        print(f"C10: {line}")
    if not found["ok"]:
        raise CheckFailed("a strategy did not keep what it promises; see the table and the JSON")


@bench.command("rebuild")
def bench_rebuild(
    events: Annotated[str, typer.Option(metavar="N", help="In the log at first.")] = "200000",
    rounds: Annotated[str, typer.Option(metavar="N", help="That count.")] = "3",
    probes: Annotated[str, typer.Option(metavar="N", help="Reads meanwhile, at least.")] = "10000",
    client: Client = "kafka-python",
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """A view is built anew while it serves: how fast beside a bare loop, and is it noticed?"""
    from labkit.experiments.bench.rebuild import rebuild

    known(client)
    sizes = (
        whole("--events", events, 1, 10_000_000),
        whole("--rounds", rounds, 1, 100),
        whole("--probes", probes, 1, 10_000_000),
    )
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = rebuild(lab, client, sizes, progress, say)
    save("--json", json_file, to_json(found))
    speed = {arm: statistics.median(each) for arm, each in found["events_per_second"].items()}
    print(
        f"{speed['rebuild']:,.0f} events a second are rebuilt, {speed['bare']:,.0f} by a bare loop "
        f"(ratio {found['ratio_to_bare']:.2f})."
    )
    print(
        f"{found['probes']:,} reads meanwhile, {found['availability']:.2%} of them answered; the "
        f"slowest took {found['slowest_probe_ms']:.0f} ms."
    )
    for line in [*found["trouble"], *found["checkers"]["C9"]["violations"]][:5]:
        print(line)
    if not found["ok"]:
        raise CheckFailed("the rebuild was noticed, or the view is wrong; see above")


@bench.command("cache")
def bench_cache(
    queries: Annotated[str, typer.Option(metavar="N", help="On each side.")] = "10000",
    client: Client = "kafka-python",
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """What a query handler gains by holding answers, and how often they are stale."""
    from labkit.experiments.bench.caching import cache

    known(client)
    count = whole("--queries", queries, 100, 10_000_000)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = cache(lab, client, count, seed, progress, say)
    save("--json", json_file, to_json(found))
    table = Table(title="The query bus with and without a cache, while the accounts change")
    for column in ("cache", "answers/s", "p50 ms", "p99 ms", "held", "stale"):
        table.add_column(column, justify="left" if column == "cache" else "right")
    for side, row in found["sides"].items():
        held = f"{row['cached'] / row['asked']:.1%}"
        stale = f"{row['stale']:,} of {row['looked']:,}"
        figures = (
            f"{row['answers_per_second']:,.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
        )
        table.add_row(side, *figures, held, stale)
    Console().print(table)
    if not found["ok"]:
        raise CheckFailed("a side did not do what it should; see the table and the JSON")


@bench.command("peers")
def bench_peers(
    commands: Annotated[str, typer.Option(metavar="N", help="A round, of the slow.")] = "50000",
    fast_commands: Annotated[
        str, typer.Option(metavar="N", help="A round, of those on confluent-kafka.")
    ] = "300000",
    rounds: Annotated[str, typer.Option(metavar="N", help="Each runs every contestant.")] = "5",
    only: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="These contestants; all by default.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the order in a round.")] = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """The same job by labkit, FastStream, Quix Streams and bare clients, and what each promises."""
    peers = _peers()
    sizes = peers.Sizes(
        whole("--commands", commands, 1_000, 10_000_000),
        whole("--fast-commands", fast_commands, 1_000, 10_000_000),
        whole("--rounds", rounds, 1, 100),
    )
    names = [name.strip() for name in only.split(",") if name.strip()]
    peers.choose(names)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = peers.peers(lab, sizes, names, seed, progress, say)
    save("--json", json_file, to_json(found))
    table = Table(title="From preloaded commands to documents in MongoDB")
    for column in ("", "commands/s", "95 %", "with the full view"):
        table.add_column(column, justify="right" if column else "left")
    for name, rate in found["rates"].items():
        ends = found["intervals"][name]
        between = f"{ends[0]:,.0f} to {ends[1]:,.0f}" if ends else ""
        full = found["rates_full_view"].get(name)
        table.add_row(name, f"{rate:,.0f}", between, f"{full:,.0f}" if full else "")
    Console().print(table)
    for target in found["targets"]:
        verb = "reached" if target["reached"] else "MISSED"
        print(
            f"{target['ratio']}: {target['median']:.2f} (at least {target['at_least']:g}: {verb})"
        )
    if not found["ok"]:
        raise CheckFailed(f"wrong documents by {', '.join(found['wrong'])}; see the JSON")


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


@bench.command("latency")
def bench_latency(
    rounds: Annotated[str, typer.Option(metavar="N", help="Each has a block of each kind.")] = "5",
    commands: Annotated[str, typer.Option(metavar="N", help="Of a block.")] = "200",
    client: Client = "kafka-python",
    seed: Annotated[int, typer.Option(help="Of the order of the blocks.")] = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """One command at a time, to its answer and into the view, beside a bare transaction."""
    from labkit.experiments.bench.latency import latency

    known(client)
    sizes = whole("--rounds", rounds, 1, 1_000), whole("--commands", commands, 1, 100_000)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = latency(lab, client, sizes, seed, progress, say)
    save("--json", json_file, to_json(found))
    table = Table(title="One command in flight")
    for column in ("", "commands", "p50 ms", "p95 ms", "p99 ms", "max ms", "to bare", "95 %"):
        table.add_column(column, justify="right" if column else "left")
    for kind, row in found["times"].items():
        times = [f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")]
        ends = found["ratios"].get(kind, {}).get("interval")
        between = f"{ends[0]:.2f} to {ends[1]:.2f}" if ends else ""
        ratio = f"{found[f'{kind}_ratio']:.2f}" if kind in found["ratios"] else ""
        table.add_row(kind, f"{row['commands']:,}", *times, ratio, between)
    Console().print(table)
    for name, target in found["targets"].items():
        _show_target(name, found[name], target)
    if not found["ok"]:
        raise CheckFailed("an order was not there when it should have been; see the JSON")


@bench.command("memory")
def bench_memory(
    commands: Annotated[
        str, typer.Option(metavar="N", help="Each to a stream of its own.")
    ] = "1000000",
    client: Client = "kafka-python",
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """What a handler and a projector hold in memory after a million streams."""
    from labkit.experiments.bench.memory import memory

    known(client)
    count = whole("--commands", commands, 1_000, 100_000_000)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = memory(lab, client, count, progress, say)
    save("--json", json_file, to_json(found))
    for name, target in found["targets"].items():
        _show_target(name, found[name], target)
    if not found["ok"]:
        raise CheckFailed(f"{'; '.join(found['run']['wrong'])}")


@bench.command("growth")
def bench_growth(
    commands: Annotated[str, typer.Option(metavar="N", help="Of the long run.")] = "1000000",
    small: Annotated[str, typer.Option(metavar="N", help="Of each short run.")] = "50000",
    client: Client = "confluent",
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Whether a million commands go as fast as fifty thousand."""
    from labkit.experiments.bench.growth import growth

    known(client)
    sizes = (
        whole("--commands", commands, 2_000, 100_000_000),
        whole("--small", small, 1_000, 10_000_000),
    )
    if sizes[0] <= sizes[1]:
        raise UsageError(f"--small must be less than --commands, got {small} and {commands}")
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = growth(lab, client, sizes, progress, say)
    save("--json", json_file, to_json(found))
    if not found["ok"]:
        raise CheckFailed(f"{found['wrong'][0]}; see the JSON")
    speed, ends = found["commands_per_second"], found["ratio_interval"]
    print(
        f"{sizes[0]:,} commands: {speed['long']:,.0f} a second; {sizes[1]:,}: "
        f"{speed['short']:,.0f} (ratio {found['ratio']:.2f}, {ends[0]:.2f} to {ends[1]:.2f})."
    )
    tenths = ", ".join(f"{each:,.0f}" for each in found["tenths"])
    print(f"Tenth by tenth, the first with the start in it: {tenths}.")
    verb = "reached" if found["reached"] else "MISSED"
    print(f"ratio: {found['ratio']:.2f} (at least {found['at_least']:g}: {verb})")


def _show_target(name: str, value: float, target: dict[str, Any]) -> None:
    verb = "reached" if target["reached"] else "MISSED"
    print(f"{name}: {value:,.2f} (at most {target['at_most']:,g}: {verb})")


@verify.command("write")
def verify_write(
    commands: Annotated[str, typer.Option(metavar="N", help="How many.")] = "100000",
    plant: Annotated[
        str | None, typer.Option(help="A bug that a checker must see; see the documentation.")
    ] = None,
    client: Client = "kafka-python",
    seed: Annotated[int, typer.Option(help="Of the load.")] = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Three services under load and faults; what the client saw tells what was lost or doubled."""
    from labkit.experiments.verify import write as verification

    known(client)
    count = whole("--commands", commands, 100, 10_000_000)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = verification.verify_write(lab, client, count, plant, seed, progress, say)
    save("--json", json_file, to_json(found))
    _show_verdicts(found)
    if not found["ok"]:
        wrong = verification.red(found)
        raise CheckFailed(
            f"{', '.join(wrong)} turned red" if wrong else "no checker is red, but see the notes"
        )


@verify.command("queries")
def verify_queries(
    queries: Annotated[str, typer.Option(metavar="N", help="How many are asked.")] = "10000",
    plant: Annotated[
        str | None, typer.Option(help="A bug that must be seen: swapped-answers, lost-answers.")
    ] = None,
    client: Client = "kafka-python",
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Each question its own answer over Kafka, though a handler is killed in the middle."""
    from labkit.experiments.verify.queries import verify_queries

    known(client)
    count = whole("--queries", queries, 100, 10_000_000)
    check_writable("--json", json_file)
    with bars() as (progress, say):
        found = verify_queries(lab, client, count, plant, seed, progress, say)
    save("--json", json_file, to_json(found))
    print(
        f"{found['answered']:,} of {found['asked']:,} questions were answered, "
        f"{found['mismatched']} of them wrong; {found['timed_out']} timed out, "
        f"{found['refused']} were refused. {found['answers_per_second']:,.0f} answers a second, "
        f"the outage of {len(found['killed'])} killed handlers included; half of them after "
        f"{found['p50_ms']:,.0f} ms."
    )
    for line in found["examples"]:
        print(line)
    if not found["ok"]:
        raise CheckFailed("not each question got its own answer; see above and the JSON")


def _show_verdicts(found: dict[str, Any]) -> None:
    from labkit.experiments.verify.checkers import MEANINGS

    table = Table(title="What must hold, by what the client saw")
    for column, justify in (("", "left"), ("", "left"), ("facts", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, verdict in found["checkers"].items():
        mark = "[green]holds[/]" if verdict["ok"] else f"[bold red]{verdict['found']} WRONG[/]"
        table.add_row(name, MEANINGS[name], f"{verdict['checked']:,}", mark)
    Console().print(table)
    for name, verdict in found["checkers"].items():
        for line in verdict["violations"][:3]:
            print(f"{name}: {line}")
    for fault in found["faults"]:
        struck = "" if fault["struck"] else " (this has NOT happened)"
        print(f"{fault['worker']}: {fault['fault']}{struck}")
    print(
        f"{found['commands']:,} commands, {found['repeated']:,} of them twice, and "
        f"{found['process_commands']:,} by processes; {found['commands_per_second']:,.0f} a s, "
        f"faults included. Parked: {found['parked']}; ignored commits: {found['ignored_commits']}; "
        f"{'quiet' if found['quiet'] else 'it never became quiet'}."
    )


def known(client: str) -> None:
    """Raises ``UsageError`` for a client that is none."""
    if client not in CLIENTS:
        raise UsageError(f"--client must be one of {', '.join(CLIENTS)}, got {client!r}")


def whole(option: str, text: str, least: int, most: int) -> int:
    """Typer's own message does not name the value."""
    try:
        number = int(text)
        if least <= number <= most:
            return number
    except ValueError:
        pass
    raise UsageError(f"{option} must be a whole number from {least} to {most}, got {text!r}")


@contextmanager
def bars() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """A progress bar a stage, on stderr; and a way to print above them."""
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<9}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bars:
        tasks: dict[str, rich.progress.TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield progress, lambda line: bars.console.print(line, highlight=False, markup=False)
