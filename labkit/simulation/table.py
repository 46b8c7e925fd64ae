"""What the settings promise, beside what many seeds have shown: in the manner of Hermitage.

A row is a delivery level with a write concern, a column an anomaly. Where a cell shows a seed, this
seed shows the anomaly; where it has a tick, so many seeds were tried in vain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct, structs

from labkit.experiments.verify.checkers import MEANINGS
from labkit.ports.broker import DELIVERIES
from labkit.run.settings import DEFAULTS, WRITE_CONCERNS
from labkit.simulation.explore import explore
from labkit.simulation.saved_tape import names
from labkit.simulation.scenario import Scenario

LIVENESS = "liveness"
#: The columns, with what each is about.
ANOMALIES = {
    **{name: MEANINGS[name] for name in ("C1", "C2", "C3", "C6", "C9", "C10", "C11")},
    LIVENESS: "all come to rest",
}
#: What each delivery level promises. A write concern takes nothing away: an undone batch is seen,
#: and made again. Below ``exactly_once`` nothing fences the commit of a zombie, and it may stand in
#: the log beside that of its successor; ``at_most_once`` loses commands, on which processes wait.
#: A reader waits for places in the log, whatever is written there.
PROMISED = {
    "exactly_once": frozenset(ANOMALIES),
    "at_least_once": frozenset(["C3", "C10", "C11", LIVENESS]),
    "at_most_once": frozenset(["C3", "C10"]),
}


class Cell(Struct, frozen=True):
    """``seed``: the first that shows it; ``tried``: how many could have shown it."""

    promised: bool
    tried: int
    seed: int | None = None

    @property
    def text(self) -> str:
        """``promised / found``."""
        found = f"✓ {self.tried:,}" if self.seed is None else f"– seed {self.seed}"
        return f"{'yes' if self.promised else 'no'} / {found if self.tried else 'not tried'}"


class Row(Struct, frozen=True):
    """Settings, and a cell for each anomaly."""

    delivery: str
    write_concern: str
    default: bool
    cells: dict[str, Cell]


class Table(Struct):
    """``seeds`` were tried for each row."""

    services: list[str]
    processes: list[str]
    seeds: int
    rows: list[Row] = []

    @property
    def broken(self) -> list[str]:
        """What is promised, and was found otherwise."""
        return [
            f"{row.delivery} with write concern {row.write_concern}: {name}, seed {cell.seed}"
            for row in self.rows
            for name, cell in row.cells.items()
            if cell.promised and cell.seed is not None
        ]

    @property
    def report(self) -> dict[str, Any]:
        """For the JSON."""
        return {**msgspec.to_builtins(self), "anomalies": ANOMALIES, "ok": not self.broken}

    @property
    def markdown(self) -> str:
        """The table, and how to read it."""
        names = list(ANOMALIES)
        lines = [line(["delivery", "write concern", *names]), line(["---"] * (2 + len(names)))]
        for row in self.rows:
            star = " \\*" if row.default else ""
            cells = [row.cells[name].text for name in names]
            lines.append(line([f"{row.delivery}{star}", row.write_concern, *cells]))
        what = ", ".join(f"{name}: {about}" for name, about in ANOMALIES.items())
        return "\n".join(
            [
                *lines,
                "",
                f"\\* the default. A cell says what is promised / what {self.seeds:,} seeds of "
                f"{', '.join([*self.services, *self.processes])} have shown: ✓ and how many were "
                f"tried, or – and the first seed that shows the anomaly. {what}.",
            ]
        )

    def _repr_markdown_(self) -> str:
        return self.markdown


def tabulate(
    scenario: Scenario,
    seeds: Sequence[int],
    *,
    report: Callable[[int, int], None] = lambda done, of: None,
    processes: int | None = None,
) -> Table:
    """Try all seeds with each delivery level and write concern."""
    found = Table(names(scenario.services), names(scenario.processes), len(seeds))
    settings = list(itertools.product(reversed(DELIVERIES), WRITE_CONCERNS))
    for number, (delivery, concern) in enumerate(settings):
        tried = explore(
            structs.replace(scenario, delivery=delivery, write_concern=concern),
            seeds,
            report=lambda done, of, at=number: report(at * of + done, len(settings) * of),  # type: ignore[misc]
            processes=processes,
            tell=False,
        )
        default = (delivery, concern) == (DEFAULTS.delivery, DEFAULTS.write_concern)
        cells = dict(_cells(scenario, delivery, tried.seeds, tried.red))
        found.rows.append(Row(delivery, concern, default, cells))
        if tried.interrupted:
            break
    return found


def _cells(
    scenario: Scenario, delivery: str, seeds: int, red: dict[int, list[str]]
) -> Iterator[tuple[str, Cell]]:
    restless = sum(LIVENESS in names for names in red.values())
    for name in ANOMALIES:
        # Who does not come to rest is not looked at any further.
        tried = seeds if name == LIVENESS else seeds - restless
        if name == "C11" and not scenario.processes:
            tried = 0
        first = min((seed for seed, names in red.items() if name in names), default=None)
        yield name, Cell(name in PROMISED[delivery], tried, first)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
