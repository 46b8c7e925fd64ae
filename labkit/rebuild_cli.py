"""``labkit rebuild``: build a view of a run anew while it serves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
import rich.progress
import typer
from rich.console import Console

from labkit.rebuild import CLOSE, KEEP_SECONDS, Progress
from labkit.results import check_writable, save
from labkit.runs import joined


def rebuild(
    view: Annotated[str, typer.Argument(help="Such as orders.view.")],
    run: Annotated[str, typer.Option(help="The run; `labkit status` lists them.")],
    lab: Annotated[str, typer.Option(help="The lab (its servers).")] = "lab",
    anew: Annotated[
        bool, typer.Option("--anew", help="Drop what a cancelled rebuild has built.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON.")
    ] = None,
) -> None:
    """Build a view anew while it serves. Ctrl-C keeps what is built; the next time goes on."""
    check_writable("--json", json_file)
    began = time.monotonic()
    with joined(lab, run) as held:
        rebuilding = held.rebuild(view, anew=anew)
        try:
            at = rebuilding.step()
            first, estimate = at, None
            with rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[left]}"),
                console=Console(stderr=True),
            ) as bar:
                task = bar.add_task(view, total=at.total, left="")
                while at.total - at.done > CLOSE:
                    at = rebuilding.step()
                    bar.update(task, completed=at.done, total=at.total, left=_left(at))
                    if estimate is None and at.remaining is not None:
                        estimate = at.seconds + at.remaining
                built = at.seconds
                rebuilding.switch()
                bar.update(task, description=f"{view} serves", completed=at.total, left="")
                rebuilding.serve()
                rebuilding.drop_old()
        finally:
            rebuilding.close()
    if first.done > first.applied:
        print(f"went on at offset {first.done - first.applied:,} of {first.total:,}")
    print(
        f"{view} serves from generation {rebuilding.generation}: {at.applied:,} commits in "
        f"{built:.1f} s; the old one was kept for {KEEP_SECONDS:g} s more and is dropped"
    )
    found = {
        "view": view,
        "run": run,
        "generation": rebuilding.generation,
        "applied": at.applied,
        "built_s": round(built, 3),
        "first_estimate_s": estimate and round(estimate, 3),
        "seconds": round(time.monotonic() - began, 3),
    }
    save("--json", json_file, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")


def _left(at: Progress) -> str:
    return "" if at.remaining is None else f"{at.remaining:.0f} s left"
