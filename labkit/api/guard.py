"""Who comes in when too many come at once: one object that a request meets before anything is done.

What is turned away is turned away before its body is read, in the loop of the server: it waits for
no thread, claims no idempotency key, and asks neither Kafka nor MongoDB.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Depends, Request

from labkit.api import openapi
from labkit.api.age import Ages
from labkit.api.breaker import Breaker
from labkit.api.in_flight import NORMAL, InFlight, Slot
from labkit.api.metrics import Metrics
from labkit.api.problems import RETRY_SECONDS, Problem
from labkit.api.protection import Protection
from labkit.api.rates import Rates
from labkit.api.request_options import lines
from labkit.errors import LabkitError
from labkit.messages import Token
from labkit.ports.clock import Clock

if TYPE_CHECKING:
    from labkit.read.queries import Queries

#: Requests that are worked on at once; each may wait for an answer, or for freshness.
THREADS = 200
#: Commands get this share of the threads: reads come before them.
COMMAND_SHARE = 0.8
#: RFC 9218: a dictionary whose member ``u`` is from 0 to 7; what is not is ignored.
_URGENCY = re.compile(r"(?:^|,)[ \t]*u=([0-7])[ \t]*(?=;|,|$)")
_STRICT = re.compile(r'(?:^|[,;\s])handling\s*=\s*"?strict\b', re.IGNORECASE)

T = TypeVar("T")


class Guard:
    """The protection of one API, at work."""

    def __init__(
        self, settings: Protection, queries: Queries, metrics: Metrics, clock: Clock
    ) -> None:
        self.settings = settings.check()
        self._metrics = metrics
        self._rates = Rates(settings, clock)
        self.in_flight = InFlight(settings.in_flight, settings.reserve, clock)
        self._ages = Ages(queries.reached, clock)
        self._requests = 0  # in the loop of the server alone
        self._breakers = {
            server: Breaker(
                server, settings.breaker, settings.breaker_reset, clock, self._counts(mechanism)
            )
            for server, mechanism in (("Kafka", "breaker_kafka"), ("MongoDB", "breaker_mongodb"))
            if settings.breaker
        }

    # --- what the routes need

    @property
    def responses(self) -> openapi.Responses:
        """What a route may answer besides, for OpenAPI."""
        return openapi.problems(429) if self._rates else {}

    @property
    def commands(self) -> list[Any]:
        """The dependencies of a route that sends a command."""
        on = self._rates or self._breakers or self.settings.in_flight or self.settings.degrade
        return [Depends(self._command)] if on else []

    @property
    def reads(self) -> list[Any]:
        """Those of a route that reads."""
        return [Depends(self._read)] if self._rates or self.settings.in_flight else []

    @property
    def streams(self) -> list[Any]:
        """Those of a route that follows an answer: it lasts, and has a bound of its own."""
        return [Depends(self._stream)] if self._rates else []

    async def _command(self, request: Request) -> AsyncIterator[None]:
        self._check_rates(request)
        if (kafka := self._breakers.get("Kafka")) is not None:
            kafka.check()
        slot = self._slot(request)
        request.state.slot = slot
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            slot.leave()

    async def _read(self, request: Request) -> AsyncIterator[None]:
        self._check_rates(request)
        if self.settings.in_flight and self._requests >= THREADS:
            self._metrics.refused("threads")
            raise _overloaded(f"{THREADS} requests are being worked on", RETRY_SECONDS)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _stream(self, request: Request) -> None:
        self._check_rates(request)

    def _check_rates(self, request: Request) -> None:
        address = request.client.host if request.client else ""
        if (found := self._rates.take(address)) is None:
            return
        name, item, again = found
        self._metrics.refused(name)
        who = "each client" if name == "limit_client" else "all clients together"
        detail = f"{who} may send {item}; there is room in {again} s"
        raise Problem("limited", detail, {"Retry-After": str(again)})

    def _slot(self, request: Request) -> Slot:
        urgency = urgency_of(request)
        if self.settings.in_flight and self._requests >= COMMAND_SHARE * THREADS:
            self._metrics.refused("threads")
            raise _overloaded(f"{self._requests} requests are being worked on", RETRY_SECONDS)
        if (slot := self.in_flight.enter(urgency)) is None:
            self._metrics.refused("in_flight")
            raise _overloaded(
                f"{len(self.in_flight):,} commands wait for their answers, and one of urgency "
                f"{urgency} comes in below {self.in_flight.room(urgency):,}",
                self.in_flight.retry_after(urgency),
            )
        return slot

    # --- on the way

    def kafka(self, work: Callable[[], T]) -> T:
        """Do what needs Kafka; raises a problem if its breaker is open."""
        found = self._breakers.get("Kafka")
        return found.call(work) if found else work()

    def mongodb(self, work: Callable[[], T]) -> T:
        """Do what needs MongoDB; raises a problem if its breaker is open."""
        found = self._breakers.get("MongoDB")
        return found.call(work) if found else work()

    def sent(self, request: Request, token: Token) -> None:
        """A command of this request is acknowledged."""
        if (slot := getattr(request.state, "slot", None)) is not None:
            slot.sent(token)
            self._mark(token.service, token.partition, token.offset)

    def heard(self, service: str, partition: int, offset: int) -> None:
        """The log has an answer to this command, whoever sent it."""
        self.in_flight.heard(service, partition, offset)
        self._mark(service, partition, offset)

    def _mark(self, service: str, partition: int, offset: int) -> None:
        if self.settings.degrade:
            self._ages.mark(service, partition, offset)

    # --- degradation

    def age(self, services: Iterable[str], anew: bool = False) -> float | None:
        """How many seconds the views of these services are behind, at least; ``None``: that is not
        looked at. ``anew``: others may have looked a moment ago, and this is not enough."""
        if not self.settings.degrade:
            return None
        return max((self._ages.of(service, anew) for service in services), default=0.0)

    def may_wait(self, request: Request, service: str) -> bool:
        """Whether the sender of a command, which is acknowledged, may wait for the answer."""
        try:
            age = self.age([service])
        except LabkitError:  # the command is safe, whatever the views do
            age = math.inf
        return not self.gives_way(request, age, "command")

    def gives_way(self, request: Request, age: float | None, what: str) -> bool:
        """Whether a request that wants to wait must not; ``what``: ``query`` or ``command``.

        ``Prefer: handling=strict`` (RFC 7240) waits all the same.
        """
        if age is None or age <= self.settings.degrade or _STRICT.search(lines(request, "prefer")):
            return False
        self._metrics.degraded(what)
        return True

    def _counts(self, mechanism: str) -> Callable[[], None]:
        return lambda: self._metrics.refused(mechanism)


def urgency_of(request: Request) -> int:
    """What the header ``Priority`` says, and 3 if it says nothing that is understood."""
    found = _URGENCY.findall(lines(request, "priority"))
    return int(found[-1]) if found else NORMAL


def _overloaded(why: str, again: int) -> Problem:
    return Problem("overloaded", why, {"Retry-After": str(again)})
