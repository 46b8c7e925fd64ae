"""The server commands: up, down, status, doctor, logs."""

import json
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from labkit import stack
from labkit.cli.measure import table
from labkit.cli.options import LabName, choice, chosen, option, whole
from labkit.errors import StackError, UsageError
from labkit.run.registry import live_runs
from labkit.stack import external
from labkit.stack.doctor import doctor as look
from labkit.stack.state import lab_folder

#: The lab that nobody needs to name.
DEFAULT = "lab"

app = typer.Typer(help="The servers of a lab.", no_args_is_help=True)

# Sources of worker rows, because the stack knows no workers. Each takes the name of a lab and
# returns one dict for each worker, with at least role, slot, pid and lag.
WORKERS: list[Callable[[str], list[dict[str, Any]]]] = []

SERVERS = ("kafka", "mongo")
Port = option("Port; default: any free port.", whole(1, 65_535))


def say(line: str) -> None:
    """Show a line of progress, on stderr: stdout is for results."""
    typer.echo(line, err=True)


@app.command()
def up(
    lab: LabName = "lab",
    kind: Annotated[str | None, choice("Kind of servers", stack.KINDS)] = None,
    kafka_port: Annotated[int | None, Port] = None,
    mongo_port: Annotated[int | None, Port] = None,
) -> None:
    """Start Kafka and MongoDB, and wait until both answer."""
    servers = stack.up(lab, kind, say, kafka_port=kafka_port or 0, mongo_port=mongo_port or 0)
    typer.echo(f"Kafka    {servers.bootstrap}")
    typer.echo(f"MongoDB  {external.masked(servers.mongo_uri)}")


@app.command()
def down(
    lab: LabName = "lab",
    purge: Annotated[bool, typer.Option("--purge", help="Delete the lab's data too.")] = False,
) -> None:
    """Stop the servers; keep their data unless --purge is given."""
    for run, workers in live_runs(lab).items():
        names = ", ".join(f"{worker.role}-{worker.service}" for worker in workers)
        say(f"run {run} has live workers ({names}); they wait until the lab is up again")
    had_data = lab_folder(lab).is_dir()
    ran = stack.down(lab, purge, say)
    line = f"lab {lab!r} is down" if ran else f"nothing was running in lab {lab!r}"
    typer.echo(line + ("; its data is deleted" if purge and had_data else ""))


@app.command()
def status(
    lab: LabName = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the servers and workers of a lab, and whether they answer."""
    if lab != DEFAULT and not lab_folder(lab).is_dir() and external.addresses() is None:
        raise UsageError(f"there is no lab {lab!r}; `labkit up --lab {lab}` makes it")
    found = stack.status(lab)
    found["workers"] = [worker for source in WORKERS for worker in source(lab)]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    state = "up" if found["up"] else "down"
    typer.echo(f"lab {lab!r} ({found['kind']}) is {state}; its home is {found['home']}")
    found["servers"] = [server for server in found["servers"] if server.get("port") != 0]
    for name in ("servers", "workers"):
        if found[name]:
            _show(name, found[name])


@app.command()
def doctor() -> None:
    """Check what a lab needs on this machine, and say how to get what is missing."""
    findings = look()
    marks = {"ok": "[green]ok[/]", "missing": "[bold red]missing[/]"}
    rows = (
        [
            f.what,
            marks.get(f.verdict, f.verdict),
            escape("; ".join(filter(None, (f.found, f.todo)))),
        ]
        for f in findings
    )
    table("What a lab needs", ("what", "verdict", "found"), rows, left=3, prose=("found",))
    missing = [finding.what for finding in findings if finding.verdict == "missing"]
    if missing:
        raise StackError(f"a lab cannot run here without: {', '.join(missing)} (see the table)")


@app.command()
def logs(
    server: Annotated[str | None, chosen(SERVERS)] = None,
    lab: LabName = "lab",
    lines: Annotated[int, option("Last lines to show.", whole(1, 1_000_000), "-n", "--lines")] = 40,
) -> None:
    """Show the last lines of the servers' logs."""
    for name in (server,) if server else SERVERS:
        path = lab_folder(lab) / "logs" / f"{name}.log"
        if not path.is_file():
            raise StackError(f"{name} of lab {lab!r} has no log yet ({path}): `labkit up` first")
        say(f"==> {path}")
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in deque(file, maxlen=lines):
                typer.echo(line, nl=False)


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    # The address contains the port.
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "port"))
    titles = [column.removesuffix("_bytes").removesuffix("_s") for column in columns]
    table(title, titles, ([_cell(c, row.get(c)) for c in columns] for row in rows), len(columns))


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
