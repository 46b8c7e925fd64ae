"""The ladder climbed: each planted bug, how soon it is found, and how short its story is."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
    """A rung for each of the ``bugs``; each start tries ``seeds`` at most."""

    seeds: int
    starts: int
    bugs: int = len(BUGS)
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
        part = f"This is a part of the ladder: {self.part}." if self.interrupted else ""
        return "\n".join(
            [
                line(heads),
                line(["---"] * len(heads)),
                *map(line, rows),
                "",
                f"Each of {self.starts} starts tries {self.seeds:,} seeds at most, until one goes "
                "wrong; beside a checker stands how often. The steps are those of the first short "
                f"story, or of the shortest of {TOLD}.",
                *(["", part] if part else []),
            ]
        )

    @property
    def part(self) -> str:
        """How much of it there is."""
        tried = sum(rung.starts for rung in self.rungs)
        return (
            f"{tried} of {self.starts * self.bugs} starts, of {len(self.rungs)} of {self.bugs} bugs"
        )

    def _repr_markdown_(self) -> str:
        return self.markdown


class First(Struct, frozen=True):
    """The first seed of a start that shows a bug, and the checker that is red."""

    seed: int
    checker: str


def climb(
    seeds: int = 1_000,
    starts: int = 20,
    *,
    bugs: tuple[str, ...] = tuple(BUGS),
    report: Callable[[int, int], None] = lambda done, of: None,
    workers: int | None = None,
) -> Ladder:
    """Look for each bug from each start; what was found so far is kept if it is interrupted.

    ``report`` is told how many starts are done, of how many.
    """
    found = Ladder(seeds, starts, len(bugs))
    looks = [(bug, start) for bug in bugs for start in range(starts)]
    work = partial(_look, seeds)
    tried: list[First | None] = []
    try:
        with on_all_processors(work, looks, 1, processors(Scenario(), workers)) as firsts:
            for first in firsts:
                tried.append(first)
                if len(tried) % starts == 0:
                    found.rungs.append(_rung(found, bugs, tried))
                report(len(tried), len(looks))
    except KeyboardInterrupt:
        found.interrupted = True
        if len(tried) > len(found.rungs) * starts:
            found.rungs.append(_rung(found, bugs, tried, tell=False))
    return found


def _scenario(bug: str) -> Scenario:
    return fitting(SCENARIOS["three" if BUGS[bug].processes else "one"], bug)


def _look(seeds: int, looks: list[tuple[str, int]]) -> Iterator[First | None]:
    for bug, start in looks:
        scenario = _scenario(bug)
        with quiet(), planted(bug):
            reds = (try_one(scenario, start * seeds + seed) for seed in range(seeds))
            yield next((First(done.seed, done.red[0]) for done in reds if done.red), None)


def _rung(
    ladder: Ladder, bugs: Sequence[str], tried: Sequence[First | None], *, tell: bool = True
) -> Rung:
    """Of the bug that comes next, from the starts that were tried for it."""
    bug, mine = bugs[len(ladder.rungs)], tried[len(ladder.rungs) * ladder.starts :]
    firsts = [first for first in mine if first is not None]
    steps = 0
    if firsts and tell:
        with quiet(), planted(bug):
            steps = shortest(_scenario(bug), [first.seed for first in firsts[:TOLD]], bug).steps
    seeds = [first.seed % ladder.seeds + 1 for first in firsts]  # a start begins at a multiple
    return Rung(bug, len(mine), seeds, [first.checker for first in firsts], steps)
