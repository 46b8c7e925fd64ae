"""A world that goes on by whole turns: a life runs from one poll to the next, or until it dies.

Here all that can come next is known: a life that would find something, or something that happens.
What a life waits for in vain takes no turn. Time passes only when there is nothing else: first who
sleeps a little goes on, and where nobody does, all waiting is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from labkit.simulation.clients import PATIENCE_SECONDS
from labkit.simulation.faults import Fault
from labkit.simulation.fence import acting
from labkit.simulation.fingerprint import of_servers, of_state
from labkit.simulation.lives import Happening, Life
from labkit.simulation.scenario import Scenario
from labkit.simulation.tape import FAULTS, SCHEDULE, WORKLOAD, Tape
from labkit.simulation.trial import Outcome, Trial
from labkit.simulation.world import Stuck, World

#: A poll of at least so many seconds is a long one, as are those of clients.
LONG_SECONDS = 5.0
#: A path that takes so many turns does not come to rest.
TURNS = 2_000


class Turn(Struct, frozen=True, array_like=True, gc=False):
    """Whose turn it is, by number, 0 being the calm choice; and the place where it dies (0: none,
    else the number of the place within the turn)."""

    actor: int
    dies_at: int = 0

    @classmethod
    def unflat(cls, numbers: Sequence[int]) -> list[Turn]:
        """From one list, as a tape keeps them."""
        padded = [*numbers, 0]  # a tape has no calm end
        return [cls(*pair) for pair in zip(padded[::2], padded[1::2], strict=False)]


class TurnWorld(World):
    """``strike`` is called at each place of a worker; ``plain``: nobody is served at once."""

    def __init__(self, tape: Tape, plain: bool = False) -> None:
        super().__init__(tape)
        self._plain = plain
        #: Where each life stands: the last place that it came to.
        self.at: dict[str, str] = {}
        #: A relay reads while it is made: how many places it has passed.
        self._making: Counter[str] = Counter()
        self._news: dict[str, Callable[[], bool]] = {}
        #: Who polls for long.
        self._long: set[str] = set()

    def place(self, name: str) -> None:
        """A worker may die here. A client gives way to others before it sends."""
        life = self.current
        if life is None or life.state == "dead" or self.over:
            return
        self.step += 1
        self.at[life.name] = name
        self._making[life.name] += life.role == "relay"
        if life.role:
            self.strike(life, name)
            if life.state == "dead":
                self._leave()
        elif name.startswith("append"):
            self._leave()

    def forget(self, name: str) -> None:
        """Its next life stands nowhere yet."""
        self.at.pop(name, None)
        self._making.pop(name, None)

    def before_poll(self, news: Callable[[], bool], seconds: float) -> None:
        life = self.current
        if life is None or life.state == "dead" or self.over or seconds <= 0:
            return
        if not life.role or seconds >= LONG_SECONDS:
            self._long.add(life.name)
            seconds = max(seconds, PATIENCE_SECONDS)
        life.state, life.until = "blocked", self.time + int(seconds * 1e9)
        self._news[life.name] = news
        self._leave()
        del self._news[life.name]
        self._long.discard(life.name)

    def wait(self, keys: Iterable[str], seconds: float) -> bool:
        """What polls has waited already."""
        life = self.current
        return (life is not None and bool(keys)) or super().wait(keys, seconds)

    def actors(self) -> list[Life | Happening]:
        """All that can come next; the calm choice is the first."""
        found: list[Life | Happening] = []
        for life in self.lives:
            polls = life.state == "blocked" and life.name in self._news
            if polls and self._news[life.name]():
                if not life.role and not self._plain:
                    # To hear an answer changes nothing for others: it may as well be now.
                    return [life]
                found.append(life)
            elif life.state == "runnable":
                found.append(life)
        return found + [h for h in self.happenings if h.about() is not None]

    def take_turn(self, actor: Life | Happening) -> None:
        """Let it go on until it polls, gives way or dies."""
        if isinstance(actor, Happening):
            self._happen(actor)
            return
        actor.state, actor.keys = "runnable", frozenset()
        actor.let.switch()

    def pass_time(self) -> None:
        """Until a life goes on; raises ``Stuck`` where none can."""
        waiting = [life for life in self.lives if life.state == "blocked"]
        asleep = [life.until for life in waiting if life.name not in self._long]
        until = min(asleep) if asleep else max((life.until for life in waiting), default=0)
        if not until:
            raise Stuck("all wait, and for nothing that time could bring")
        self.time = max(self.time, until)
        for life in waiting:
            if life.until <= self.time and (not asleep or life.name not in self._long):
                life.state, life.keys = "runnable", frozenset()

    def waits(self, life: Life, made: bool) -> Any:
        """How a life stands, apart from its part, if that is ``made``."""
        long = life.name in self._long
        left = round((life.until - self.time) / 1e6) if life.state == "blocked" and not long else 0
        making = 0 if made else self._making[life.name]
        return life.state, self.at.get(life.name, ""), long, life.name in self._news, left, making


class Taken(Tape):
    """The turns that were taken, as a tape."""

    def __init__(self, workload: Sequence[int], turns: Sequence[Turn]) -> None:
        super().__init__(0, {WORKLOAD: workload})
        self.turns = turns

    @property
    def values(self) -> dict[str, list[int]]:
        """In one list: whose turn it is, and where it dies."""
        flat = [number for turn in self.turns for number in (turn.actor, turn.dies_at)]
        return {SCHEDULE: flat, FAULTS: [], WORKLOAD: super().values[WORKLOAD]}


class Played:
    """A path that is played turn by turn. Close it."""

    def __init__(
        self,
        scenario: Scenario,
        workload: Sequence[int],
        kills: int,
        *,
        recording: bool = False,
        plain: bool = False,
    ) -> None:
        self.turns: list[Turn] = []
        self.kills = kills
        self.struck: list[Fault] = []
        self.why = ""
        self.trial = Trial(
            scenario,
            tape := Taken(workload, self.turns),
            recording=recording,
            world=TurnWorld(tape, plain),
        )
        self._plain = plain
        self._place = self._dies_at = 0
        #: At which places of this turn a death makes a difference; looked for if asked.
        self._deaths: list[int] | None = None
        self._before: object = None
        self.world.strike = self._strike
        self._acting = acting(self.world)
        self._acting.__enter__()
        self.trial.begin()

    @property
    def world(self) -> TurnWorld:
        """The trial's."""
        assert isinstance(self.trial.world, TurnWorld)
        return self.trial.world

    def next(self) -> list[Life | Happening]:
        """All that can come next; nothing where all is at rest, or where ``why`` says what is
        wrong."""
        try:
            while not (actors := self.world.actors()):
                if self.trial.quiet():
                    return []
                self.world.pass_time()
        except Stuck as stuck:
            self.why = f"no liveness: {stuck}"
            return []
        if len(self.turns) > TURNS:
            self.why = "no liveness: it does not come to rest"
            return []
        return actors

    def state(self) -> bytes:
        """What decides what can come from here on."""
        return of_state(self.trial, self.world, self.kills)

    def outcome(self) -> Outcome:
        """What the checkers say of an end."""
        return self.trial.judged(self.struck, self.why)

    def take(self, turn: Turn, actors: Sequence[Life | Happening], look: bool = False) -> list[int]:
        """Take a turn; the places in it at which a death would make a difference, if ``look``."""
        self.turns.append(turn)
        self._place, self._dies_at = 0, turn.dies_at
        self._deaths = [] if look and self.kills else None
        self._before = None
        self.world.take_turn(actors[turn.actor])
        return self._deaths or []

    def _strike(self, life: Life, place: str) -> None:
        self._place += 1
        if self._place == self._dies_at:
            self.kills -= 1
            self.struck.append(Fault("kill", place, self._place))
            self.trial.workforce.die(life, place)
            # Its next life is there, and does nothing until it has a turn.
            self.world.forget(life.name)
            self.world.take_turn(self.world.happenings[-1])
        elif self._deaths is not None:
            # Whoever dies leaves what is in the servers, and nothing else.
            now = (of_servers(self.trial), len(life.legacies))
            if now != self._before or self._plain:
                self._deaths.append(self._place)
                self._before = now

    def close(self) -> None:
        """Nothing goes on."""
        self.world.end()
        self.trial.lab.__exit__(None, None, None)
        self._acting.__exit__(None, None, None)
