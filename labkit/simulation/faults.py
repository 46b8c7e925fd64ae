"""What goes wrong in a trial: a few faults, each at a place and a number, drawn before it begins.

A failpoint is drawn first and then how often it is passed, so that a rare one is struck as often as
one that is passed all the time. A quarter of the faults strike at unnamed effects, since the code
of a service of one's own has no failpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal, Protocol, get_args

from msgspec import Struct

from labkit.errors import OutcomeUnknown, Unreachable
from labkit.ports.failpoints import ALL
from labkit.simulation.lives import Life
from labkit.simulation.stores import ADVANCE
from labkit.simulation.tape import FAULTS, Tape, odds
from labkit.simulation.twins import COMMIT
from labkit.simulation.world import World

#: ``kill``: a worker dies, and is started again.  ``pause``: it stops for longer than its session
#: lasts, and goes on.  ``refuse``: an effect does not happen, the server does not answer.
#: ``lose``: a commit or a send is not answered, and has not happened.  ``hide``: it has.
#: ``rewind``: the offsets of its group go back.  ``skew``: its wall clock jumps.  ``leave``: it
#: ends in order, and another begins.  ``join``: another worker of its role comes for a while.
#: ``election``: another server of the store is elected, and has not what only the first one had.
Kind = Literal[
    "kill", "pause", "refuse", "lose", "hide", "rewind", "skew", "leave", "join", "election"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: What happens to a worker at a place; and to a commit or a send, which was done or was not.
STRUCK: tuple[Kind, ...] = ("kill", "pause")
UNKNOWN: tuple[Kind, ...] = ("lose", "hide")

#: Failpoints of the first so many passes are struck; of unnamed effects, the first so many.
PASSES, EFFECTS = 12, 600
#: A worker that dies is started again after so long at the latest; a paused one goes on.
RESTART_SECONDS, PAUSE_SECONDS = 1.0, 5.0
#: A wall clock jumps by so many milliseconds, forwards or backwards.
SKEW_MS = 60_000
#: A trial has so many faults at most.
MOST = 4
#: A fault is so many decisions, the first of them whether there is one.
DECISIONS = 5
#: Where an answer may be lost: a worker's transactions, and sends.
UNANSWERED = (COMMIT, ADVANCE, "append")


class Fault(Struct, frozen=True):
    """A ``kind`` of fault at the ``number``-th time that workers pass ``place`` (empty: any)."""

    kind: Kind
    place: str
    number: int


def draw_faults(tape: Tape) -> list[Fault]:
    """The faults of a trial. Each kind is off in half of all trials (swarm); that is not on the
    tape, so that a recorded fault is of its kind whatever else is changed."""
    some: list[int] = []

    def swarm(random: Random, bound: int) -> int:
        if not some:
            some.extend([n for n in range(bound) if random.random() < 0.5] or [0])
        return random.choice(some)

    found = []
    for _ in range(MOST):
        if not tape.draw(FAULTS, "one more fault", 2, odds(0.6)):
            continue
        kind = KINDS[tape.draw(FAULTS, "kind", len(KINDS), swarm)]
        place = _place(kind, tape)
        number = 1 + tape.draw(FAULTS, "number", PASSES if place else EFFECTS, _early)
        found.append(Fault(kind, place, number))
    return found


def without_one(values: Sequence[int]) -> Iterator[list[int]]:
    """The recorded decisions of ``draw_faults``, each time without one of the faults."""
    at = 0
    while at < len(values):
        if values[at]:
            yield [*values[:at], 0, *values[at + DECISIONS :]]
        at += DECISIONS if values[at] else 1


def _place(kind: Kind, tape: Tape) -> str:
    """The calm choice of a place is a failpoint."""
    unnamed = tape.draw(FAULTS, "at no failpoint", 2, odds(0.25))
    failpoint = tape.draw(FAULTS, "failpoint", len(ALL))
    if kind in UNKNOWN:
        return UNANSWERED[failpoint % len(UNANSWERED)]
    return "" if unnamed or kind == "refuse" else ALL[failpoint]


def _early(random: Random, bound: int) -> int:
    """The first ones mostly, and the late ones too: as often below 10 as between 10 and 100."""
    return int((bound + 1) ** random.random()) - 1


class Hands(Protocol):
    """What a fault does beyond the worker that it strikes."""

    def restart(self, life: Life) -> None:
        """Start a worker again that has died, later."""

    def rewind(self, life: Life) -> None:
        """Set the offsets of its group back, and lose the tokens of relays."""

    def join(self, life: Life) -> None:
        """Let another worker of its role begin, which leaves later."""

    def elect(self) -> None:
        """Let another server of the store be elected."""


class Striker:
    """Strikes workers, with the ``hands`` of the trial.

    ``struck`` are the faults that happened, each at the place where it did.
    """

    def __init__(self, world: World, faults: list[Fault], hands: Hands) -> None:
        self.struck: list[Fault] = []
        self._world = world
        self._left = {(fault.place, fault.number): fault for fault in faults}
        self._hands = hands
        self._passed: dict[str, int] = {}

    def __call__(self, life: Life, place: str) -> None:
        if not self._left:
            return
        named = "append" if place.startswith("append") else place
        for name in (named, "") if life.role else (named,):
            self._passed[name] = passed = self._passed.get(name, 0) + 1
            fault = self._left.get((name, passed))
            if fault is not None and (life.role or fault.kind in UNKNOWN):
                del self._left[name, passed]
                self._strike(life, place, fault)
                return

    def _strike(self, life: Life, place: str, fault: Fault) -> None:
        world = self._world
        kind = "kill" if fault.kind == "refuse" and place in ALL else fault.kind
        self.struck.append(Fault(kind, place, fault.number))
        world.note("fault", _TOLD[kind].format(at=f" at {place}"))
        match kind:
            case "kill":
                self._kill(life)
            case "rewind":
                self._kill(life)
                self._hands.rewind(life)
            case "pause":
                world.pause(life, PAUSE_SECONDS)
                for bequeath in life.legacies:  # its session may end meanwhile
                    bequeath()
            case "skew":
                world.skews[life.name] = SKEW_MS * (1 if fault.number % 2 else -1)
            case "leave":
                life.leaving = True
            case "join":
                self._hands.join(life)
            case "election":
                self._hands.elect()
            case "hide":
                life.unanswered = place
            case "lose":
                raise OutcomeUnknown(f"simulated: no answer at {place}")
            case "refuse":
                raise Unreachable(f"simulated: no server at {place}")

    def _kill(self, life: Life) -> None:
        self._world.kill(life)
        self._hands.restart(life)


_TOLD: dict[Kind, str] = {
    "kill": "is killed{at}",
    "pause": "is paused{at}",
    "refuse": "gets no answer{at}, and nothing has happened",
    "lose": "gets no answer{at}, and nothing has happened",
    "hide": "gets no answer{at}, though all has happened",
    "rewind": "is killed{at}, and the offsets of its group go back",
    "skew": "has a wall clock that jumps{at}",
    "leave": "is told to end after this step{at}",
    "join": "gets another worker of its role beside it{at}",
    "election": "goes on while another server of the store is elected{at}",
}
