"""A drain of so many commands that no checker could hold them: its facts are counted and summed.

The commands are CDNOW purchases, again and again, by new customers each time (``arrivals.py``);
each is a new order and so a stream of its own. They lie in the topic when one handler and one
projector start; an observer looks meanwhile (``drains.py``). The checkers of other drains hold each
command and each commit in memory, some kilobytes of each, which a million of them would fill. So it
is asked here what MongoDB can count: that there are as many orders as commands, in the view itself
and in its sums of the months, which are right to the cent; that no commit was ignored; and that
each partition had one owner from its first record to its last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct

from labkit.errors import TimedOut
from labkit.experiments.bench.filling import FILL_SECONDS
from labkit.experiments.bench.preloaded import NEW_ORDERS, Look, fast, watch
from labkit.experiments.load import arrivals
from labkit.experiments.results import versions
from labkit.lab import Lab
from labkit.messages import Envelope, encode
from labkit.services.orders import OrderPlaced, OrdersSeen, Revenue, place

CONTEXT = "orders"


class Bulk(Struct):
    """One drain of ``commands``; ``wrong``: what is not as it must be, in words; empty: nothing."""

    commands: int
    looks: list[Look]
    wrong: list[str]
    versions: dict[str, str]

    @property
    def seconds(self) -> float:
        """From the last look at which nothing was committed to the first at which all is visible.

        Raises ``TimedOut`` where not all is. A clock that starts at the first visible ones would
        favour short runs: handlers are ahead of it, and for a larger part of their work.
        """
        until = passing(self.looks, self.commands)
        return (until - max(look.at for look in self.looks if not look.committed)) / 1e9

    @property
    def rate(self) -> float:
        """Commands a second; NaN where something is wrong."""
        return math.nan if self.wrong else self.commands / self.seconds

    def row(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "commands": self.commands,
            "commands_per_second": round(self.rate, 1) if not self.wrong else None,
            "seconds": round(self.seconds, 3) if not self.wrong else None,
            "wrong": self.wrong,
        }


def drain(
    name: str, client: str, count: int, progress: Callable[[int, int], None], lap: int | None = None
) -> Bulk:
    """One run, with topics and a database of its own, gone afterwards.

    ``lap``: so many of the purchases, again and again; ``None``: all of them. Raises ``TimedOut``
    where nothing moves any more, ``StackError`` where servers or workers fail.
    """
    with Lab(name, client=client, services=[CONTEXT], start=False) as lab:
        try:
            with fast(lab) as sending:
                cents = preload(sending, count, lap)
            looks, _ = watch(lab, 1, count, progress)
            trouble = wrong(lab, count, cents)
            if looks[-1].visible < count:
                trouble.append(f"{looks[-1].visible:,} of {count:,} commands became visible")
            return Bulk(count, looks, trouble, versions(lab.server_versions(), client))
        finally:
            lab.drop()


def preload(lab: Lab, count: int, lap: int | None) -> int:
    """So many commands into the topic; what their orders come to, in cents."""
    topic, cents = lab.topic_name(f"{CONTEXT}.commands"), 0
    sender = lab.broker.sender()
    try:
        for number, command in enumerate(arrivals.commands(NEW_ORDERS, count, lap)):
            now = time.monotonic_ns()
            value = encode(Envelope(f"c{number}", command, intended=now, sent=now))
            sender.send(topic, command.stream.encode(), value)
            (placed,) = place(None, command)  # type: ignore[arg-type]
            assert isinstance(placed, OrderPlaced)
            cents += placed.cents
        sender.flush(FILL_SECONDS)
    finally:
        sender.close()
    return cents


def wrong(lab: Lab, count: int, cents: int) -> list[str]:
    """What is not as it must be, by the store and by the workers, which still run."""
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
    """The looks at which each tenth of the commands became visible.

    A tenth that passed between two looks has the one after it.
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
    """When so many commands were visible, in monotonic ns: on a line between the looks around."""
    before = looks[0]
    for look in looks:
        if look.visible >= count:
            share = (count - before.visible) / max(1, look.visible - before.visible)
            return before.at + share * (look.at - before.at)
        before = look
    raise TimedOut(f"{before.visible:,} commands became visible, not {count:,.0f}")


def rates_of_tenths(looks: Sequence[Look], total: int) -> list[float]:
    """Commands a second while each tenth of them became visible; the first has the start in it."""
    at = [passing(looks, total * tenth / 10) for tenth in range(11)]
    return [
        round(total / 10 / max(1e-9, (until - since) / 1e9), 1) for since, until in pairwise(at)
    ]
