"""Run an experiment: its progress on stderr, its result as a table and as JSON, its exit code."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import rich.progress
from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from labkit.errors import CheckFailed, UsageError
from labkit.experiments.results import save, to_json

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]
Found = TypeVar("Found")

#: Columns of prose are folded to this width, but no further.
LEAST_PROSE = 20
#: Between two columns.
GAP = 2


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
    unsaved: UsageError | None = None
    try:
        save("--json", json_file, to_json(report))
    except UsageError as error:  # whatever it took to find this, it is shown first
        unsaved = error
    failure = show(found)
    if folder := report.get("folder"):
        print(f"The run is kept in {folder}")
    if unsaved:
        raise unsaved
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
        refresh_per_second=4,  # ten would take 1 % of a core from what is measured
    ) as shown:
        tasks: dict[str, rich.progress.TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)

        yield progress, lambda line: shown.console.print(line, highlight=False, markup=False)


def table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    left: int = 1,
    prose: Container[str] = (),
) -> None:
    """Print a table. The first ``left`` columns hold text; the others hold figures.

    In a terminal that is too narrow for it, only the columns in ``prose`` are folded, so that ids
    and figures stay in one piece. If that is not enough, each cell gets a line. A file or a pipe
    gets a line a row, however long.
    """
    texts = [[Text.from_markup(c) if isinstance(c, str) else c for c in row] for row in rows]
    made = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    least = most = 0
    for number, column in enumerate(columns):
        widest = max([cell_len(column), *(row[number].cell_len for row in texts)])
        narrowest = min(widest, LEAST_PROSE) if column in prose else widest
        justify: JustifyMethod = "left" if number < left else "right"
        made.add_column(Text(column), justify=justify, overflow="fold", min_width=narrowest)
        least, most = least + narrowest + GAP, most + widest + GAP
    for row in texts:
        made.add_row(*row)
    console = Console()
    if not (console.is_terminal or "COLUMNS" in os.environ):
        console = Console(width=most)
    console.print(made if least <= console.width else _a_line_a_cell(title, columns, texts))


def _a_line_a_cell(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Text]]
) -> Table:
    made = Table(title=title, title_justify="left", box=None, show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            made.add_row(Text(column), cell)
        made.add_row()
    return made


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
