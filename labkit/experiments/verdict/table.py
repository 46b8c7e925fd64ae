"""The verdict table: for people as Markdown, for programs as a list and as a DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from labkit.experiments.verdict.claim import Tried, Verdict
from labkit.experiments.verdict.experiments import command_line

if TYPE_CHECKING:
    import pandas as pd

#: What the sides are called, in their order.
TITLES = {
    "problem": "The problems that CQRS is to solve",
    "against": "Against CQRS",
    "for": "For CQRS",
}


def markdown(verdicts: Sequence[Verdict], seed: int) -> str:
    """A section for each side, a table in it, a row for each case."""
    parts = []
    for side, title in TITLES.items():
        rows = [row for verdict in verdicts if verdict.side == side for row in _rows(verdict)]
        head = ["claim", "tried", "figure (95 % interval)", "bound", "verdict"]
        parts.append(f"## {title}\n\n" + "\n".join(_lines(head, rows)))
    names = dict.fromkeys(case.experiment for verdict in verdicts for case in verdict.cases)
    made = "\n".join(f"- {name}: `{command_line(name, seed)}`" for name in names)
    return "\n\n".join([*parts, f"## The experiments\n\n{made}"]) + "\n"


def frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row for each case: side, claim, tried, value, low, high, unit, bound, holds, verdict."""
    import pandas as pd

    return pd.DataFrame(
        {
            "side": verdict.side,
            "claim": verdict.sentence,
            "tried": case.what,
            "value": case.figure.value,
            "low": case.figure.low,
            "high": case.figure.high,
            "unit": case.figure.unit,
            "bound": case.bound,
            "holds": case.holds,
            "verdict": verdict.verdict,
        }
        for verdict in verdicts
        for case in verdict.cases
    )


def _rows(verdict: Verdict) -> Iterable[list[str]]:
    for number, case in enumerate(verdict.cases):
        first = not number
        yield [
            *(verdict.sentence if first else "", f"{case.what} ({case.experiment})"),
            *(f"{_mark(case)} {case.figure}", case.bound),
            f"**{verdict.verdict}**" if first else "",
        ]


def _mark(case: Tried) -> str:
    return "✓" if case.holds else "✗"


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"
