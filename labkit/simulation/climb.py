"""The ladder climbed: each planted bug, how soon it is found, and how short its story is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from msgspec import Struct, field, to_builtins

from labkit.simulation.explore import on_all_processors, processors, quiet, told, try_one
from labkit.simulation.ladder import BUGS, fitting, planted
from labkit.simulation.scenario import SCENARIOS, Scenario
from labkit.simulation.table import line


class Rung(Struct, frozen=True):
    """``found``: after how many seeds, of each start that found it. ``checker`` and ``steps`` are
    of the shortest of some stories; ``right``: the bug may show itself like that."""

    bug: str
    starts: int
    found: list[int]
    checker: str = ""
    right: bool = False
    steps: int = 0

    @property
    def good(self) -> bool:
        """Whether each start has found it, by the right checker."""
        return self.right and len(self.found) == self.starts


class Ladder(Struct):
    """A rung for each bug; each start tries ``seeds`` at most."""

    seeds: int
    starts: int
    rungs: list[Rung] = field(default_factory=list)
    interrupted: bool = False

    @property
    def missed(self) -> list[str]:
        """The bugs that were not found by each start, or by a checker that is not theirs."""
        return [rung.bug for rung in self.rungs if not rung.good]

    @property
    def report(self) -> dict[str, Any]:
        """For the JSON."""
        return {**to_builtins(self), "missed": self.missed, "ok": not self.missed}

    @property
    def markdown(self) -> str:
        """The table, and how to read it."""
        heads = ["bug", "what it does", "starts that find it", "seeds, median", "checker", "steps"]
        rows = [
            [
                rung.bug,
                BUGS[rung.bug].about,
                f"{len(rung.found)} of {rung.starts}",
                f"{statistics.median(rung.found):g}" if rung.found else "",
                rung.checker,
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
                "wrong. Checker and steps are those of the shortest story of the first three.",
            ]
        )

    def _repr_markdown_(self) -> str:
        return self.markdown


#: Of so many finds the story is told, and the shortest one counts.
TOLD = 3


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
        firsts: list[int] = []
        with quiet(), planted(name):
            for start in range(0, starts * seeds, seeds):
                tried = range(start, start + seeds)
                first = next((seed for seed in tried if try_one(scenario, seed).red), None)
                if first is not None:
                    firsts.append(first)
            stories = [told(scenario, seed, name) for seed in firsts[:TOLD]]
        found = [first % seeds + 1 for first in firsts]  # a start begins at a multiple
        if not stories:
            yield Rung(name, starts, found)
            continue
        best = min(stories, key=lambda story: (story.checker not in bug.red, story.steps))
        yield Rung(name, starts, found, best.checker, best.checker in bug.red, best.steps)
