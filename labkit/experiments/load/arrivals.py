"""The timetable and the commands of an open loop: pure, and the same for the same seed.

Patterns, all with the same mean rate:

=========  =========================================================================
constant   one command every 1/rate seconds
poisson    a Poisson process: gaps are exponential, as with many independent clients
burst      on and off: in the first quarter of each second a Poisson process at four times the
           rate, then nothing
cdnow      the CDNOW purchases by day, and by line within a day. Purchases of one day are spread
           evenly over it. Time is then compressed to the mean rate, so the load rises and falls as
           the shop's did: at first there are four times as many purchases a day as at the end.
           After 69,659 commands the trace repeats
days       all days of the CDNOW purchases within the time of the load, whatever its rate: the
           purchases are thinned, and their days compressed. It begins at twice the mean rate,
           rises to more than three times, and falls to half to three quarters of it
peak       a Poisson process with a peak at five times the rate in the second quarter of the time
=========  =========================================================================

The commands are a workload of a service (``Service(..., workload=...)``), which ``keys`` names; for
those of the built-in services see ``labkit/services/*/workload.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from random import Random
from typing import Any, Literal, get_args

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from labkit.errors import UsageError
from labkit.messages import MAX_ID, Command
from labkit.run import references
from labkit.service import Service, Workload
from labkit.services import MEASURED, cdnow
from labkit.stack import limits

Pattern = Literal["constant", "poisson", "burst", "cdnow", "days", "peak"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

#: A burst: seconds from one to the next, and the share of them in which commands are sent.
PERIOD_SECONDS = 1.0
DUTY = 0.25
#: A peak: how much higher its rate is, and from which share of the time until which.
PEAK, PEAK_FROM, PEAK_UNTIL = 5.0, 0.25, 0.5
#: Options of workloads that a plan may give.
OPTIONS = ("skew", "accounts")
#: Bytes of memory for each command, over all processes of a load: it is made before it is sent, and
#: kept with its commit until the checkers are done (measured: 7,500). Copies of its payload.
COMMAND_BYTES, PAYLOADS = 8_000, 4
#: A load takes at most this share of the free memory.
MEMORY_SHARE = 0.5


class Plan(Struct, frozen=True, kw_only=True):
    """What an open loop offers.

    Args:
        pattern: see above.
        services: names or references (``module:ATTRIBUTE``) of services to choose from.
        keys: the name of a workload; the first of these services that has it is loaded. Without a
            name, the first workload of the first service.
        rate: mean commands a second.
        seconds: the measured time; ``warm_up`` seconds come before it.
        skew, accounts: options of the workload, if it takes them; ``None``: its own default.
        payload: additional bytes in each command and its commit, at most ``messages.MAX_ID``.
    """

    pattern: Pattern = "poisson"
    rate: float
    seconds: float
    warm_up: float = 5.0
    services: tuple[str, ...] = MEASURED
    keys: str = ""
    skew: float | None = None
    accounts: int | None = None
    seed: int = 1
    payload: int = 0

    def check(self) -> Plan:
        """The same plan; raises ``UsageError`` that names what cannot be."""
        if self.pattern not in PATTERNS:
            raise UsageError(f"pattern must be one of {', '.join(PATTERNS)}, got {self.pattern!r}")
        bounds: dict[str, tuple[float, float]] = {
            "rate": (0.1, 1_000_000),
            "seconds": (0.1, 3_600),
            "warm_up": (0, 3_600),
            "skew": (0, 10),
            "accounts": (1, 100_000),
            "seed": (0, 2**63 - 1),
            "payload": (0, MAX_ID),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} must be from {least:g} to {most:g}, got {value:g}")
        bytes, free = COMMAND_BYTES + PAYLOADS * self.payload, limits.free_memory()
        most = int(MEMORY_SHARE * free / bytes)
        if self.rate * self.total > most:
            raise UsageError(
                f"{self.rate:g} commands a second for {self.total:g} s are too many: each takes "
                f"about {bytes:,} bytes until it is checked, and {free / 1e9:.1f} GB are free, so "
                f"at most {most:,} fit; give a lower --rate or fewer --seconds"
            )
        if not (service := self.service).views:
            raise UsageError(
                f"service {service.name!r} has no views; a load measures when they show a command"
            )
        takes = _options(self.workload.commands)
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in takes:
                raise UsageError(
                    f"workload {self.named!r} of service {service.name!r} takes no {name}; it "
                    f"takes {', '.join(takes) or 'no options'}"
                )
        return self

    @property
    def total(self) -> float:
        """Seconds, with the warm-up."""
        return self.warm_up + self.seconds

    @property
    def service(self) -> Service:
        """The service that is loaded; raises ``UsageError``."""
        every = [references.service(service) for service in self.services]
        for service in every:
            if not service.workloads:
                raise UsageError(
                    f"service {service.name!r} has no workload; verify and load need one: "
                    "Service(..., workload=...)"
                )
            if self.keys in ("", *service.workloads):
                return service
        known = [f"{name} ({s.name})" for s in every for name in s.workloads]
        raise UsageError(f"keys must be one of {', '.join(known)}, got {self.keys!r}")

    @property
    def named(self) -> str:
        """The name of the workload."""
        return self.keys or next(iter(self.service.workloads))

    @property
    def workload(self) -> Workload:
        return self.service.workloads[self.named]

    def at(self, rate: float) -> Plan:
        """The same plan at another rate."""
        return structs.replace(self, rate=rate)


def instants(plan: Plan) -> NDArray[np.int64]:
    """When to send each command: nanoseconds from the start, ascending."""
    rng = np.random.default_rng([plan.seed, 1])
    expected = max(1, round(plan.rate * plan.total))
    match plan.pattern:
        case "constant":
            seconds = np.arange(expected) / plan.rate
        case "poisson":
            seconds = _poisson(rng, plan.rate, plan.total)
        case "burst":
            lit = DUTY * PERIOD_SECONDS
            within = _poisson(rng, plan.rate / DUTY, plan.total * DUTY)
            seconds = np.floor(within / lit) * PERIOD_SECONDS + within % lit
        case "cdnow":
            seconds = _trace(expected, plan.total)
        case "days":
            place, days = _days()
            each = np.arange(expected) * (len(place) / expected)
            seconds = np.interp(each, np.arange(len(place)), place) * (plan.total / days)
        case "peak":
            seconds = _peak(_poisson(rng, plan.rate, plan.total) / plan.total) * plan.total
    return (seconds * 1e9).astype(np.int64)


def _poisson(rng: np.random.Generator, rate: float, seconds: float) -> NDArray[np.float64]:
    """Draw the number of arrivals; given that, their instants are uniform."""
    return np.sort(rng.uniform(0.0, seconds, max(1, rng.poisson(rate * seconds))))


def _trace(count: int, seconds: float) -> NDArray[np.float64]:
    """The first ``count`` purchases, compressed so that the next one would come at the end."""
    place, long = _days()
    laps, rest = divmod(count, len(place))
    places = np.concatenate([place + lap * long for lap in range(laps + 1)])
    end = place[rest] + laps * long
    found: NDArray[np.float64] = places[:count] * (seconds / end)
    return found


def _days() -> tuple[NDArray[np.float64], int]:
    """When each purchase is made, in days from the first day, and the number of days."""
    days = np.array([np.datetime64(purchase.day) for purchase in cdnow.by_day()])
    day = (days - days[0]).astype(np.int64)
    first, a_day = np.searchsorted(day, day), np.bincount(day)[day]
    return day + (np.arange(len(day)) - first) / a_day, int(day[-1]) + 1


def _peak(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """At which share of the time so many of the commands are sent."""
    at = np.array([0.0, PEAK_FROM, PEAK_UNTIL, 1.0])
    sent = np.cumsum([0.0, *np.diff(at) * (1.0, PEAK, 1.0)])
    found: NDArray[np.float64] = np.interp(shares, sent / sent[-1], at)
    return found


def commands(plan: Plan, count: int, lap: int | None = None) -> Iterator[Command]:
    """The first ``count`` commands of a plan, in their order.

    Workloads that repeat a data set begin again after ``lap`` of its entries, or after all.
    """
    make = plan.workload.commands
    return islice(make(Random(plan.seed), **_given(plan, make, lap)), count)


def opening(plan: Plan, count: int) -> list[Command]:
    """What must be done before the first of ``count`` commands; it is not measured."""
    make = plan.workload.opening
    return list(make(Random(plan.seed), **_given(plan, make, count)))


def ballast(plan: Plan) -> str:
    """Bytes for the field ``correlation``, which the commit repeats."""
    return "x" * plan.payload


def _options(make: Callable[..., Iterable[Command]]) -> dict[str, Any]:
    """The options that a function of a workload takes, with their defaults."""
    parameters = list(inspect.signature(make).parameters.values())[1:]
    return {p.name: p.default for p in parameters}


def _given(plan: Plan, make: Callable[..., Iterable[Command]], lap: int | None) -> dict[str, Any]:
    asked = {"lap": lap} | {name: getattr(plan, name) for name in OPTIONS}
    takes = _options(make)
    return {name: value for name, value in asked.items() if value is not None and name in takes}


def shape(plan: Plan) -> dict[str, Any]:
    """The plan as a result says it: with the options that the workload takes, and no others."""
    found = structs.asdict(plan)
    takes = _options(plan.workload.commands)
    for name in ("services", *OPTIONS):
        value = found.pop(name)
        if name in takes:
            found[name] = takes[name] if value is None else value
    return found | {"service": plan.service.name, "keys": plan.named}


__all__ = [
    "DUTY",
    "PATTERNS",
    "PEAK",
    "PEAK_FROM",
    "PEAK_UNTIL",
    "PERIOD_SECONDS",
    "Pattern",
    "Plan",
    "ballast",
    "commands",
    "instants",
    "opening",
    "shape",
]
