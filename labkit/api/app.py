"""The app: routes, errors, metrics, and what happens at start and end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata

from anyio import to_thread
from fastapi import FastAPI

from labkit.api import commands, docs, health, live, openapi, problems, queries
from labkit.api.backend import Backend
from labkit.api.guard import THREADS
from labkit.api.metrics import Measured
from labkit.api.paths import Paths
from labkit.api.protection import OFF, Protection
from labkit.lab import Lab
from labkit.ports.clock import SYSTEM, Clock

ABOUT = """\
Commands are acknowledged with **202** once the broker has them; `Prefer: wait=N` waits for the
answer. Queries say how fresh they must be. Errors are [problems](problems) (RFC 9457). When too
many come at once, 429 and 503 say by `Retry-After` when to send it again.

An id in a path is percent-encoded: `a/b` is `a%2Fb`. Clients drop the ids `.` and `..` from a path,
so write `~.` and `~..` for these two.
"""


def create_app(lab: Lab, protection: Protection = OFF, clock: Clock = SYSTEM) -> FastAPI:
    """The API of a lab, which stays the caller's, and is not to be used beside it meanwhile.

    Raises ``UsageError`` if two routes of its services have one address, and for a protection that
    cannot be.
    """
    backend = Backend(lab, protection, clock)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        await to_thread.run_sync(backend.start)
        try:
            yield
        finally:
            await to_thread.run_sync(backend.close)

    app = FastAPI(
        title="labkit",
        summary="CQRS with event sourcing on Kafka and MongoDB",
        description=ABOUT,
        version=metadata.version("cqrs-labkit"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name a host and leave a prefix
    )
    app.state.backend = backend
    app.add_middleware(problems.Limited)
    app.add_middleware(Measured, metrics=lambda: backend.metrics)
    app.add_middleware(Paths)
    problems.install(app)
    for router in (live.router, docs.router, health.router):
        app.include_router(router)
    app.include_router(commands.routes(backend))
    app.include_router(queries.routes(backend))
    openapi.describe(app, backend.schemas)
    return app
