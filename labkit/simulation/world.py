"""Who runs when, and what time it is.

Each part is a *life*: a greenlet, so that it can be left in the middle of a step. It is left only
at *places*: before an effect on a twin, and at a failpoint. At each of them the tape decides who
goes on. A life that waits for something is blocked until that changes, or its time-out has come.
Time is virtual: it moves when all wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from greenlet import getcurrent, greenlet

from labkit.errors import OutcomeUnknown
from labkit.ports.clock import Clock
from labkit.simulation.lives import Event, Happening, Life
from labkit.simulation.monitors import Monitors
from labkit.simulation.tape import SCHEDULE, Named, Search, Tape, random_walk

#: The world begins at this instant: 2026-01-01, in nanoseconds.
BEGINNING = 1_767_225_600 * 10**9
#: Each look at the clock takes so long, so that no two instants are the same.
TICK = 1_000


T = TypeVar("T", bound=Named)


class Stuck(Exception):
    """Nobody can go on: all wait, and for nothing that time could bring."""


class Stopped(Exception):
    """The world has come to the step at which it was to be looked at."""


class VirtualClock(Clock):
    """The world's time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> int:
        self._world.time += TICK
        return self._world.time

    def wall(self) -> int:
        return (BEGINNING + self._world.time) // 1_000_000 + self._world.skew()

    def sleep(self, seconds: float) -> None:
        self._world.wait((), seconds)


class World:
    """Lives, happenings and time. ``search`` says who runs next, where a seed decides."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.time = 0
        self.step = 0
        self.lives: list[Life] = []
        self.happenings: list[Happening] = []
        #: What has happened, if ``recording``.
        self.trace: list[Event] = []
        self.recording = False
        self.skews: dict[str, int] = {}
        self.clock = VirtualClock(self)
        self.calm = False
        #: The world stops before this step, to be looked at.
        self.stop_at: int | None = None
        self.over = False
        #: Called at each place, before the tape decides who goes on; may kill or pause.
        self.strike: Callable[[Life, str], None] = lambda life, place: None
        #: Told of each effect: cheap checks of what must hold at any time.
        self.monitors = Monitors(lambda: self.step)
        self.search: Search = random_walk
        self._hub = getcurrent()
        self._next: Life | None = None
        self._last = 0
        self._ids = itertools.count(1)

    # --- what is handed to the parts

    def new_id(self) -> str:
        return f"{next(self._ids):032x}"

    @property
    def current(self) -> Life | None:
        """The life that runs; none where the world is looked at from outside."""
        return getattr(getcurrent(), "life", None)

    def skew(self) -> int:
        """How many milliseconds the wall clock of the life that runs is ahead."""
        return self.skews.get(self.current.name, 0) if self.current else 0

    # --- lives

    def spawn(self, name: str, run: Callable[[], None], role: str = "") -> Life:
        """Let ``run`` live, beginning at the world's next turn."""
        let = _Greenlet(self._lived(run), self._hub)
        life = Life(name, let, role, legacies=[])
        let.life = life
        self.lives.append(life)
        return life

    def _lived(self, run: Callable[[], None]) -> Callable[[], None]:
        def lived() -> None:
            run()
            if (life := self.current) is not None:
                life.state = "over"

        return lived

    def note(
        self,
        kind: str,
        text: str,
        about: Iterable[str] = (),
        other: str = "",
    ) -> None:
        """Tell the trace what a life has done, or what has happened to it."""
        if self.recording and not self.over:
            life = self.current
            name = life.name if life else ""
            self.trace.append(
                Event(self.step, self.time, name, kind, text, tuple(sorted(about)), other)
            )

    def place(self, name: str) -> None:
        """The life that runs comes to a place: others may go on before it does."""
        life = self.current
        if life is None or life.state == "dead" or self.over:
            return
        self.step += 1
        if self.step >= self._last or (self.stop_at is not None and self.step >= self.stop_at):
            self._leave()
        if not self.calm:
            self.strike(life, name)
        if life.state == "runnable":
            others = (o for o in self.lives if o.state == "runnable" and o is not life)
            able: list[Life | Happening] = [
                life,
                *others,
                *(self.happenings if not self.calm else ()),
            ]
            if (other := self._one_of(able)) is life:
                return
            if isinstance(other, Happening):
                self._happen(other)
                return
            self._next = other
        self._leave()

    def done(self, place: str) -> None:
        """The effect at a place has happened; what was drawn for it may hide that from the life."""
        if (life := self.current) is not None and life.unanswered == place:
            life.unanswered = ""
            raise OutcomeUnknown(f"simulated: no answer at {place}")

    def before_poll(self, news: Callable[[], bool], seconds: float) -> None:
        """The life that runs is about to poll, for ``seconds`` at most; ``news`` says whether it
        would find something."""

    def wait(self, keys: Iterable[str], seconds: float) -> bool:
        """Block the life that runs until one of ``keys`` changes; ``False``: the time-out came.

        Who waits from outside the world waits for nothing.
        """
        life = self.current
        if life is None or life.state == "dead" or self.over:
            self.time += max(0, int(seconds * 1e9))
            return False
        life.keys, life.until = frozenset(keys), self.time + int(seconds * 1e9)
        life.state, life.woken = "blocked", False
        self._leave()
        return life.woken

    def wake(self, key: str) -> None:
        """Something has changed that lives may wait for."""
        for life in self.lives:
            if key in life.keys and life.state == "blocked":
                life.state, life.woken, life.keys = "runnable", True, frozenset()
            elif key in life.keys and life.state == "paused":
                life.woken, life.keys = True, frozenset()

    def _leave(self) -> None:
        self._hub.switch()

    # --- faults

    def kill(self, life: Life) -> None:
        """End a life where it stands: nothing of it runs again, not even what it does at its end.

        Sessions and transactions that it leaves end later, each by itself.
        """
        life.state = "dead"
        for legacy in life.legacies:
            legacy()

    def pause(self, life: Life, seconds: float) -> None:
        """Stop a life where it stands; it goes on later, as if nothing had been."""
        life.state = "paused"

        def resume() -> None:
            if life.state == "paused":
                life.state = "runnable"

        self.later(f"{life.name} goes on", seconds, resume)

    def later(
        self,
        name: str,
        seconds: float,
        action: Callable[[], None],
        about: Callable[[], object] = lambda: True,
    ) -> None:
        """Let something happen in ``seconds`` at the latest; ``about``: see ``Happening``."""
        self.happenings.append(Happening(name, self.time + int(seconds * 1e9), action, about))

    def _happen(self, happening: Happening) -> None:
        self.happenings.remove(happening)
        self.note("happening", happening.name)
        happening.action()

    # --- the end

    def run(self, done: Callable[[], bool], seconds: float, steps: int = 10**6) -> bool:
        """Let all live until ``done``, which is asked whenever all wait; ``False`` if that was not
        so after so many virtual seconds or steps. Raises ``Stuck``."""
        end, self._last = self.time + int(seconds * 1e9), self.step + steps
        while self.step < self._last:
            if self.stop_at is not None and self.step >= self.stop_at:
                raise Stopped
            life = self._chosen()
            if life is None:
                if done():
                    return True
                if self.time > end:
                    return False
                self._advance()
                continue
            life.let.switch()
        return False

    def _chosen(self) -> Life | None:
        if self._next is not None:
            life, self._next = self._next, None
            if life.state == "runnable":
                return life
        runnable = [life for life in self.lives if life.state == "runnable"]
        if not runnable:
            return None
        return self._one_of(runnable)

    def _one_of(self, able: Sequence[T]) -> T:
        """Who goes on; the calm choice is the first."""
        return able[self.tape.draw(SCHEDULE, "next", len(able), self.search(able))]

    def _advance(self) -> None:
        """To the next instant at which something can go on."""
        waiting = [life for life in self.lives if life.state == "blocked"]
        instants = [life.until for life in waiting] + [h.due for h in self.happenings]
        if not instants:
            raise Stuck("all wait, and for nothing that time could bring")
        self.time = max(self.time, min(instants))
        for happening in [h for h in self.happenings if h.due <= self.time]:
            self._happen(happening)
        for life in waiting:
            if life.state == "blocked" and life.until <= self.time:
                life.state, life.keys = "runnable", frozenset()

    def end(self) -> None:
        """No life goes on; what they would do at their end has no effect."""
        self.over = True
        for life in self.lives:
            life.state = "dead"
        self.lives.clear()


class _Greenlet(greenlet):  # type: ignore[misc]
    life: Life
