"""The ladder climbed: each planted bug, how soon it is found, and how short its story is."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from msgspec import Struct, field, to_builtins

from labkit.simulation.explore import SHORT, TOLD, shortest, try_one
from labkit.simulation.ladder import BUGS, fitting, planted
from labkit.simulation.processors import on_all_processors, processors, quiet
from labkit.simulation.scenario import SCENARIOS, Scenario
from labkit.simulation.table import line


class Rung(Struct, frozen=True):
    """Of each start that ``found`` it: after how many seeds, and which of the ``checkers`` was red.
    ``steps`` are those of a story."""

    bug: str
    starts: int
    found: list[int]
    checkers: list[str]
    steps: int = 0

    @property
    def right(self) -> bool:
        """Whether it always showed itself as it may."""
        return {*self.checkers} <= {*BUGS[self.bug].red}

    @property
    def good(self) -> bool:
        """Whether each start has found it, by the right checker, and it is told in few steps."""
        return self.right and len(self.found) == self.starts and self.steps <= SHORT

    @property
    def median(self) -> float:
        """Seeds to the find; infinite if half of the starts have not found it."""
        missed = [math.inf] * (self.starts - len(self.found))
        return statistics.median([*self.found, *missed])


class Ladder(Struct):
    """A rung for each bug; each start tries ``seeds`` at most."""

    seeds: int
    starts: int
    rungs: list[Rung] = field(default_factory=list)
    interrupted: bool = False

    @property
    def missed(self) -> list[str]:
        """The bugs that were not found by each start, or not shown as they should be."""
        return [rung.bug for rung in self.rungs if not rung.good]

    @property
    def report(self) -> dict[str, Any]:
        """For the JSON."""
        medians = [rung.median if math.isfinite(rung.median) else None for rung in self.rungs]
        rungs = [
            {**to_builtins(rung), "median": median}
            for rung, median in zip(self.rungs, medians, strict=True)
        ]
        return {**to_builtins(self), "rungs": rungs, "missed": self.missed, "ok": not self.missed}

    @property
    def markdown(self) -> str:
        """The table, and how to read it."""
        heads = ["bug", "what it does", "starts that find it", "seeds, median", "checker", "steps"]
        rows = [
            [
                rung.bug,
                BUGS[rung.bug].about,
                f"{len(rung.found)} of {rung.starts}",
                f"{rung.median:g}" if math.isfinite(rung.median) else f"above {self.seeds:,}",
                ", ".join(f"{name} ({n})" for name, n in Counter(rung.checkers).items()),
                str(rung.steps or ""),
            ]
            for rung in self.rungs
        ]
        return "\n".join(
            [
                line(heads),
                line(["---"] * len(heads)),
                *map(line, rows),
                "",
                f"Each of {self.starts} starts tries {self.seeds:,} seeds at most, until one goes "
                "wrong; beside a checker stands how often. The steps are those of the first short "
                f"story, or of the shortest of {TOLD}.",
            ]
        )

    def _repr_markdown_(self) -> str:
        return self.markdown


def climb(
    seeds: int = 1_000,
    starts: int = 20,
    *,
    bugs: tuple[str, ...] = tuple(BUGS),
    report: Callable[[int, int], None] = lambda done, of: None,
    workers: int | None = None,
) -> Ladder:
    """Look for each bug from each start; what was found so far is kept if it is interrupted."""
    found = Ladder(seeds, starts)
    work = partial(_look, seeds, starts)
    try:
        with on_all_processors(work, bugs, 1, processors(Scenario(), workers)) as rungs:
            for rung in rungs:
                found.rungs.append(rung)
                report(len(found.rungs), len(bugs))
    except KeyboardInterrupt:
        found.interrupted = True
    return found


def _look(seeds: int, starts: int, bugs: list[str]) -> Iterator[Rung]:
    for name in bugs:
        bug = BUGS[name]
        scenario = fitting(SCENARIOS["three" if bug.processes else "one"], name)
        firsts: dict[int, str] = {}
        with quiet(), planted(name):
            for start in range(0, starts * seeds, seeds):
                for seed in range(start, start + seeds):
                    if red := try_one(scenario, seed).red:
                        firsts[seed] = red[0]
                        break
            found = [seed % seeds + 1 for seed in firsts]  # a start begins at a multiple
            steps = shortest(scenario, [*firsts][:TOLD], name).steps if firsts else 0
        yield Rung(name, starts, found, [*firsts.values()], steps)
