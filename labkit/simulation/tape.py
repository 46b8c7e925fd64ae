"""Every decision of a simulated run, in the order in which it was made.

A decision is a number below a bound, and 0 is always the calm choice: the life that runs goes on,
no fault strikes. Decisions of different kinds (``schedule``, ``faults``, ``workload``,
``reads``, ``schemas``) come from random streams of their own, so that a fault more does not change
the whole schedule. A tape is kept as the decisions of each kind; played again, it makes the same
run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol

#: A recording says what it was made for; another version of the simulator decides other things.
VERSION = 1

SCHEDULE, FAULTS, WORKLOAD, READS = "schedule", "faults", "workload", "reads"
SCHEMAS = "schemas"
KINDS = (SCHEDULE, FAULTS, WORKLOAD, READS, SCHEMAS)

#: Chooses below a bound.
Choose = Callable[[Random, int], int]


class Tape:
    """Decides, from a seed or from decisions that were recorded.

    Args:
        seed: the number that everything comes from.
        recorded: for each kind the values to decide; past their end everything is calm. A value
            that its bound does not allow any more becomes the largest that it allows.
    """

    def __init__(
        self,
        seed: int | str = 0,
        recorded: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.seed = seed
        #: What was decided, by kind.
        self._drawn: dict[str, list[int]] = {kind: [] for kind in KINDS}
        self._recorded = recorded
        self._random = {kind: Random(f"{seed}:{kind}") for kind in KINDS}

    def draw(self, kind: str, label: str, bound: int, choose: Choose = Random.randrange) -> int:
        """A number from 0 to ``bound - 1``; ``choose`` says how, where it comes from the seed.

        ``label`` says to a reader of the code what about.
        """
        if bound <= 1:
            return 0
        drawn = self._drawn[kind]
        if self._recorded is not None:
            values, at = self._recorded.get(kind, ()), len(drawn)
            value = min(values[at], bound - 1) if at < len(values) else 0
        else:
            value = choose(self._random[kind], bound)
        drawn.append(value)
        return value

    @property
    def values(self) -> dict[str, list[int]]:
        """What was decided, without the calm end of each kind."""
        found = {}
        for kind, drawn in self._drawn.items():
            values = list(drawn)
            while values and not values[-1]:
                values.pop()
            found[kind] = values
        return found


def odds(chance: float) -> Choose:
    """Anything but the calm choice with a chance of so much."""

    def choose(random: Random, bound: int) -> int:
        return random.randrange(1, bound) if random.random() < chance else 0

    return choose


class Named(Protocol):
    """One of those that can go on."""

    @property
    def name(self) -> str: ...


#: How one of those is chosen that can go on.
Search = Callable[[Sequence[Named]], Choose]


_mostly_the_same = odds(0.3)


def random_walk(able: Sequence[Named]) -> Choose:
    """Mostly who goes on already."""
    return _mostly_the_same


class Priorities:
    """Who has the highest priority goes on: PCT of Burckhardt et al.

    (*A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs*, 2010.) Priorities are
    random. At ``depth - 1`` steps, random below ``horizon``, who would go on falls behind all
    others. What takes ``depth`` choices to go wrong is found with a chance of at least
    one in (lives times ``horizon ** (depth - 1)``).
    """

    def __init__(self, horizon: int, step: Callable[[], int], depth: int = 3) -> None:
        self._horizon = horizon
        self._step = step
        self._depth = depth
        #: The steps at which somebody falls behind, the next one last.
        self._changes: list[int] | None = None
        self._of: dict[str, float] = {}

    def __call__(self, able: Sequence[Named]) -> Choose:
        def choose(random: Random, bound: int) -> int:
            names = [one.name for one in able]
            if self._changes is None:
                some = (random.randrange(self._horizon) for _ in range(self._depth - 1))
                self._changes = sorted(some, reverse=True)
            for name in names:
                if name not in self._of:
                    self._of[name] = random.random()
            while self._changes and self._changes[-1] <= self._step():
                self._changes.pop()
                first = max(names, key=self._of.__getitem__)
                self._of[first] = min(self._of.values()) - 1
            return max(range(bound), key=lambda at: self._of[names[at]])

        return choose
