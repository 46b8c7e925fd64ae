"""Run an experiment: its progress on stderr, its result as a table and as JSON, its exit code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import rich.progress
from rich.console import Console, RenderableType
from rich.table import Table

from labkit.errors import CheckFailed
from labkit.experiments.results import save, to_json

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]
Found = TypeVar("Found")


def measure(
    experiment: Callable[[Progress, Say], Found],
    json_file: Path | None,
    show: Callable[[Found], str | None],
) -> None:
    """Run an experiment, write its result to ``json_file``, and show it.

    The JSON is the result itself, or its ``report``. ``show`` prints the result and returns why the
    check failed, or nothing if it passed. The file is written in either case. Raises
    ``CheckFailed``.
    """
    with _bars() as (progress, say):
        found = experiment(progress, say)
    report: Any = getattr(found, "report", found)
    save("--json", json_file, to_json(report))
    failure = show(found)
    if folder := report.get("folder"):
        print(f"The run is kept in {folder}")
    if failure:
        raise CheckFailed(failure)


@contextmanager
def _bars() -> Iterator[tuple[Progress, Say]]:
    """One progress bar for each stage, and a function that prints a line above the bars."""
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<9}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as shown:
        tasks: dict[str, rich.progress.TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done)

        yield progress, lambda line: shown.console.print(line, highlight=False, markup=False)


def table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[RenderableType]],
    left: int = 1,
) -> None:
    """Print a table. The first ``left`` columns hold text; the others hold figures."""
    made = Table(title=title)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    Console().print(made)


def cells(row: Mapping[Any, Any], form: str, *names: str) -> list[str]:
    """Figures of a row, each in the number format ``form``."""
    return [format(row[name], form) for name in names]


def between(ends: Sequence[float] | None, form: str) -> str:
    """An interval as text, each end in the number format ``form``; empty without an interval."""
    return f"{ends[0]:{form}} to {ends[1]:{form}}" if ends else ""


def show_target(name: str, value: float, bound: str, reached: bool, ends: str = "") -> None:
    """Print a figure, its interval, its bound ("at most 2", say), and whether it is within it."""
    within = f", {ends}" if ends else ""
    print(f"{name}: {value:,.2f}{within} ({bound}: {'reached' if reached else 'MISSED'})")


def show_confidence(levels: Iterable[float | None]) -> None:
    """Print how far the intervals of a table can be trusted; their least level counts."""
    known = [level for level in levels if level is not None and not math.isnan(level)]
    if known:
        print(
            f"An interval holds the true median with a confidence of {min(known):.1%}; "
            "that of the range of n runs is 1 - 2^(1-n)."
        )


def show_too_short(why: str) -> None:
    """Print why figures must not be compared, if they must not."""
    if why:
        print(f"{why[0].upper()}{why[1:]}.")
