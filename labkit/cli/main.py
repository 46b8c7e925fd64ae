"""The command line: no logic, only arguments, tables and exit codes.

Exit codes: 0 fine, 1 a check failed, 2 usage or environment, 130 interrupted.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from labkit.cli.bench import bars, bench, known, verify, whole
from labkit.cli.dead_letters import app as dead_letters_app
from labkit.cli.lag import lag
from labkit.cli.load import load
from labkit.cli.rebuild import rebuild
from labkit.cli.runs import worker_status
from labkit.cli.servers import WORKERS, say
from labkit.cli.servers import app as stack_app
from labkit.cli.sweep import sweep
from labkit.errors import CheckFailed, LabkitError, UsageError
from labkit.experiments.results import check_writable, save, to_json
from labkit.ports import failpoints
from labkit.run.run import ROLES
from labkit.run.settings import CLIENTS, DEFAULTS, Settings
from labkit.run.wiring import make_worker
from labkit.run.worker import work

if TYPE_CHECKING:
    from labkit.experiments.demo import Demo

app = typer.Typer(
    help="Learn, run and measure CQRS on real Kafka and real MongoDB.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(stack_app)
bench.command("lag")(lag)
bench.command("sweep")(sweep)
app.add_typer(bench, name="bench")
app.add_typer(verify, name="verify")
app.add_typer(dead_letters_app, name="dead-letters")
app.command()(rebuild)
app.command()(load)
WORKERS.append(worker_status)


@app.command()
def run(
    role: Annotated[str, typer.Argument(help=", ".join(ROLES))],
    run: Annotated[str, typer.Option(help="The run to join; `labkit status` lists them.")],
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
    service: Annotated[
        str | None, typer.Option(help="The service, or the process; needed if there are several.")
    ] = None,
    slot: Annotated[
        int | None,
        typer.Option(min=0, help="Never shared by two live workers; by default one of its own."),
    ] = None,
) -> None:
    """One worker of a run, until its standard input ends or SIGTERM comes."""
    if role not in ROLES:
        raise UsageError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    failpoints.arm_from_environment(os.environ)
    if "LABKIT_PLANT" in os.environ:
        from labkit.experiments.verify.planted_bugs import plant_from_environment

        plant_from_environment()
    number = secrets.randbelow(10**9) if slot is None else slot
    worker, joined, make = make_worker(lab, run, role, service, number)
    try:
        work(make, worker.name, joined.settings.every)
    finally:
        joined.close()


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
    from labkit.experiments.demo import demo

    known(client)
    purchases = whole("--limit", limit, 1, ORDERS) if limit is not None else ORDERS
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        check_writable(option, file)
    if plot_file and plot_file.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot must end in .png or .svg, got {str(plot_file)!r}")
    with bars() as (progress, say):
        found = demo(lab, client, purchases, progress, say, keep)
    _show(found)
    save("--json", json_file, to_json(found.report))
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

    from labkit.plots.demo import demo_figure

    figure = demo_figure(
        pd.DataFrame(found.months),
        found.lags,
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
