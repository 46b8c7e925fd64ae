"""The command line: no logic, only arguments, tables and exit codes.

Exit codes: 0 fine, 1 a check failed, 2 usage or environment, 130 interrupted.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import rich.progress
import typer
from rich.console import Console
from rich.table import Table

from labkit import failpoints
from labkit.deadletters_cli import app as dead_letters_app
from labkit.errors import CheckFailed, LabkitError, UsageError
from labkit.lab import worker_status
from labkit.ports import DELIVERIES
from labkit.results import check_writable, save
from labkit.run import CLIENTS, DEFAULTS, LOGS, ROLES, Settings, make_worker
from labkit.runtime import Worker, work
from labkit.stack.commands import WORKERS, say
from labkit.stack.commands import app as stack_app

if TYPE_CHECKING:
    from labkit.experiments.demo import Demo

PROBE_COLUMNS = ["stale_ms", "fresh_ms"]

app = typer.Typer(
    help="Learn, run and measure CQRS on real Kafka and real MongoDB.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(stack_app)
bench = typer.Typer(help="Measure ratios side by side, on real servers.", no_args_is_help=True)
app.add_typer(bench, name="bench")
verify = typer.Typer(help="Does it hold? Load, faults, then checkers.", no_args_is_help=True)
app.add_typer(verify, name="verify")
app.add_typer(dead_letters_app, name="dead-letters")
WORKERS.append(worker_status)


@app.command()
def run(
    role: Annotated[str, typer.Argument(help=", ".join(ROLES))],
    run: Annotated[str, typer.Option(help="The run to join; `labkit status` lists them.")],
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
    context: Annotated[str, typer.Option(help="The service; of a saga, its name.")] = "orders",
    slot: Annotated[
        int | None,
        typer.Option(min=0, help="Never shared by two live workers; by default one of its own."),
    ] = None,
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = DEFAULTS.client,
    log: Annotated[str, typer.Option(help=" or ".join(LOGS))] = DEFAULTS.log,
    partitions: Annotated[int, typer.Option(help="Of the run's topics.")] = DEFAULTS.partitions,
    delivery: Annotated[str, typer.Option(help=", ".join(DELIVERIES))] = DEFAULTS.delivery,
    batch_size: Annotated[
        int, typer.Option(help="Commands in one transaction, at most.")
    ] = DEFAULTS.batch_size,
    linger: Annotated[
        float, typer.Option(help="Seconds to wait for a batch to fill.")
    ] = DEFAULTS.linger,
    every: Annotated[
        float, typer.Option(help="Scheduled mode: seconds between two batches.")
    ] = DEFAULTS.every,
    pay_within: Annotated[
        float, typer.Option(help="Seconds that reserved goods wait for their payment.")
    ] = DEFAULTS.pay_within,
) -> None:
    """One worker of a run, until its standard input ends or SIGTERM comes."""
    worker = Worker(role, context, secrets.randbelow(10**9) if slot is None else slot)
    if role not in ROLES:
        raise UsageError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    failpoints.arm_from_environment(os.environ)
    if "LABKIT_PLANT" in os.environ:
        from labkit.experiments.plants import plant_from_environment

        plant_from_environment()
    settings = Settings(
        client=client,
        log=log,
        partitions=partitions,
        delivery=delivery,  # type: ignore[arg-type]  # checked with the rest
        batch_size=batch_size,
        linger=linger,
        every=every,
        pay_within=pay_within,
    )
    held, make = make_worker(lab, run, settings, worker)
    try:
        work(make, worker.name, every)
    finally:
        held.close()


@app.command()
def demo(
    limit: Annotated[
        str | None,
        typer.Option(metavar="N", help="The first so many purchases; all 69,659 by default."),
    ] = None,
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = "kafka-python",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Write the plot as PNG or SVG.")
    ] = None,
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
    keep: Annotated[bool, typer.Option("--keep", help="Leave topics and database.")] = False,
) -> None:
    """Replay 69,659 real purchases through Kafka into MongoDB, and check every cent."""
    from labkit.experiments.cdnow import ORDERS
    from labkit.experiments.demo import demo, to_json

    _known(client)
    purchases = _whole("--limit", limit, 1, ORDERS) if limit is not None else ORDERS
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        check_writable(option, file)
    if plot_file and plot_file.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot must end in .png or .svg, got {str(plot_file)!r}")
    with _bars() as (progress, say):
        found = demo(lab, client, purchases, progress, say, keep)
    _show(found)
    save("--json", json_file, to_json(found))
    if plot_file:
        _draw(found, plot_file)
    if keep:
        print(f"kept: topics {lab}.{found.run}.*, database {lab}_{found.run}")
    if not found.matches:
        raise CheckFailed("the views differ from pandas over the raw file; see the table")


@app.command()
def api(
    run: Annotated[
        str | None, typer.Option(help="The run to join; by default one of its own, with workers.")
    ] = None,
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any free one.")] = 8000,
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = DEFAULTS.client,
    partitions: Annotated[int, typer.Option(help="Of the run's topics.")] = DEFAULTS.partitions,
) -> None:
    """The HTTP API, and a live page at /: commands, queries, updates, metrics. Ctrl-C ends it."""
    from labkit.api import serve

    settings = Settings(client=client, partitions=partitions).check()
    with serve.listen(host, port) as at:
        serve.api(lab, run, at, settings, say)


@bench.command("restart")
def bench_restart(
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = "kafka-python",
    scale: Annotated[float, typer.Option(help="Of all sizes; below 1 it is a try.")] = 1.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON.")
    ] = None,
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
) -> None:
    """What snapshots save of a long stream, and whether a longer log slows a restart."""
    from labkit.experiments.restart import Sizes, restart, to_json

    _known(client)
    sizes = Sizes().scaled(scale)
    check_writable("--json", json_file)
    with _bars() as (progress, say):
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
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = "kafka-python",
    seed: Annotated[int, typer.Option(help="Of the order of the tries.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON.")
    ] = None,
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
) -> None:
    """How often a read is stale, and what it costs that it is not: four strategies under load."""
    from labkit.experiments.freshness import freshness, to_json

    _known(client)
    count = _whole("--tries", tries, 1, 10_000_000)
    check_writable("--json", json_file)
    with _bars() as (progress, say):
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


@verify.command("write")
def verify_write(
    commands: Annotated[str, typer.Option(metavar="N", help="How many.")] = "100000",
    plant: Annotated[
        str | None, typer.Option(help="A bug that a checker must see; see the documentation.")
    ] = None,
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = "kafka-python",
    seed: Annotated[int, typer.Option(help="Of the load.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON.")
    ] = None,
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
) -> None:
    """Three services under load and faults; what the client saw tells what was lost or doubled."""
    from labkit.experiments import verify as verification

    _known(client)
    count = _whole("--commands", commands, 100, 10_000_000)
    check_writable("--json", json_file)
    with _bars() as (progress, say):
        found = verification.verify_write(lab, client, count, plant, seed, progress, say)
    save("--json", json_file, verification.to_json(found))
    _show_verdicts(found)
    if not found["ok"]:
        wrong = verification.red(found)
        raise CheckFailed(
            f"{', '.join(wrong)} turned red" if wrong else "no checker is red, but see the notes"
        )


def _show_verdicts(found: dict[str, Any]) -> None:
    from labkit.experiments.checkers import MEANINGS

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
        f"{found['saga_commands']:,} by processes; {found['commands_per_second']:,.0f} a second, "
        f"faults included. Parked: {found['parked']}; ignored commits: {found['ignored_commits']}; "
        f"{'quiet' if found['quiet'] else 'it never became quiet'}."
    )


def _known(client: str) -> None:
    if client not in CLIENTS:
        raise UsageError(f"--client must be one of {', '.join(CLIENTS)}, got {client!r}")


def _whole(option: str, text: str, least: int, most: int) -> int:
    """Typer's own message does not name the value."""
    try:
        number = int(text)
        if least <= number <= most:
            return number
    except ValueError:
        pass
    raise UsageError(f"{option} must be a whole number from {least} to {most}, got {text!r}")


@contextmanager
def _bars() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
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


def _show(found: Demo) -> None:
    table = Table(title="The views in MongoDB against pandas over the raw file")
    for column, justify in (("", "left"), ("views", "right"), ("pandas", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in found.rows:
        mark = "[green]same[/]" if row.same else "[bold red]DIFFERENT[/]"
        table.add_row(row.what, row.views, row.pandas, mark)
    Console().print(table)
    report = found.report
    print(
        f"{report['commands_per_second']:,.0f} commands a second from the first send to the last "
        f"visible order, with {report['client']}."
    )
    reply, lag = report["reply_ms"], report["lag_ms"]
    if lag["p50"] is not None:
        print(
            f"At half that rate: answered after {reply['p50']:.0f} ms (median; p99 "
            f"{reply['p99']:.0f} ms), visible {lag['p50']:.0f} ms after the answer "
            f"(p99 {lag['p99']:.0f} ms; {report['probes']} probes)."
        )


def _draw(found: Demo, file: Path) -> None:
    import pandas as pd

    from labkit.plots import demo_figure

    lag = pd.DataFrame([(p.stale_ms, p.fresh_ms) for p in found.probes], columns=PROBE_COLUMNS)
    figure = demo_figure(
        pd.DataFrame(found.months),
        lag,
        client=found.report["client"],
        commands_per_second=found.report["commands_per_second"],
    )
    temporary = file.with_name(f".{file.name}.{os.getpid()}{file.suffix}")
    figure.savefig(temporary)
    temporary.replace(file)
    print(f"the plot is {file}")


def main() -> NoReturn:
    """The entry point: every labkit error is one line, every interruption is clean."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except LabkitError as error:
        _end(str(error), error.exit_code)
    except SystemExit as end:  # Typer ends usage errors with 2, Ctrl-C with 130
        if end.code == 130:
            _end("interrupted; what was started is stopped", 130)
        raise
    sys.exit(0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(line: str, code: int) -> NoReturn:
    print(f"labkit: {line}", file=sys.stderr)
    sys.exit(code)
