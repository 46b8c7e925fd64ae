"""Server-sent events: the only part that is asynchronous, since a stream lasts.

Blocking calls (MongoDB) run in a thread for half a second at most, so a stream ends soon after its
client has gone or the server ends.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from fastapi import Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Receive, Scope, Send

from labkit.api import answers
from labkit.api.addresses import QueryRoute
from labkit.api.problems import problem_of
from labkit.errors import LabkitError, Stopped, Unreachable, UsageError
from labkit.messages import encode
from labkit.read.sessions import Session
from labkit.read.subscriptions import Subscription, Update
from labkit.service import Query

if TYPE_CHECKING:
    from labkit.api.backend import Backend

POLL_SECONDS = 0.5
#: A comment now and then shows whether the client is still there.
PING_SECONDS = 5.0
#: Each stream holds a thread.
MAX_STREAMS = 100
RETRY_MS = 1_000

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class OpenStreams:
    """The number of open streams, and their threads."""

    def __init__(self) -> None:
        self.count = 0
        self.limiter = anyio.CapacityLimiter(MAX_STREAMS)

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more, counted before anything waits; raises a problem if no more fit."""
        if self.count >= MAX_STREAMS:
            raise problem_of(Unreachable(f"{MAX_STREAMS} streams are open, no more fit"))
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class Stream(StreamingResponse):
    """Server-sent events; ``close`` is called at their end.

    Also if the client has gone before the first of them: then ``events`` never begins, and has no
    ``finally``.
    """

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer to one request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def updates(
    here: Backend,
    route: QueryRoute,
    query: Query,
    last_event_id: str | None,
    seconds: float | None,
) -> Response:
    """The answer, then its updates; ``Last-Event-ID`` names the one that the client has."""
    limiter = here.streams.limiter
    with ExitStack() as opened:
        opened.enter_context(here.streams.one())
        subscription = await to_thread.run_sync(
            lambda: Subscription(here.lab.store, Session(here.queries), query, drive=here.drive),
            limiter=limiter,
        )
        opened.callback(subscription.close)
        first = await to_thread.run_sync(_first, subscription, limiter=limiter)
        close = opened.pop_all().close
    ends = time.monotonic() + seconds if seconds is not None else float("inf")

    async def events() -> AsyncIterator[bytes]:
        seen, told = last_event_id, time.monotonic()
        update = first
        yield format_sse_event(retry=RETRY_MS)
        while not here.closing.is_set():
            if update is not None and (id := _id(update.answer, route)) != seen:
                seen, told = id, time.monotonic()
                yield format_sse_event(data_str=_json(update.answer, route), id=id)
            if time.monotonic() - told > PING_SECONDS:
                told = time.monotonic()
                yield format_sse_event(comment="still here")
            if time.monotonic() >= ends:
                return
            patience, update = min(POLL_SECONDS, max(0.0, ends - time.monotonic())), None
            try:
                update = await to_thread.run_sync(subscription.poll, patience, limiter=limiter)
            except Stopped:
                return  # who comes back is told
            except LabkitError:  # asked again: the answer is still due
                await anyio.sleep(patience)

    return Stream(events(), close)


def _first(subscription: Subscription) -> Update | None:
    """The answer, if there is one now; raises ``UsageError``, ``Stopped`` if there can be none."""
    try:
        return subscription.poll()
    except (UsageError, Stopped):
        raise
    except LabkitError:  # asked again later
        return None


def _id(answer: Any, route: QueryRoute) -> str:
    """The version of a stream's document; for any other answer, a checksum."""
    if answer is None:
        return "0"
    at = answers.version(answer) if route.one else None
    return f"{zlib.crc32(encode(answer)):08x}" if at is None else str(at)


def _json(answer: Any, route: QueryRoute) -> str:
    return "null" if answer is None else encode(answers.shown(answer, route)).decode()
