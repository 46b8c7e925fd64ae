"""A small case with every delay: all runs that differ from the calm one in few places.

A worker dies or is paused at any one place, or the answer to any one commit or send is lost; and so
many times somebody else goes on than the one whose turn it is: delay-bounded scheduling (Emmi,
Qadeer and Rakamaric, POPL 2011). Turns are interrupted, so this search has the zombies that the
search of all states leaves out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from msgspec import Struct

from labkit.simulation import explore
from labkit.simulation.exhaustive import of_log, workload_of
from labkit.simulation.explore import Explored, shrunk
from labkit.simulation.faults import EFFECTS, KINDS, PASSES, STRUCK, UNANSWERED, UNKNOWN
from labkit.simulation.ladder import fitting, planted
from labkit.simulation.processors import on_all_processors, processors, quiet
from labkit.simulation.proof import Searched, counted
from labkit.simulation.saved_tape import SavedTape
from labkit.simulation.scenario import Scenario
from labkit.simulation.shrink import Values
from labkit.simulation.tape import FAULTS, SCHEDULE, WORKLOAD, Choose, Tape
from labkit.simulation.trial import Trial

#: So many faults are tried by a process at once.
CHUNK = 4


class Bounded(Searched):
    """What was tried: ``runs`` of at most ``delays`` delays with at most one fault."""

    scenario: Scenario
    delays: int
    runs: int = 0
    faults: int = 0

    @property
    def text(self) -> str:
        """What is proven, in words."""
        about = (
            f"{counted(self.scenario)}, at most one of {self.faults} faults (a worker killed or "
            f"paused at a place, an answer lost) and {self.delays} "
            f"delay{'s' * (self.delays != 1)}"
        )
        if self.story is not None:
            return f"{self.story.text()}\n({about}; found after {self.runs:,} runs)"
        if self.complete:
            return f"All {self.runs:,} runs of {about}: good."
        return f"{self.runs:,} runs of {about} were tried: good. There are more."


class _Noting(Tape):
    """Notes between how many the schedule could choose."""

    def __init__(self, recorded: Values) -> None:
        super().__init__(0, recorded)
        self.bounds: list[int] = []

    def draw(self, kind: str, label: str, bound: int, choose: Choose = Random.randrange) -> int:
        if kind == SCHEDULE and bound > 1:
            self.bounds.append(bound)
        return super().draw(kind, label, bound, choose)


class Tried(Struct):
    """The runs with one fault, or without; ``red`` is the first that went wrong."""

    runs: int = 0
    red: Values | None = None


def search(
    scenario: Scenario,
    *,
    delays: int = 1,
    plant: str | None = None,
    most: int = 1_000_000,
    report: Callable[[int, int], None] = lambda done, of: None,
    processes: int | None = None,
) -> Bounded:
    """Try all runs. It ends after some ``most`` runs, at the first violation, or at Ctrl-C.

    ``report`` is told with how many faults, of how many, all runs were tried.
    """
    scenario = fitting(scenario, plant)
    found = Bounded(scenario, delays, plant=plant or "")
    began = time.monotonic()
    with quiet(), planted(plant):
        calm = Trial(scenario, Tape(0, {WORKLOAD: workload_of(scenario)})).run()
    faults = _faults(calm.steps)
    work = partial(_try_some, scenario, delays, plant)
    red: Values | None = None
    try:
        with on_all_processors(work, faults, CHUNK, processors(scenario, processes)) as results:
            for number, tried in enumerate(results, 1):
                found.runs += tried.runs
                found.faults += tried.runs > 0 and number > 1
                report(number, len(faults))
                if (red := tried.red) is not None or found.runs >= most:
                    break
            else:
                found.complete = True
    except KeyboardInterrupt:
        found.interrupted = True
    found.seconds = round(time.monotonic() - began, 2)
    if red is not None:
        with quiet(), planted(plant):
            found.story = shrunk(scenario, Trial(scenario, Tape(0, red)).run(), plant or "")
        found.story.how = _how(scenario, delays)
    return found


def replay(
    scenario: Scenario, tape: SavedTape, *, delays: int = 1, plant: str | None = None
) -> Explored:
    """One run, from the tape of a story."""
    found = explore.replay(scenario, tape, plant)
    if found.story is not None:
        found.story.how = _how(found.scenario, delays)
    return found


def _how(scenario: Scenario, delays: int) -> str:
    sizes = f"--commands {scenario.commands} --handlers {scenario.handlers}"
    return f" one --exhaustive --delays {delays} {sizes}{of_log(scenario)}"


def _faults(steps: int) -> list[list[int]]:
    """None; and each that may strike in so many steps, as the tape has it: one more, its kind, at
    no failpoint, which, how often."""
    effects = range(min(steps, EFFECTS))
    struck = [[1, KINDS.index(kind), 1, 0, n] for kind in STRUCK for n in effects]
    unanswered = range(len(UNANSWERED))
    unknown = [
        [1, KINDS.index(kind), 0, place, n]
        for kind in UNKNOWN
        for place in unanswered
        for n in range(PASSES)
    ]
    return [[], *struck, *unknown]


def _try_some(
    scenario: Scenario, delays: int, plant: str | None, faults: list[list[int]]
) -> Iterator[Tried]:
    with quiet(), planted(plant):
        for fault in faults:
            yield _try(scenario, delays, fault)


def _try(scenario: Scenario, delays: int, fault: list[int]) -> Tried:
    """All runs with a fault; none if the workers do not come to its place in the calm one."""
    tried, waiting = Tried(), [list[int]()]
    while waiting:
        schedule = waiting.pop()
        tape = _Noting({WORKLOAD: workload_of(scenario), FAULTS: fault, SCHEDULE: schedule})
        outcome = Trial(scenario, tape).run()
        if fault and not outcome.struck and not schedule:
            break
        tried.runs += 1
        if outcome.red:
            tried.red = tape.values
            break
        if sum(map(bool, schedule)) < delays:
            calm = len(schedule)
            waiting += (
                [*schedule, *[0] * (at - calm), other]
                for at in range(calm, len(tape.bounds))
                for other in range(1, tape.bounds[at])
            )
    return tried
