"""Serving: a socket first, then a lab, then uvicorn; and an end that is bounded in time."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI
from msgspec import structs

from labkit.api.app import create_app
from labkit.api.protection import OFF, Protection
from labkit.errors import StackError, UsageError
from labkit.lab import Lab
from labkit.run.registry import live_runs
from labkit.run.settings import Settings
from labkit.services import BUILT_IN, PROCESSES

#: Requests that are under way when the server ends get so long; streams end at once.
GRACE_SECONDS = 5


class Server(uvicorn.Server):
    """Ends streams and waits for answers before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, closing: Callable[[], None]) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn after a signal."""
        self._closing()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises ``StackError`` where the port is taken, and ``UsageError`` for what is no address.
    """
    if not 0 <= port < 65_536:
        raise UsageError(f"--port must be from 0 to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except socket.gaierror as error:
        raise UsageError(f"--host {host!r} is no address of this machine: {error}") from None
    except (OSError, UnicodeError) as error:
        raise StackError(
            f"cannot listen at {host} port {port}: {error}; choose another with --port, or 0"
        ) from None


def address(at: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = at.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(app: FastAPI) -> Server:
    """Serves an app until SIGINT or SIGTERM, which is then raised again."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return Server(config, app.state.backend.end)


def api(
    name: str,
    run: str | None,
    at: socket.socket,
    settings: Settings,
    report: Callable[[str], None],
    services: Sequence[str] | None = None,
    processes: Sequence[str] = (),
    protection: Protection = OFF,
) -> None:
    """Serve an existing run, or a new one with workers, which is dropped afterwards.

    ``services`` and ``processes`` are names or ``module:ATTRIBUTE``; without them, a new run has
    all that are built in. An existing run has its own services and settings; raises ``UsageError``
    if it has no live workers.
    """
    if run is None:
        lab = _own(name, settings, report, services, processes)
    else:
        lab = _joined(name, run, services, processes)
    with lab:
        try:
            app = create_app(lab, protection)
            if not ip_address(at.getsockname()[0]).is_loopback:
                report(f"{address(at)} is open to others: whoever reaches it may send commands")
            if run is None:
                report(f"the workers of {', '.join(lab.services)} start; this takes some seconds")
                lab.start()
            print(f"{address(at)} is the live page of run {lab.run}; /docs is the API", flush=True)
            server(app).run(sockets=[at])
        finally:
            if run is None:
                lab.drop()


def _own(
    name: str,
    settings: Settings,
    report: Callable[[str], None],
    services: Sequence[str] | None,
    processes: Sequence[str],
) -> Lab:
    chosen = bool(services or processes)
    return Lab(
        name,
        services=services or (() if chosen else BUILT_IN),
        processes=processes or (() if chosen else PROCESSES),
        report=report,
        **structs.asdict(settings),
    )


def _joined(name: str, run: str, services: Sequence[str] | None, processes: Sequence[str]) -> Lab:
    if services or processes:
        raise UsageError(f"run {run!r} has its services and processes already; leave them out")
    if run not in live_runs(name):
        raise UsageError(
            f"run {run!r} of lab {name!r} has no live workers; `labkit runs` lists the runs"
        )
    return Lab(name, run=run, start=False)
