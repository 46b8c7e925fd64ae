"""A drain of too many commands for the checkers: MongoDB counts and sums its results instead.

The commands are in the topic when one handler and one projector start, and an observer counts
meanwhile (``drain.py``). The checkers of other drains keep each command and each commit in memory,
some kilobytes for each, which is too much for a million. The checks here are: the view holds each
stream, with the totals that the commands lead to (``totals.py``); no commit was ignored; each
partition had one owner throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

from msgspec import Struct

from labkit.errors import TimedOut
from labkit.experiments.bench.drain import watch
from labkit.experiments.bench.observer import Observation
from labkit.experiments.bench.preload import preload
from labkit.experiments.bench.subject import Subject
from labkit.experiments.bench.totals import Totals, expected, shown
from labkit.experiments.intervals import quotient
from labkit.experiments.processes import fast_client, on_fast_client
from labkit.experiments.results import versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.messages import Command

#: Of the workload; the bench has no option for it.
SEED = 1


class Bulk(Struct):
    """One drain of ``commands``; ``wrong`` describes what failed, and is empty if nothing did."""

    commands: int
    looks: list[Observation]
    wrong: list[str]
    versions: dict[str, str]

    @property
    def seconds(self) -> float:
        """From the last look before the first commit to the instant at which all is visible.

        A clock that starts at the first visible command would favour short runs, in which the
        handler is ahead of it for a larger share of the work. Raises ``TimedOut`` if not all
        commands became visible.
        """
        until = passing(self.looks, self.commands)
        return (until - max(look.at for look in self.looks if not look.committed)) / 1e9

    @property
    def rate(self) -> float:
        """Commands per second; NaN if a check failed."""
        return math.nan if self.wrong else quotient(self.commands, self.seconds)

    def row(self) -> dict[str, Any]:
        return {
            "commands": self.commands,
            "commands_per_second": round(self.rate, 1) if not self.wrong else None,
            "seconds": round(self.seconds, 3) if not self.wrong else None,
            "wrong": self.wrong,
        }


def drain(
    name: str,
    client: str,
    measured: Subject,
    count: int,
    progress: Callable[[int, int], None],
    lap: int | None = None,
) -> Bulk:
    """Run it once, with its own topics and database, which are dropped afterwards.

    A workload that repeats a data set repeats the first ``lap`` entries; ``None``: all of them.
    Raises ``TimedOut`` where nothing moves any more, ``StackError`` where servers or workers fail.
    """

    def commands() -> Iterator[Command]:
        return islice(measured.all(SEED, lap=lap), count)

    with scratch_run(name, client=client, services=[measured.service], start=False) as lab:
        with on_fast_client(lab) as sending:
            named = ((f"c{number}", command) for number, command in enumerate(commands()))
            for _ in preload(sending, measured.name, named):
                pass
        looks, _ = watch(lab, 1, count, progress)
        trouble = wrong(lab, measured, expected(measured.service, commands, count))
        if looks[-1].visible < count:
            trouble.append(f"{looks[-1].visible:,} of {count:,} commands became visible")
        return Bulk(count, looks, trouble, versions(lab.server_versions(), client, fast_client()))


def wrong(lab: Lab, measured: Subject, right: Totals) -> list[str]:
    """Every check that failed; the workers must still run."""
    found = []
    seen = shown(lab, measured.service, list(right.sums))
    if seen != right:
        found.append(f"the view holds {seen}, not {right}")
    if ignored := lab.ignored_commits():
        found.append(f"{ignored:,} commits were ignored")
    found += [
        f"the {worker.role} was started {1 + worker.restarts} times"
        for worker in lab.workers()
        if worker.restarts
    ]
    again = sorted(c.id for c in lab.positions.checkpoints() if c.epoch > 1)
    if again:
        found.append(f"{', '.join(again)} had more than one owner")
    return found


def tenths(looks: Sequence[Observation], total: int) -> list[list[Observation]]:
    """The looks during which each tenth of the commands became visible.

    A tenth that passed between two looks has the later one.
    """
    found: list[list[Observation]] = [[] for _ in range(10)]
    for look in looks:
        if look.visible > 0:
            found[min(9, (look.visible - 1) * 10 // total)].append(look)
    later = looks[-1]
    for tenth in reversed(found):
        if not tenth:
            tenth.append(later)
        later = tenth[0]
    return found


def passing(looks: Sequence[Observation], count: float) -> float:
    """When ``count`` commands were visible, in monotonic ns, interpolated between two looks."""
    before = looks[0]
    for look in looks:
        if look.visible >= count:
            share = (count - before.visible) / max(1, look.visible - before.visible)
            return before.at + share * (look.at - before.at)
        before = look
    raise TimedOut(
        f"{before.visible:,} commands became visible, not {count:,.0f}; see the logs of the "
        "projectors, and run it again"
    )


def rates_of_tenths(looks: Sequence[Observation], total: int) -> list[float]:
    """Commands per second of each tenth, as it became visible; the first includes the start."""
    at = [passing(looks, total * tenth / 10) for tenth in range(11)]
    return [
        round(total / 10 / max(1e-9, (until - since) / 1e9), 1) for since, until in pairwise(at)
    ]
