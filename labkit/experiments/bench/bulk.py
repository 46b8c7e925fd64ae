"""A drain of too many commands for the checkers: MongoDB counts and sums its results instead.

The commands are the CDNOW purchases, repeated with new customers each time (``arrivals.py``); each
places a new order, which is a stream. They are in the topic when one handler and one projector
start, and an observer counts meanwhile (``drain.py``). The checkers of other drains keep each
command and each commit in memory, some kilobytes for each, which is too much for a million. The
checks here are: the view holds as many orders as there are commands, and so do its monthly sums,
which are right to the cent; no commit was ignored; each partition had one owner throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct

from labkit.errors import TimedOut
from labkit.experiments.bench.drain import on_fast_client, watch
from labkit.experiments.bench.job import event_of
from labkit.experiments.bench.observer import Look
from labkit.experiments.bench.preload import NEW_ORDERS, preload
from labkit.experiments.load import arrivals
from labkit.experiments.results import versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.services.orders import OrdersSeen, PlaceOrder, Revenue

CONTEXT = "orders"


class Bulk(Struct):
    """One drain of ``commands``; ``wrong`` describes what failed, and is empty if nothing did."""

    commands: int
    looks: list[Look]
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
        return math.nan if self.wrong else self.commands / self.seconds

    def row(self) -> dict[str, Any]:
        return {
            "commands": self.commands,
            "commands_per_second": round(self.rate, 1) if not self.wrong else None,
            "seconds": round(self.seconds, 3) if not self.wrong else None,
            "wrong": self.wrong,
        }


def drain(
    name: str, client: str, count: int, progress: Callable[[int, int], None], lap: int | None = None
) -> Bulk:
    """Run it once, with its own topics and database, which are dropped afterwards.

    The first ``lap`` purchases are repeated; ``None``: all of them are. Raises ``TimedOut`` where
    nothing moves any more, ``StackError`` where servers or workers fail.
    """
    with scratch_run(name, client=client, services=[CONTEXT], start=False) as lab:
        with on_fast_client(lab) as sending:
            cents = _preload(sending, count, lap)
        looks, _ = watch(lab, 1, count, progress)
        trouble = wrong(lab, count, cents)
        if looks[-1].visible < count:
            trouble.append(f"{looks[-1].visible:,} of {count:,} commands became visible")
        return Bulk(count, looks, trouble, versions(lab.server_versions(), client))


def _preload(lab: Lab, count: int, lap: int | None) -> int:
    """Fill the topic; returns the total of the orders in cents."""
    cents = 0
    placing = enumerate(arrivals.commands(NEW_ORDERS, count, lap))
    for sent in preload(lab, CONTEXT, ((f"c{number}", command) for number, command in placing)):
        assert isinstance(sent.command, PlaceOrder)
        cents += event_of(sent.command).cents
    return cents


def wrong(lab: Lab, count: int, cents: int) -> list[str]:
    """Every check that failed; the workers must still run."""
    found = []
    seen, months = lab.ask(OrdersSeen()), lab.ask(Revenue())
    summed = sum(month["orders"] for month in months), sum(month["cents"] for month in months)
    if (seen, *summed) != (count, count, cents):
        found.append(
            f"the view holds {seen:,} orders, and in its months {summed[0]:,} with "
            f"{summed[1]:,} cents, not {count:,} with {cents:,}"
        )
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


def tenths(looks: Sequence[Look], total: int) -> list[list[Look]]:
    """The looks during which each tenth of the commands became visible.

    A tenth that passed between two looks has the later one.
    """
    found: list[list[Look]] = [[] for _ in range(10)]
    for look in looks:
        if look.visible > 0:
            found[min(9, (look.visible - 1) * 10 // total)].append(look)
    later = looks[-1]
    for tenth in reversed(found):
        if not tenth:
            tenth.append(later)
        later = tenth[0]
    return found


def passing(looks: Sequence[Look], count: float) -> float:
    """When ``count`` commands were visible, in monotonic ns, interpolated between two looks."""
    before = looks[0]
    for look in looks:
        if look.visible >= count:
            share = (count - before.visible) / max(1, look.visible - before.visible)
            return before.at + share * (look.at - before.at)
        before = look
    raise TimedOut(f"{before.visible:,} commands became visible, not {count:,.0f}")


def rates_of_tenths(looks: Sequence[Look], total: int) -> list[float]:
    """Commands per second of each tenth, as it became visible; the first includes the start."""
    at = [passing(looks, total * tenth / 10) for tenth in range(11)]
    return [
        round(total / 10 / max(1e-9, (until - since) / 1e9), 1) for since, until in pairwise(at)
    ]
