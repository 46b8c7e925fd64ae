"""A small case, searched to its end: every order of turns, with every death.

A state is reached by playing its path from the start again, since parts cannot be copied, and is
met once: see ``fingerprint``. A turn of a part is not interrupted by others, so there are no
zombies here: random walks have these. What differs least from the calm order is searched first.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.run import references
from labkit.simulation.ladder import fitting, planted
from labkit.simulation.lives import Happening, Life
from labkit.simulation.processors import quiet
from labkit.simulation.proof import Proof
from labkit.simulation.saved_tape import SavedTape
from labkit.simulation.scenario import Scenario
from labkit.simulation.story import Story
from labkit.simulation.tape import SCHEDULE, WORKLOAD
from labkit.simulation.turns import Played, Turn

#: What can come next.
Actors = list[Life | Happening]


def small(scenario: Scenario, **sizes: int) -> Scenario:
    """The scenario as it can be searched: of one client, one projector and one partition.

    Raises ``UsageError`` where there is more than one service.
    """
    if scenario.processes or len(scenario.services) != 1:
        raise UsageError("an exhaustive search is of one service without processes; name that")
    return structs.replace(
        scenario, **{"commands": 3, "clients": 1, "projectors": 1, "partitions": 1, **sizes}
    )


def of_log(scenario: Scenario) -> str:
    """The log as the command line names it, if it is not the usual one."""
    return f" --log {scenario.log}" if scenario.log != "kafka" else ""


def workload_of(scenario: Scenario) -> list[int]:
    """The decisions on what is sent: the first command twice at once, the others once; before the
    last one a pause, in which saved states become due."""
    sizes = (scenario.clients, scenario.handlers, scenario.projectors, scenario.partitions)
    found = [count - 1 for count in sizes if count > 1]
    found.append(0)
    for number in range(scenario.commands):
        found += [1 if number else 2, 0, int(0 < number == scenario.commands - 1)]
    return found


def search(
    scenario: Scenario,
    *,
    kills: int = 1,
    plant: str | None = None,
    most: int = 1_000_000,
    plain: bool = False,
    report: Callable[[int, int], None] = lambda states, waiting: None,
) -> Proof:
    """Search all states. It ends at ``most`` states, at the first violation, or at Ctrl-C.

    ``report`` is told how many states were met, and how many paths wait to be followed. ``plain``:
    nothing is left out and no state is merged with another, which takes far longer.
    """
    scenario = fitting(scenario, plant)
    began = time.monotonic()
    searching = Search(Proof(scenario, kills, plant=plant or ""), most, plain)
    with quiet(), planted(plant):
        searching.run(report)
    searching.found.seconds = round(time.monotonic() - began, 2)
    return searching.found


def replay(
    scenario: Scenario, tape: SavedTape, *, kills: int = 1, plant: str | None = None
) -> Proof:
    """One path, from the tape of a story; raises ``UsageError`` for that of another scenario."""
    tape.check(scenario)
    scenario = fitting(scenario, plant)
    found = Proof(scenario, kills, plant=plant or "", paths=1)
    with quiet(), planted(plant):
        _tell(found, tape.values[WORKLOAD], Turn.unflat(tape.values[SCHEDULE]))
    return found


class _Path(Struct, gc=False):
    """Turns from the beginning; the last one is to be taken in the state ``origin``."""

    turns: tuple[Turn, ...] = ()
    origin: int = -1


class Search:
    """A search under way. ``ended`` is called at each end that is new."""

    def __init__(self, found: Proof, most: int, plain: bool = False) -> None:
        self.found = found
        self.ended: Callable[[Played], None] = lambda played: None
        self._most = most
        self._plain = plain
        self._workload = workload_of(found.scenario)
        # Made once, and not for each path.
        services = references.services(found.scenario.services)
        self._scenario = structs.replace(found.scenario, services=services)
        #: Paths that differ from the calm one in so many turns, and those with one more.
        self._now: list[_Path] = [_Path()]
        self._later: list[_Path] = []
        self._states: dict[bytes, int] = {}
        #: Of each state by number: how it was reached first, and from which states it is reached.
        self._turns: list[tuple[Turn, ...]] = []
        self._before: list[set[int]] = []
        self._ends: list[int] = []

    def run(self, report: Callable[[int, int], None]) -> None:
        """Until there is nothing new."""
        found = self.found
        with _interruptible() as asked:
            while self._now and found.story is None and found.states < self._most:
                if asked():
                    found.interrupted = True
                    break
                self._follow(self._now.pop())
                report(found.states, len(self._now) + len(self._later))
                if not self._now:
                    self._now, self._later = self._later, []
                    found.depth += bool(self._now)
        if found.story is None:
            found.complete = not self._now
            found.depth -= not found.complete
        if found.complete and not self._plain:
            self._look_for_dead_ends()

    def _follow(self, path: _Path) -> None:
        """Play a path and go on calmly, as far as there is something new."""
        self.found.paths += 1
        played = Played(self._scenario, self._workload, self.found.kills, plain=self._plain)
        with closing(played):
            for turn in path.turns[:-1]:
                played.take(turn, played.next())
            state = path.origin
            if path.turns:
                self._turn(played, path.turns[-1], played.next(), state)
            while (new := self._met(played, state)) is not None:
                state, actors = new
                for other in range(1, len(actors)):
                    self._later.append(_Path((*played.turns, Turn(other)), state))
                self._turn(played, Turn(0), actors, state)

    def _turn(self, played: Played, turn: Turn, actors: Actors, state: int) -> None:
        """Take a turn that is new, and note in which places of it one may die."""
        before = tuple(played.turns)
        deaths = played.take(turn, actors, look=not turn.dies_at)
        self._later += [_Path((*before, Turn(turn.actor, place)), state) for place in deaths]

    def _met(self, played: Played, before: int) -> tuple[int, Actors] | None:
        """The state that is reached, and what can come next, if it is new and no end."""
        found, actors = self.found, played.next()
        key = str(found.states).encode() if self._plain else played.state()
        number = self._states.setdefault(key, len(self._states))
        new = number == found.states
        if new:
            self._before.append(set())
            self._turns.append(tuple(played.turns))
            found.states += 1
            found.by_depth[found.depth] = found.by_depth.get(found.depth, 0) + 1
        if before >= 0:
            self._before[number].add(before)
        if new and actors:
            return number, actors
        if new:
            self._ends.append(number)
            found.ends += 1
            outcome = played.outcome()
            self.ended(played)
            if outcome.red:
                _tell(found, self._workload, played.turns)
        return None

    def _look_for_dead_ends(self) -> None:
        """From each state one must come to an end."""
        alive, waiting = set(self._ends), list(self._ends)
        while waiting:
            fresh = self._before[waiting.pop()] - alive
            alive |= fresh
            waiting += fresh
        if dead := [number for number in range(self.found.states) if number not in alive]:
            first = min(dead, key=lambda number: len(self._turns[number]))
            self.found.complete = False
            _tell(
                self.found,
                self._workload,
                self._turns[first],
                "no liveness: from here no end is reached, however it goes on",
            )


def _tell(found: Proof, workload: Sequence[int], turns: Sequence[Turn], why: str = "") -> None:
    """The story of a path that goes wrong."""
    played = Played(found.scenario, workload, found.kills, recording=True)
    with closing(played):
        # With other code than it was recorded with, a path may fit no more: as far as it does.
        for turn in list(turns):
            if actors := played.next():
                played.take(Turn(min(turn.actor, len(actors) - 1), turn.dies_at), actors)
        while (actors := played.next()) and not why:
            played.take(Turn(0), actors)
        played.why = why or played.why
        outcome = played.outcome()
        if outcome.red:
            sizes = found.scenario
            how = (
                f" one --exhaustive --commands {sizes.commands} --handlers {sizes.handlers} "
                f"--kills {found.kills}{of_log(sizes)}"
            )
            found.story = Story.of(sizes, outcome, outcome.red[0], found.plant, how=how)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: a path that is being played is not torn apart."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
