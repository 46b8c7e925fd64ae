"""What Prometheus may ask: requests, commands by outcome, how far the workers are behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """The numbers of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "labkit_http_requests",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "labkit_http_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["method", "route"],
            registry=self.registry,
        )
        self._commands = Counter(
            "labkit_commands",
            "Commands sent, by what was known of them when their sender was answered.",
            ["command", "outcome"],
            registry=self.registry,
        )
        self._refused = Counter(
            "labkit_refused",
            "Requests that were turned away, by the mechanism of protection.",
            ["mechanism"],
            registry=self.registry,
        )
        self._degraded = Counter(
            "labkit_degraded",
            "Requests that were answered without the wait that they asked for.",
            ["what"],
            registry=self.registry,
        )
        self._lag = Gauge(
            "labkit_lag_offsets",
            "Offsets that the workers of a role are behind; markers count too.",
            ["role", "service"],
            registry=self.registry,
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def command(self, name: str, outcome: str) -> None:
        """One command was sent."""
        self._commands.labels(name, outcome).inc()

    def refused(self, mechanism: str) -> None:
        """One request was turned away."""
        self._refused.labels(mechanism).inc()

    def degraded(self, what: str) -> None:
        """One request was not let wait."""
        self._degraded.labels(what).inc()

    def text(self, lags: Mapping[tuple[str, str], int]) -> bytes:
        """All of it, in the text format."""
        for (role, service), lag in lags.items():
            self._lag.labels(role, service).set(lag)
        return generate_latest(self.registry)


class Measured:
    """Middleware: times each request. ASGI itself, so that streams flow through it."""

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics]) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - began
            self._metrics().request(_method(scope), _route(scope), status, seconds)


#: Methods and routes are labels, so a client must not make up new ones.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "OTHER"


def _route(scope: Scope) -> str:
    """The path with its names in it: ``/desk/{ticket}``."""
    route = scope.get("route")
    return str(getattr(route, "path_format", "")) or "unmatched"
