"""The command line: no logic, only arguments, tables and exit codes.

Exit codes: 0 fine, 1 a check failed, 2 usage or environment, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from contextlib import nullcontext
from importlib import metadata
from io import StringIO, TextIOWrapper
from typing import Annotated, NoReturn

import typer

from labkit.cli import bench, dead_letters, runs, servers, verify
from labkit.cli.api import api
from labkit.cli.autoscale import autoscale
from labkit.cli.demo import demo
from labkit.cli.load import load
from labkit.cli.new import new
from labkit.cli.options import LabName, RunName
from labkit.cli.rebuild import rebuild
from labkit.cli.runs import the_run, worker_status
from labkit.cli.servers import WORKERS
from labkit.cli.simulate import simulate
from labkit.errors import LabkitError, UsageError
from labkit.ports import failpoints
from labkit.run.registry import Alive, listed
from labkit.run.run import ROLES
from labkit.run.wiring import make_worker
from labkit.run.worker import by_hand, work

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cqrs-labkit {metadata.version('cqrs-labkit')}")
        raise typer.Exit


@app.callback()
def labkit(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Learn, run and measure CQRS on real Kafka and real MongoDB."""


app.add_typer(servers.app)
app.add_typer(bench.app, name="bench")
app.add_typer(verify.app, name="verify")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(runs.app, name="runs")
for command in (api, autoscale, demo, load, new, rebuild, simulate):
    app.command()(command)
WORKERS.append(worker_status)


@app.command()
def run(
    role: Annotated[str, typer.Argument(help=", ".join(ROLES))],
    run: RunName = None,
    lab: LabName = "lab",
    service: Annotated[
        str | None, typer.Option(help="The service, or the process; needed if there are several.")
    ] = None,
    slot: Annotated[
        int | None,
        typer.Option(min=0, help="Never shared by two live workers; by default one of its own."),
    ] = None,
) -> None:
    """One worker of a run, until Ctrl-C or SIGTERM comes (or its standard input, a pipe, ends)."""
    if role not in ROLES:
        raise UsageError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    failpoints.arm_from_environment(os.environ)
    if "LABKIT_PLANT" in os.environ:
        from labkit.experiments.verify.planted_bugs import plant_from_environment

        plant_from_environment()
    number = secrets.randbelow(10**9) if slot is None else slot
    run = the_run(lab, run)
    worker, joined, make = make_worker(lab, run, role, service, number)
    alive = Alive(worker.role, worker.service, worker.slot, os.getpid())
    try:
        with listed(lab, run, alive) if by_hand() else nullcontext():
            work(make, worker.name, joined.settings.every)
    finally:
        joined.close()


def main() -> NoReturn:
    """The entry point: every labkit error is one line, every interruption is clean."""
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, TextIOWrapper):  # what its encoding has not is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # see __main__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            app()
        finally:
            print(end="", flush=True)  # or Python does it, too late for an error of ours
    except LabkitError as error:
        _end(error.line, error.exit_code)
    except OSError as error:
        sys.stdout = StringIO()  # Python would flush the old one again
        if isinstance(error, BrokenPipeError):  # `labkit status | head`
            sys.exit(1)
        where = error.filename or "the output or a file"
        _end(f"{where} cannot be used: {error.strerror or error}", 2)
    except (KeyboardInterrupt, SystemExit) as end:  # Typer: usage errors 2, Ctrl-C 130
        if getattr(end, "code", 130) == 130:
            _end("interrupted; what was started is stopped", 143 if _terminated else 130)
        raise
    sys.exit(0)


#: SIGTERM came; it ends a command in the way of Ctrl-C, with the exit code of its own.
_terminated: list[int] = []


def _terminate(number: int, _: object) -> None:
    _terminated.append(number)
    raise KeyboardInterrupt


def _end(line: str, code: int) -> NoReturn:
    print(f"labkit: {line}", file=sys.stderr)
    sys.exit(code)
