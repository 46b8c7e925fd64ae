"""A small case, searched to its end: every order of steps, with every death.

A state is reached by playing its path from the start again, since parts cannot be copied, and is
met once: two paths that lead to the same state have the same future. What two states have in common
is a fingerprint of all records, documents and parts, without instants, which differ between any two
runs. Steps of a part are not interrupted by others, so there are no zombies here: random walks have
these.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct, field

from labkit.experiments.verify.history import History
from labkit.ports.clock import Clock
from labkit.ports.executor import AtOnce
from labkit.service import Service
from labkit.simulation.explore import quiet
from labkit.simulation.faults import Fault
from labkit.simulation.ladder import fitting, planted
from labkit.simulation.scenario import Client, Scenario
from labkit.simulation.story import Story
from labkit.simulation.tape import FAULTS, Path
from labkit.simulation.trial import Outcome, Trial, acting
from labkit.simulation.world import AtEnd, Life, Stuck, World

#: Of a path: virtual seconds and steps.
SECONDS, STEPS = 120.0, 5_000
#: Instants, and what counts lives: they differ between two paths to one state.
INSTANTS = frozenset(
    [
        "polled",
        "decided",
        "sent",
        "intended",
        "at",
        "since",
        "fetched",
        "applied",
        "began",
        "moved",
        "time",
        "epoch",
        "until",
        "_flushed",
        "_looked",
        "generation",
        "fence",
        "seconds",
    ]
)
#: What is not a state of a part, or is looked at by itself.
PASSED_OVER = (Clock, World, Service, AtOnce, History, Client)


class Proof(Struct):
    """What was searched: ``states`` that were met, ``ends`` where all is at rest.

    ``complete``: there is no state that was not looked at; else all are of at most ``depth``
    decisions.
    """

    scenario: Scenario
    kills: int
    plant: str = ""
    states: int = 0
    ends: int = 0
    paths: int = 0
    depth: int = 0
    by_depth: dict[int, int] = field(default_factory=dict)
    complete: bool = False
    seconds: float = 0.0
    story: Story | None = None

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return self.story is None

    @property
    def text(self) -> str:
        """What is proven, in words."""
        sizes = self.scenario
        about = (
            f"{sizes.commands} commands, {sizes.handlers} handlers, {sizes.projectors} projectors, "
            f"{self.kills} kills"
        )
        if self.story is not None:
            return f"{self.story.text()}\n({about}; found after {self.states:,} states)"
        if self.complete:
            good_end = "a good end is reachable" if self.ends else "NO end is reachable"
            return f"All {self.states:,} reachable states of {about}: good; {good_end}."
        return (
            f"All {self.states:,} states of {about} that at most {self.depth} decisions reach: "
            f"good; there are more. {self.ends:,} ends were reached."
        )


def search(
    scenario: Scenario,
    *,
    workload: Sequence[int],
    kills: int = 1,
    plant: str | None = None,
    most: int = 200_000,
    report: Callable[[int, int], None] = lambda states, waiting: None,
) -> Proof:
    """Search all states breadth first; ``workload`` are the decisions of what is sent.

    It ends at ``most`` states, or at the first violation.
    """
    scenario = fitting(scenario, plant)
    found = Proof(scenario, kills, plant or "")
    began = time.monotonic()
    seen: set[bytes] = set()
    waiting: deque[list[int]] = deque([[]])
    with quiet(), planted(plant):
        while waiting and found.states < most:
            path = waiting.popleft()
            reached = _play(scenario, path, workload, kills)
            found.paths += 1
            found.depth = len(path)
            if isinstance(reached, Outcome):
                found.ends += 1
                if reached.red:
                    found.story = _story(scenario, path, workload, kills, reached, plant or "")
                    break
                continue
            if reached.state is not None:
                if reached.state in seen:
                    continue
                seen.add(reached.state)
                found.states += 1
                found.by_depth[len(path)] = found.by_depth.get(len(path), 0) + 1
            waiting += ([*path, choice] for choice in range(reached.choices))
            report(found.states, len(waiting))
    found.complete = not waiting and found.story is None
    found.seconds = round(time.monotonic() - began, 2)
    return found


class _Reached(Struct):
    """A decision that is not made yet; ``state`` where a step has ended there."""

    choices: int
    state: bytes | None


def _play(
    scenario: Scenario,
    path: Sequence[int],
    workload: Sequence[int],
    kills: int,
    recording: bool = False,
) -> _Reached | Outcome:
    tape = Path(path, workload)
    trial = Trial(scenario, tape, recording=recording)
    trial.world.atomic = True
    killer = _Killer(trial, kills)
    trial.world.strike = killer
    with acting(trial.world), trial.lab:
        try:
            trial.begin()
            why = ""
            try:
                if not trial.world.run(trial.quiet, SECONDS, STEPS):
                    why = "no liveness: it does not come to rest"
            except Stuck as stuck:
                why = f"no liveness: {stuck}"
            except AtEnd:
                assert tape.next is not None
                kind, choices = tape.next
                state = None if kind == FAULTS else fingerprint(trial, killer.left)
                return _Reached(choices, state)
            return trial.judged(killer.struck, why)
        finally:
            trial.world.end()


def _story(
    scenario: Scenario,
    path: Sequence[int],
    workload: Sequence[int],
    kills: int,
    bad: Outcome,
    plant: str,
) -> Story:
    again = _play(scenario, path, workload, kills, recording=True)
    assert isinstance(again, Outcome)
    return Story.of(scenario, again, bad.red[0], plant)


class _Killer:
    """At each place of a worker one may ask for its death, as long as there are deaths left."""

    def __init__(self, trial: Trial, kills: int) -> None:
        self.left = kills
        self.struck: list[Fault] = []
        self._trial = trial

    def __call__(self, life: Life, place: str) -> None:
        if not self.left or not life.role:
            return
        tape = self._trial.tape
        if tape.draw(FAULTS, place, 2):
            self.left -= 1
            self.struck.append(Fault("kill", place, 1))
            self._trial.die(life, place)


# --- fingerprints


def fingerprint(trial: Trial, kills: int) -> bytes:
    """Of all that decides what can happen from here on."""
    walk = _Walk()
    lives = {life.name: life.state for life in trial.world.lives if life.state != "dead"}
    what = [
        kills,
        sorted(lives.items()),
        sorted(Counter(h.label for h in trial.world.happenings).items()),
        [(client.answered, client.sent) for client in trial.clients],
        walk(trial.broker.__dict__),
        walk(trial.store.__dict__),
        {name: walk(part) for name, part in sorted(trial.parts.items()) if name in lives},
    ]
    return hashlib.blake2b(repr(what).encode(), digest_size=16).digest()


class _Walk:
    """Makes plain values of whatever a part holds, without what tells two paths apart."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []

    def __call__(self, value: Any) -> Any:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case bytes():
                return _without_instants(value)
            case Mapping():
                items = ((self(k), self(v)) for k, v in value.items() if k not in INSTANTS)
                return sorted(items, key=repr)
            case Set():
                return sorted(map(self, value), key=repr)
            case Sequence() | deque() | Iterator():
                return [self(item) for item in value] if not isinstance(value, Iterator) else None
        if isinstance(value, PASSED_OVER) or callable(value):
            return None
        if id(value) in self._met:
            return ("again", self._met[id(value)])
        self._met[id(value)] = len(self._met)
        self._kept.append(value)
        return (type(value).__name__, self(self._fields(value)))

    def _fields(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Struct):
            return {name: getattr(value, name) for name in value.__struct_fields__}
        return {
            name: held
            for name, held in getattr(value, "__dict__", {}).items()
            if not isinstance(held, partial)
        }


def _without_instants(value: bytes) -> Any:
    try:
        found = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return value
    if isinstance(found, dict):
        return sorted((k, repr(v)) for k, v in found.items() if k not in INSTANTS)
    return value
