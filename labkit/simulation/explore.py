"""Many trials, one for each seed, on all processors; and the smallest story of what went wrong."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct, field, structs

from labkit.ports.failpoints import ALL
from labkit.services import VERIFIED
from labkit.simulation.faults import STRUCK, UNANSWERED, UNKNOWN, Fault
from labkit.simulation.ladder import fitting, planted
from labkit.simulation.processors import on_all_processors, processors, quiet
from labkit.simulation.saved_tape import SavedTape
from labkit.simulation.scenario import Scenario
from labkit.simulation.schemas import MET
from labkit.simulation.shrink import BUDGET, Played, Shrinker, Values
from labkit.simulation.story import Story, steps_of, told_of
from labkit.simulation.tape import Tape
from labkit.simulation.trial import Outcome, Trial

#: A story of so many steps is short; of seeds that went wrong, so many are told at most.
SHORT, TOLD = 20, 4
#: So many seeds are given to a process at once.
CHUNK = 20

#: Ways to choose who goes on; PCT looks first how many steps a trial takes, in so many of them.
SEARCHES = ("random", "pct")
PROBES = 10

#: Told how many seeds are done, of how many.
Report = Callable[[int, int], None]


class Explored(Struct):
    """What many seeds have shown.

    ``struck`` counts the faults that happened, by kind and place: a failpoint, what was not
    answered, or any other ``effect``. ``red`` are the seeds that went wrong, with the checkers that
    are red.
    """

    scenario: Scenario
    plant: str = ""
    seeds: int = 0
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    struck: dict[str, dict[str, int]] = field(default_factory=dict)
    red: dict[int, list[str]] = field(default_factory=dict)
    story: Story | None = None
    interrupted: bool = False

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return not self.red

    @property
    def missed(self) -> list[str]:
        """What was never struck, of all that can be: a kill and a pause at each failpoint of the
        workers that there are; each lost answer, of what was done and of what was not; and messages
        of other schemas."""
        process = ("process",) if self.scenario.processes else ()
        relay = ("relay",) if self.scenario.log == "mongodb" else ()
        roles = ("handler", "projector", *process, *relay)
        points = [point for point in ALL if point.startswith(roles)]
        cells = [*product(STRUCK, points), *product(UNKNOWN, UNANSWERED), *MET]
        return [f"{kind} at {at}" for kind, at in cells if not self.struck.get(kind, {}).get(at)]

    @property
    def report(self) -> dict[str, Any]:
        """For the JSON."""
        found = msgspec.to_builtins(self, enc_hook=str)
        return {**found, "ok": self.good, "missed": self.missed}

    @property
    def text(self) -> str:
        """A line, and the story if there is one."""
        what = f" with the bug {self.plant!r}" if self.plant else ""
        speed = self.seeds / self.cpu_seconds if self.cpu_seconds else 0.0
        line = (
            f"{self.seeds:,} seeds{what}, {self.steps:,} steps, {len(self.red)} went wrong; "
            f"{speed:,.0f} trials a second and processor"
        )
        if self.seeds > 1 and not self.plant:
            never = ", ".join(self.missed)
            line += f"\nNever struck: {never}" if never else "\nEach fault struck at each place"
        return f"{line}\n\n{self.story.text()}" if self.story else line

    def _repr_html_(self) -> str:
        story = self.story._repr_html_() if self.story else ""
        return f"<p>{html.escape(self.text.partition(chr(10))[0])}</p>{story}"


class Done(Struct, frozen=True):
    """One seed, as a process reports it."""

    seed: int
    steps: int
    struck: Sequence[tuple[str, str]]
    red: list[str]
    cpu: float


def explore(
    scenario: Scenario,
    seeds: Iterable[int],
    *,
    plant: str | None = None,
    search: str = SEARCHES[0],
    report: Report = lambda done, of: None,
    stop_after: int | None = None,
    processes: int | None = None,
    tell: bool = True,
) -> Explored:
    """Try all seeds; what was found so far is kept if it is interrupted.

    It ends when ``stop_after`` seeds went wrong. ``tell``: make a story, a short one if it can be.
    """
    scenario = fitting(scenario, plant)
    if search == "pct":
        scenario = structs.replace(scenario, horizon=_usual_steps(scenario))
    wanted = list(seeds)
    found = Explored(scenario, plant or "")
    began = time.monotonic()
    work = partial(try_some, scenario, plant)
    try:
        with on_all_processors(work, wanted, CHUNK, processors(scenario, processes)) as results:
            for done in results:
                _add(found, done)
                report(found.seeds, len(wanted))
                if len(found.red) == stop_after:
                    break
    except KeyboardInterrupt:
        found.interrupted = True
    found.seconds = round(time.monotonic() - began, 3)
    if found.red and tell:
        with quiet(), planted(plant):
            found.story = shortest(scenario, sorted(found.red)[:TOLD], plant or "")
    return found


def _usual_steps(scenario: Scenario) -> int:
    """How many steps a trial takes: the median of a few."""
    with quiet():
        return int(median(Trial(scenario, Tape(seed)).run().steps for seed in range(PROBES)))


def _add(found: Explored, done: Done) -> None:
    found.seeds += 1
    found.steps += done.steps
    found.cpu_seconds = round(found.cpu_seconds + done.cpu, 6)
    for kind, place in done.struck:
        places = found.struck.setdefault(kind, {})
        places[place] = places.get(place, 0) + 1
    if done.red:
        found.red[done.seed] = done.red


def try_some(scenario: Scenario, plant: str | None, seeds: list[int]) -> Iterator[Done]:
    """The seeds one after the other."""
    with quiet(), planted(plant):
        for seed in seeds:
            yield try_one(scenario, seed)


def try_one(scenario: Scenario, seed: int) -> Done:
    """One trial, in short."""
    began = time.process_time()
    outcome = Trial(scenario, Tape(seed)).run()
    struck = [*((fault.kind, _place(fault)) for fault in outcome.struck), *outcome.met]
    return Done(seed, outcome.steps, struck, outcome.red, time.process_time() - began)


def _place(fault: Fault) -> str:
    if fault.kind in UNKNOWN:
        return fault.place.partition(" ")[0]  # ``append`` names its topic, too
    return fault.place if fault.place in ALL else "effect"


def shortest(
    scenario: Scenario,
    seeds: Sequence[int],
    plant: str = "",
    checker: str = "",
    *,
    short: int = SHORT,
) -> Story:
    """The first ``short`` story of these seeds, or the shortest; see ``told``."""
    stories: list[Story] = []
    for seed in seeds:
        stories.append(told(scenario, seed, plant, checker=checker))
        if stories[-1].steps <= short:
            break
    return min(stories, key=lambda story: story.steps)


def told(
    scenario: Scenario, seed: int, plant: str = "", budget: int = BUDGET, checker: str = ""
) -> Story:
    """The story of a seed that went wrong, shrunk as far as the same checker stays red: this one,
    or the first."""
    return shrunk(scenario, Trial(scenario, Tape(seed)).run(), plant, budget, checker)


def shrunk(
    scenario: Scenario, first: Outcome, plant: str = "", budget: int = BUDGET, checker: str = ""
) -> Story:
    """The story of a run that went wrong; see ``told``."""
    checker, seed = checker or first.red[0], first.seed

    def play(values: Values) -> Played | None:
        outcome = replayed(scenario, seed, values)
        if checker not in outcome.red:
            return None
        return steps_of(told_of(outcome, checker)), outcome.tape.values

    shrinker = Shrinker(first.tape.values, play, budget)
    outcome = replayed(scenario, seed, shrinker.run())
    return Story.of(scenario, outcome, checker, plant, shrinker.runs)


def tape_of(scenario: Scenario, seed: int, plant: str | None = None) -> SavedTape:
    """The tape of a seed, shrunk if it goes wrong."""
    scenario = fitting(scenario, plant)
    with quiet(), planted(plant):
        outcome = Trial(scenario, Tape(seed)).run()
        if outcome.red:
            return shrunk(scenario, outcome, plant or "").tape()
    return SavedTape.made(scenario, seed, outcome.tape.values)


def replayed(scenario: Scenario, seed: int | str, values: Values) -> Outcome:
    """A recorded run once more, with all that happened in it."""
    return Trial(scenario, Tape(seed, recorded=values), recording=True).run()


def replay(scenario: Scenario, tape: SavedTape, plant: str | None = None) -> Explored:
    """One run, from the tape of a story; raises ``UsageError`` for that of another scenario."""
    scenario = fitting(tape.fitting(scenario), plant)
    with quiet(), planted(plant):
        outcome = replayed(scenario, tape.seed, tape.values)
        found = Explored(scenario, plant or "", 1, outcome.steps)
        if outcome.red:
            found.red[0] = outcome.red
            found.story = Story.of(scenario, outcome, outcome.red[0], plant or "")
    return found


def simulate(
    *services: Any,
    processes: Iterable[Any] = (),
    seeds: int = 1_000,
    plant: str | None = None,
    progress: bool = True,
    **sizes: Any,
) -> Explored:
    """Try so many seeds of a scenario, until a few went wrong, and tell a short story of these.

    ``services`` as in ``Lab``: names, references or objects; ``sizes`` are those of ``Scenario``
    (``commands``, ``handlers``, ...).
    """
    from tqdm.auto import tqdm

    scenario = Scenario(services=services or VERIFIED[:1], processes=tuple(processes), **sizes)
    with tqdm(total=seeds, unit="seed") if progress else nullcontext() as bar:

        def report(done: int, of: int) -> None:
            if bar is not None:
                bar.update(1)

        return explore(scenario, range(seeds), plant=plant, report=report, stop_after=TOLD)
