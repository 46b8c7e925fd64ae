"""``labkit runs``: the runs of a lab, what works in them, and how to join one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer

from labkit import stack
from labkit.cli.measure import table
from labkit.cli.options import JsonFile, LabName, number, option
from labkit.errors import StackError, Unreachable, UsageError
from labkit.experiments.results import save, to_json
from labkit.lab import Lab
from labkit.log.dead_letter import DeadLetter
from labkit.run.kept import drop, kept, live
from labkit.run.registry import live_runs

app = typer.Typer(help="The runs of a lab: list, drop.", invoke_without_command=True)


@app.callback(invoke_without_command=True)
def list_(context: typer.Context, lab: LabName = "lab", json_file: JsonFile = None) -> None:
    """List the runs of a lab, the oldest first: what they keep on the servers, and who owns them.

    A run without an owner is kept until it is dropped: others may want to join it.
    """
    if context.invoked_subcommand is not None:
        return
    found = kept(lab, _servers(lab))
    save("--json", json_file, to_json(found))
    if not found:
        print(f"lab {lab!r} has no run")
        return
    rows = (
        [
            *(one.run, _age(one.age_s), ", ".join(one.owners) or "nobody"),
            *(f"{len(one.topics):,}", f"{one.partitions:,}", f"{one.bytes / 1e6:,.1f}"),
        ]
        for one in found
    )
    table(None, ("run", "age", "owner", "topics", "partitions", "MongoDB MB"), rows, left=3)


@app.command("drop")
def drop_(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN...")] = None,
    unowned: Annotated[
        bool, typer.Option("--unowned", help="All runs that no live process uses.")
    ] = False,
    older_than: Annotated[
        float | None,
        option("Of those, the runs that are older than this many days.", number(0, 36_500)),
    ] = None,
    lab: LabName = "lab",
) -> None:
    """Delete topics, groups and database of runs that nobody owns; a live one is refused."""
    if bool(runs) == (unowned or older_than is not None):
        raise UsageError("name the runs to drop, or give --unowned or --older-than DAYS")
    servers = _servers(lab)
    found = {one.run: one for one in kept(lab, servers)}
    if unknown := [run for run in runs or () if run not in found]:
        raise UsageError(f"lab {lab!r} has no run {unknown[0]!r}; `labkit runs` lists all")
    least = (older_than or 0.0) * 86_400
    old = [one for one in found.values() if older_than is None or (one.age_s or 0.0) > least]
    chosen = [found[run] for run in dict.fromkeys(runs or ())] or [o for o in old if not o.owners]
    drop(lab, servers, chosen)
    names = ", ".join(one.run for one in chosen)
    print(f"dropped {names}" if chosen else f"lab {lab!r} has no such run: nothing is dropped")


def _servers(lab: str) -> stack.Servers:
    found = stack.given(lab) or stack.running(lab)
    if found is None:
        raise Unreachable(f"the servers of lab {lab!r} are not up; run `labkit up`")
    return found


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def the_run(lab: str, run: str | None) -> str:
    """The run that is named, or the only live one; raises ``UsageError`` that names those."""
    if run is not None:
        return run
    found = sorted(live(lab))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"name one of the live runs of lab {lab!r} by --run: {', '.join(found)}")
    raise UsageError(
        f"no run of lab {lab!r} is live: name one by --run; `labkit runs` lists all that it keeps"
    )


@contextmanager
def joined(lab: str, run: str | None, service: str | None = None) -> Iterator[Lab]:
    """The lab of a run that exists, or of the only live one.

    Raises ``UsageError`` if there is none, or it has no ``service``.
    """
    with Lab(lab, run=the_run(lab, run), start=False) as found:
        if service is not None:
            found.of.service(service)
        yield found


def worker_status(name: str) -> list[dict[str, Any]]:
    """The workers of a lab, for ``labkit status``: run, role, service, slot, pid, restarts, lag,
    parked.

    ``lag`` is that of the worker's group, and ``parked`` counts the streams that it holds back;
    ``None`` if a server does not answer.
    """
    rows: list[dict[str, Any]] = []
    for run, workers in live_runs(name).items():
        lags: dict[tuple[str, str], int] = {}
        parked: Counter[tuple[str, str]] | None = None
        try:
            with Lab(name, run=run, start=False) as lab:
                for role, service in sorted({(w.role, w.service) for w in workers}):
                    lags[role, service] = lab.lag(role, service)
                parked = Counter(_holder(letter, lab) for letter in lab.parked())
        except (StackError, UsageError):  # a service of somebody's whose module is elsewhere
            pass
        rows += [
            {
                "run": run,
                **msgspec.to_builtins(w),
                "lag": lags.get((w.role, w.service)),
                "parked": None if parked is None else parked[w.role, w.service],
            }
            for w in workers
        ]
    return rows


def _holder(letter: DeadLetter, lab: Lab) -> tuple[str, str]:
    """The role and the service, or the process, of who has parked it."""
    reader = letter.by.partition(".")[0]
    if letter.by == "handler":
        return "handler", letter.service
    if letter.by.endswith(".notices"):
        return "notifier", letter.service
    return ("process", reader) if reader in lab.processes else ("projector", letter.service)
