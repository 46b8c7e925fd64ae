"""How many seeds it takes to find each bug of the ladder, and how short its story gets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from labkit.simulation.explore import SHORT, explore, on_all_processors, processors, quiet, shortest
from labkit.simulation.ladder import BUGS, Bug, fitting, planted
from labkit.simulation.scenario import SCENARIOS, Scenario

#: Between the first seeds of two starts: no seed is tried twice.
APART = 1_000_000


class Rung(Struct):
    """One bug. ``needed`` are the seeds to the find, of each start that has found it; the story of
    ``steps`` events is red for ``checker``."""

    name: str
    about: str
    expected: Sequence[str]
    needed: list[int] = []
    checker: str = ""
    steps: int = 0

    @property
    def good(self) -> bool:
        """Whether it was found, by a checker that may show it, with a short story."""
        return bool(self.needed) and self.checker in self.expected and self.steps <= SHORT

    def median(self, starts: int) -> float:
        """Seeds to the find; infinite if half of the starts have not found it."""
        unfound = [math.inf] * (starts - len(self.needed))
        return statistics.median([*self.needed, *unfound])


class Climbed(Struct):
    """Each bug, from so many ``starts`` of at most so many ``seeds``."""

    seeds: int
    starts: int
    rungs: list[Rung]

    @property
    def missed(self) -> list[str]:
        """The bugs that were not found, or not told as they should."""
        return [rung.name for rung in self.rungs if not rung.good]

    @property
    def report(self) -> dict[str, Any]:
        """For the JSON, where an infinite median is null."""
        rows = [
            {**msgspec.to_builtins(rung), "median": rung.median(self.starts), "ok": rung.good}
            for rung in self.rungs
        ]
        for row in rows:
            row["median"] = row["median"] if math.isfinite(row["median"]) else None
        return {"seeds": self.seeds, "starts": self.starts, "bugs": rows, "ok": not self.missed}

    @property
    def markdown(self) -> str:
        """The table."""
        heads = ("bug", "about", "checker", "found", "median of seeds", "steps")
        lines = [_line(heads), _line(["---"] * len(heads))]
        for rung in self.rungs:
            median = rung.median(self.starts)
            seeds = f"{median:,g}" if math.isfinite(median) else f"above {self.seeds:,}"
            found = f"{len(rung.needed)} of {self.starts}"
            lines.append(
                _line([rung.name, rung.about, rung.checker or "-", found, seeds, f"{rung.steps}"])
            )
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        return self.markdown


def climb(
    seeds: int = 1_000,
    starts: int = 20,
    names: Sequence[str] = tuple(BUGS),
    *,
    report: Callable[[int, int], None] = lambda done, of: None,
    processes: int | None = None,
) -> Climbed:
    """Look for each bug from so many starts, and tell one story of each."""
    found = {name: Rung(name, BUGS[name].about, BUGS[name].red) for name in names}
    red: dict[str, list[int]] = {name: [] for name in names}
    tries = [(name, start) for name in names for start in range(starts)]
    several = processors(Scenario(), processes)
    with on_all_processors(partial(_looked_for, seeds), tries, 1, several) as results:
        for done, ((name, start), seed) in enumerate(zip(tries, results, strict=True), 1):
            if seed is not None:
                red[name].append(seed)
                found[name].needed.append(1 + seed - start * APART)
            report(done, len(tries) + len(names))
    with on_all_processors(_stories, list(red.items()), 1, several) as results:
        for done, (name, checker, steps) in enumerate(results, 1):
            found[name].checker, found[name].steps = checker, steps
            report(len(tries) + done, len(tries) + len(names))
    return Climbed(seeds, starts, list(found.values()))


def _looked_for(seeds: int, tries: list[tuple[str, int]]) -> Iterator[int | None]:
    """The first seed of each start that goes wrong."""
    for name, start in tries:
        first = start * APART
        scenario, some = _scenario(BUGS[name]), range(first, first + seeds)
        found = explore(scenario, some, plant=name, stop_at_first=True, processes=1, tell=False)
        yield min(found.red, default=None)


def _stories(red: list[tuple[str, list[int]]]) -> Iterator[tuple[str, str, int]]:
    for name, seeds in red:
        if not seeds:
            yield name, "", 0
            continue
        with quiet(), planted(name):
            story = shortest(fitting(_scenario(BUGS[name]), name), seeds, name)
        yield name, story.checker, story.steps


def _scenario(bug: Bug) -> Scenario:
    return SCENARIOS["three" if bug.processes else "one"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
