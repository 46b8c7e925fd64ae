"""The command line: no logic, only arguments, tables and exit codes.

Exit codes: 0 fine, 1 a check failed, 2 usage or environment, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from labkit import failpoints
from labkit.errors import LabkitError, UsageError
from labkit.lab import CLIENTS, make_worker, worker_status
from labkit.runtime import Worker, work
from labkit.stack.commands import WORKERS
from labkit.stack.commands import app as stack_app

app = typer.Typer(
    help="Learn, run and measure CQRS on real Kafka and real MongoDB.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(stack_app)
WORKERS.append(worker_status)


@app.command()
def run(
    role: Annotated[str, typer.Argument(help="handler or projector")],
    run: Annotated[str, typer.Option(help="The run to join; `labkit status` lists them.")],
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
    context: Annotated[str, typer.Option(help="orders or catalog")] = "orders",
    slot: Annotated[int, typer.Option(min=0, help="Never shared by two live workers.")] = 0,
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = "kafka-python",
    partitions: Annotated[int, typer.Option(min=1, help="Of the run's topics.")] = 4,
) -> None:
    """One worker of a run, until its standard input ends or SIGTERM comes."""
    worker = Worker(role, context, slot)
    if role not in ("handler", "projector"):
        raise UsageError(f"role must be 'handler' or 'projector', got {role!r}")
    failpoints.arm_from_environment(os.environ)
    settings = {"name": lab, "run": run, "client": client, "partitions": partitions}
    held, make = make_worker(settings, worker)
    try:
        work(make, worker.name)
    finally:
        held.close()


@app.command()
def demo(
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many purchases; all by default.")
    ] = None,
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = "kafka-python",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Write the plot as PNG or SVG.")
    ] = None,
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
) -> None:
    """Replay 69,659 real purchases through Kafka into MongoDB, and check every cent."""
    from labkit.experiments import demo as experiment

    experiment.run(lab, client, limit, json_file, plot_file)


def main() -> NoReturn:
    """The entry point: every labkit error is one line, every interruption is clean."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(standalone_mode=False)
    except LabkitError as error:
        _end(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _end("interrupted", 130)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:
        import click

        if isinstance(error, click.ClickException):
            _end(error.format_message(), 2)
        raise
    sys.exit(0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(line: str, code: int) -> NoReturn:
    print(f"labkit: {line}", file=sys.stderr)
    sys.exit(code)
