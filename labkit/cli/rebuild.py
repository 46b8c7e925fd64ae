"""``labkit rebuild``: rebuild a view of a run while it serves."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Annotated

import rich.progress
import typer
from rich.console import Console

from labkit.cli.options import JsonFile, LabName, RunName
from labkit.cli.runs import joined
from labkit.experiments.results import save, to_json
from labkit.read.rebuild import KEEP_SECONDS, Progress


def rebuild(
    view: Annotated[str, typer.Argument(help="A view, such as orders.view.")],
    run: RunName = None,
    lab: LabName = "lab",
    anew: Annotated[
        bool, typer.Option("--anew", help="Discard what an interrupted rebuild has built.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Rebuild a view while it serves. Ctrl-C keeps what is built, and the next rebuild resumes."""
    began = time.monotonic()
    seen: list[Progress] = []
    with (
        joined(lab, run) as held,
        closing(held.rebuild(view, anew=anew)) as rebuilding,
        _bar() as bar,
    ):
        task = bar.add_task(view, total=None, left="")

        def report(at: Progress) -> None:
            seen.append(at)
            bar.update(task, completed=at.done, total=at.total, left=_left(at))

        at = rebuilding.run(report=report)
    estimate = next((p.seconds + p.remaining for p in seen if p.remaining), None)
    if rebuilding.went_on_at:
        print(f"resumed after {rebuilding.went_on_at:,} offsets of {seen[0].total:,}")
    print(
        f"{view} serves from generation {rebuilding.generation}: {at.applied:,} commits in "
        f"{at.seconds:.1f} s; the old generation was kept {KEEP_SECONDS:g} s longer, then dropped"
    )
    found = {
        "view": view,
        "run": held.run,
        "generation": rebuilding.generation,
        "applied": at.applied,
        "built_s": round(at.seconds, 3),
        "first_estimate_s": estimate and round(estimate, 3),
        "seconds": round(time.monotonic() - began, 3),
    }
    save("--json", json_file, to_json(found))


def _bar() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
    )


def _left(at: Progress) -> str:
    return "" if at.remaining is None else f"{at.remaining:.0f} s left"
