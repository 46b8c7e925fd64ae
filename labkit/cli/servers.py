"""The commands about servers: up, down, status, doctor, logs."""

import json
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit import stack
from labkit.errors import StackError, UsageError
from labkit.stack import external
from labkit.stack.doctor import doctor as look
from labkit.stack.state import lab_folder

app = typer.Typer(help="The servers of a lab.", no_args_is_help=True)

# What knows of workers adds itself here (the stack knows none): lab -> one dict for each worker,
# with at least role, slot, pid and lag.
WORKERS: list[Callable[[str], list[dict[str, Any]]]] = []

Lab = Annotated[str, typer.Option("--lab", help="Name of the lab: a-z, 0-9 and '-'.")]


def say(line: str) -> None:
    """Show a line of progress, on stderr: stdout is for results."""
    typer.echo(line, err=True)


@app.command()
def up(
    lab: Lab = "lab",
    kind: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(stack.KINDS)}; see the README.")
    ] = None,
    kafka_port: Annotated[int | None, typer.Option(help="Default: any free port.")] = None,
    mongo_port: Annotated[int | None, typer.Option(help="Default: any free port.")] = None,
) -> None:
    """Start Kafka and MongoDB and wait until both answer."""
    for port, option in ((kafka_port, "--kafka-port"), (mongo_port, "--mongo-port")):
        if port is not None and not 0 < port < 65536:
            raise UsageError(f"{option} must be between 1 and 65535, got {port}")
    servers = stack.up(lab, kind, say, kafka_port=kafka_port or 0, mongo_port=mongo_port or 0)
    typer.echo(f"Kafka    {servers.bootstrap}")
    typer.echo(f"MongoDB  {external.masked(servers.mongo_uri)}")


@app.command()
def down(
    lab: Lab = "lab",
    purge: Annotated[bool, typer.Option("--purge", help="Delete the lab's data too.")] = False,
) -> None:
    """Stop the servers; their data stays, unless --purge."""
    ran = stack.down(lab, purge, say)
    line = f"lab {lab!r} is down" if ran else f"nothing was running in lab {lab!r}"
    typer.echo(line + ("; its data is deleted" if purge else ""))


@app.command()
def status(
    lab: Lab = "lab",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show servers and workers: what runs, where, and whether it answers."""
    found = stack.status(lab)
    found["workers"] = [worker for source in WORKERS for worker in source(lab)]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    state = "up" if found["up"] else "down"
    typer.echo(f"lab {lab!r} ({found['kind']}) is {state}; its home is {found['home']}")
    for name in ("servers", "workers"):
        if found[name]:
            console.print(_table(name, found[name]))


@app.command()
def doctor() -> None:
    """Look at what this machine has, and say what to do about what it lacks."""
    findings = look()
    table = Table(title="What a lab needs")
    for title in ("", "", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[bold red]missing[/]"
        table.add_row(finding.what, mark, escape(finding.found), escape(finding.todo))
    Console().print(table)
    missing = [finding.what for finding in findings if not finding.ok]
    if missing:
        raise StackError(f"a lab cannot run here without: {', '.join(missing)} (see the table)")


@app.command()
def logs(
    server: Annotated[str | None, typer.Argument(help="kafka or mongo; both if left out.")] = None,
    lab: Lab = "lab",
    lines: Annotated[int, typer.Option("-n", "--lines", help="Last lines to show.")] = 40,
) -> None:
    """Show the last lines that the servers wrote."""
    if server not in (None, "kafka", "mongo"):
        raise UsageError(f"logs are of kafka or mongo, got {server!r}")
    if lines < 1:
        raise UsageError(f"-n must be at least 1, got {lines}")
    for name in (server,) if server else ("kafka", "mongo"):
        path = lab_folder(lab) / "logs" / f"{name}.log"
        if not path.is_file():
            raise StackError(f"{name} of lab {lab!r} has no log yet ({path}): `labkit up` first")
        say(f"==> {path}")
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in deque(file, maxlen=lines):
                typer.echo(line, nl=False)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title)
    # The address has the port in it already.
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "port"))
    for column in columns:
        table.add_column(column.removesuffix("_bytes").removesuffix("_s"))
    for row in rows:
        table.add_row(*(_cell(column, row.get(column)) for column in columns))
    return table


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith("_bytes"):
        return f"{value / 1e6:.0f} MB"
    if column.endswith("_s"):
        return f"{value:.0f} s"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(str(value))
