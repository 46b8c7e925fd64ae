"""The live page, and the stream that feeds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.resources import files

import msgspec
from fastapi import APIRouter
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.sse import format_sse_event

from labkit.api.backend import Here
from labkit.api.feed import QUIET_SECONDS
from labkit.api.schema import Seconds
from labkit.api.updates import HEADERS, RETRY_MS

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The live page."""
    text = files("labkit.api").joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"Cache-Control": "no-cache"})


@router.get("/live", include_in_schema=False)
async def live(here: Here, seconds: Seconds = None) -> StreamingResponse:
    """What moves, as server-sent events for the live page."""
    lab = here.lab
    about = {"run": lab.run, "services": lab.services, "partitions": lab.partitions}
    ends = time.monotonic() + seconds if seconds is not None else float("inf")

    async def events() -> AsyncIterator[bytes]:
        mine = here.live.listen()
        try:
            text = msgspec.json.encode(about).decode()
            yield format_sse_event(event="run", data_str=text, retry=RETRY_MS)
            while not here.closing.is_set() and time.monotonic() < ends:
                with suppress(TimeoutError):
                    yield await asyncio.wait_for(mine.get(), QUIET_SECONDS)
        finally:
            here.live.leave(mine)

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)
