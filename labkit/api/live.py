"""The live page, and the stream that feeds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.resources import files
from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from fastapi.sse import format_sse_event

from labkit.api.backend import Backend, Here
from labkit.api.feed import QUIET_SECONDS
from labkit.api.fields import Schema, without_null
from labkit.api.forms import Form
from labkit.api.schema import Seconds
from labkit.api.updates import RETRY_MS, Stream

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The live page."""
    text = files("labkit.api").joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"Cache-Control": "no-cache"})


@router.get("/live", include_in_schema=False)
async def live(here: Here, seconds: Seconds = None) -> Stream:
    """Server-sent events for the live page: the run, then its messages as they move."""
    lab = here.lab
    about = {
        "run": lab.run,
        "services": list(lab.services),
        "partitions": lab.partitions,
        "commands": forms(here),
    }
    ends = time.monotonic() + seconds if seconds is not None else float("inf")

    mine = here.live.listen()

    async def events() -> AsyncIterator[bytes]:
        text = msgspec.json.encode(about).decode()
        yield format_sse_event(event="run", data_str=text, retry=RETRY_MS)
        while not here.closing.is_set() and time.monotonic() < ends:
            with suppress(TimeoutError):
                yield await asyncio.wait_for(mine.get(), QUIET_SECONDS)

    return Stream(events(), lambda: here.live.leave(mine))


def forms(here: Backend) -> list[dict[str, Any]]:
    """The public commands with their fields, in the order of the services: one form each."""
    routes = {route.kind: route for route in here.addresses.commands}
    found = []
    for route in (routes[kind] for s in here.lab.services.values() for kind in s.public):
        form = Form(route, here.schemas)
        needed = {*form.in_path, *form.body["required"]}
        parts = [(form.in_path, "path"), (form.body["properties"], "body")]
        found.append(
            {
                "name": route.kind.__name__,
                "service": route.service.name,
                "method": route.method,
                "path": route.path,
                "key": route.key,
                "about": (route.kind.__doc__ or "").strip(),
                "fields": [
                    {"name": name, "in": where, "needed": name in needed, **_input(schema)}
                    for schemas, where in parts
                    for name, schema in schemas.items()
                ],
            }
        )
    return found


def _input(schema: Schema) -> dict[str, Any]:
    """The input for a field."""
    plain = without_null(schema)
    kind = plain.get("type", "string" if plain.get("enum") else "json")
    names = ("minimum", "maximum", "minLength", "maxLength", "enum", "default")
    found = {name: plain[name] for name in names if plain.get(name) is not None}
    if examples := plain.get("examples"):
        found["example"] = examples[0]
    return {"type": "json" if kind in ("array", "object") else kind, **found}
