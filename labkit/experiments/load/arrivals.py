"""When an open loop sends its commands, and to whom: pure, and the same for the same seed.

Patterns, all with the same mean rate:

=========  =========================================================================
constant   one command each 1/rate seconds
poisson    a Poisson process: gaps are exponential, as of many clients who do not know each other
burst      on and off: each second all commands come in its first quarter, at four times the
           rate, as a Poisson process; then nothing
cdnow      the CDNOW purchases in the order of their days, and of the lines within a day. A day has
           no time of day: its purchases are spread evenly over it. The days, with all that happened
           on few or many of them, are then compressed to the asked mean rate, so the load rises and
           falls as the shop's did: at first there are four times as many purchases a day as at the
           end. Whoever asks for more than 69,659 gets the trace again
=========  =========================================================================

Keys:

=====  ============================================================================
new    each command is a new order (``PlaceOrder``), with the customer, day, pieces and cents of the
       next CDNOW purchase; after the last comes the first again, by customers of their own, so that
       as many of those who order are new customers in a long load as in a short one
zipf   deposits to ``accounts`` accounts: account number k is drawn in proportion to 1/k**skew
real   deposits to the CDNOW customers, in the order of their purchases: one of them bought 217
       times, half of them once
=====  ============================================================================
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from labkit.errors import UsageError
from labkit.experiments import cdnow
from labkit.messages import MAX_ID, Command
from labkit.services.bank import Deposit, OpenAccount
from labkit.services.orders import PlaceOrder

Pattern = Literal["constant", "poisson", "burst", "cdnow"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
Keys = Literal["new", "zipf", "real"]
KEYS: tuple[Keys, ...] = get_args(Keys)

#: Of a burst: seconds from one to the next, and the share of them in which commands come.
PERIOD_SECONDS = 1.0
DUTY = 0.25
#: A plan of more is a mistake: its commands are made before they are sent.
MOST_COMMANDS = 5_000_000


class Plan(Struct, frozen=True, kw_only=True):
    """What an open loop offers.

    Args:
        pattern, keys: see above.
        rate: commands a second, in the mean.
        seconds: that count; ``warm_up`` seconds come before, and do not.
        skew, accounts: of ``keys="zipf"``.
        payload: bytes of ballast that each command carries, and its commit again, at most
            ``messages.MAX_ID``.
    """

    pattern: Pattern = "poisson"
    rate: float
    seconds: float
    warm_up: float = 5.0
    keys: Keys = "new"
    skew: float = 1.0
    accounts: int = 1_000
    seed: int = 1
    payload: int = 0

    def check(self) -> Plan:
        """The same plan; raises ``UsageError`` that names what cannot be."""
        for name, known in (("pattern", PATTERNS), ("keys", KEYS)):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
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
            if not least <= (value := getattr(self, name)) <= most:
                raise UsageError(f"{name} must be from {least:g} to {most:g}, got {value:g}")
        if self.rate * self.total > MOST_COMMANDS:
            raise UsageError(
                f"{self.rate:g} commands a second for {self.total:g} s are too many; at most "
                f"{MOST_COMMANDS:,} are made"
            )
        return self

    @property
    def total(self) -> float:
        """Seconds, with the warm-up."""
        return self.warm_up + self.seconds

    @property
    def service(self) -> str:
        """The service that takes these commands."""
        return "orders" if self.keys == "new" else "bank"

    def at(self, rate: float) -> Plan:
        """The same at another rate."""
        return structs.replace(self, rate=rate)


def instants(plan: Plan) -> NDArray[np.int64]:
    """When each command is to be sent: nanoseconds from the beginning, ascending."""
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
    return (seconds * 1e9).astype(np.int64)


def _poisson(rng: np.random.Generator, rate: float, seconds: float) -> NDArray[np.float64]:
    """How many there are is drawn first; given that, each instant is as likely as any other."""
    return np.sort(rng.uniform(0.0, seconds, max(1, rng.poisson(rate * seconds))))


def _trace(count: int, seconds: float) -> NDArray[np.float64]:
    """The first ``count`` purchases, days compressed so that the next one would come at the end."""
    days = np.array([np.datetime64(purchase.day) for purchase in _purchases()])
    day = (days - days[0]).astype(np.int64)
    first, a_day = np.searchsorted(day, day), np.bincount(day)[day]
    place = day + (np.arange(len(day)) - first) / a_day
    laps, rest = divmod(count, len(place))
    long = int(day[-1]) + 1
    places = np.concatenate([place + lap * long for lap in range(laps + 1)])
    end = place[rest] + laps * long
    found: NDArray[np.float64] = places[:count] * (seconds / end)
    return found


def commands(plan: Plan, count: int, lap: int | None = None) -> Iterator[Command]:
    """The first ``count`` commands of a plan, in their order.

    After ``lap`` purchases comes the first one again; without it, after all of them.
    """
    match plan.keys:
        case "new":
            for number, (time, bought) in zip(range(count), _again(lap), strict=False):
                customer = f"{bought.customer_id}-{time}" if time else bought.customer_id
                yield structs.replace(bought, order_id=f"o{number}", customer_id=customer)
        case "zipf":
            weights = np.arange(1, plan.accounts + 1) ** -plan.skew
            rng = np.random.default_rng([plan.seed, 2])
            drawn = rng.choice(plan.accounts, count, p=weights / weights.sum())
            for number in drawn.tolist():
                yield Deposit(f"a{number + 1}", 1)
        case "real":
            for _, (_, bought) in zip(range(count), _again(lap), strict=False):
                yield Deposit(bought.customer_id, max(1, bought.cents))


def opening(plan: Plan, count: int) -> list[Command]:
    """What must be there before the first of ``count`` commands: the accounts, without ballast."""
    match plan.keys:
        case "zipf":
            return [OpenAccount(f"a{number + 1}", "load") for number in range(plan.accounts)]
        case "real":
            first = _purchases()[:count]
            return [OpenAccount(c, "load") for c in dict.fromkeys(p.customer_id for p in first)]
    return []


def ballast(plan: Plan) -> str:
    """It rides in the field ``correlation``, which a commit brings back."""
    return "x" * plan.payload


@functools.cache
def _purchases() -> list[PlaceOrder]:
    """All of them, in the order of their days; the file is in the order of the customers."""
    return sorted(cdnow.commands(), key=lambda purchase: purchase.day)


def _again(lap: int | None) -> Iterator[tuple[int, PlaceOrder]]:
    """The purchases time and again, each with how often it came before."""
    for time in itertools.count():
        for bought in _purchases()[:lap]:
            yield time, bought


def shape(plan: Plan) -> dict[str, Any]:
    """The plan as a result says it: what it does not use is left out."""
    found = structs.asdict(plan)
    if plan.keys != "zipf":
        del found["skew"], found["accounts"]
    return found


__all__ = [
    "DUTY",
    "KEYS",
    "PATTERNS",
    "PERIOD_SECONDS",
    "Keys",
    "Pattern",
    "Plan",
    "ballast",
    "commands",
    "instants",
    "opening",
    "shape",
]
