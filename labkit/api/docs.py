"""Pages to look things up: the API (Swagger UI from a wheel, so offline), types of problems."""

from __future__ import annotations

import html
import re
from http import HTTPStatus
from importlib.resources import files

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from labkit.api.problems import KINDS, Kind, Problem

router = APIRouter(include_in_schema=False)

#: The files of Swagger UI that its page needs.
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The API, to read and to try. Its addresses are relative: a prefix may come before them."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="labkit: API",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )


@router.get("/docs/{name}")
def asset(name: str) -> Response:
    """A file of Swagger UI."""
    if name not in ASSETS:
        raise Problem("not-found", f"no file of /docs is {name[:60]!r}")
    content = files("fastapi_offline").joinpath("static", name).read_bytes()
    return Response(content, headers={"Cache-Control": "max-age=3600"}, media_type=ASSETS[name])


@router.get("/problems")
async def problems() -> HTMLResponse:
    """All types of problems."""
    return _page("Problems", "docs", "".join(_entry(name, k) for name, k in KINDS.items()))


@router.get("/problems/{kind}")
async def problem(kind: str) -> HTMLResponse:
    """What a type of problem means, and what to do."""
    if kind not in KINDS:
        raise Problem("not-found", f"no type of problem is {kind[:60]!r}; /problems lists them")
    return _page(f"Problem: {kind}", "../docs", _entry(kind, KINDS[kind]))


def _entry(name: str, kind: Kind) -> str:
    title = f"{kind.status} {HTTPStatus(kind.status).phrase}: {name}"
    words = "".join(f"<p>{_marked(text)}</p>" for text in (kind.what, kind.advice))
    return f"<h2>{html.escape(title)}</h2>{words}"


def _marked(text: str) -> str:
    return re.sub("`(.*?)`", r"<code>\1</code>", html.escape(text))


def _page(title: str, api: str, body: str) -> HTMLResponse:
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>labkit: {title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or a browser asks for /favicon.ico, outside a prefix
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:44em;margin:2em auto;"
        "padding:0 1em;color-scheme:light dark}</style>"
        f'<h1>{title}</h1>{body}<p><a href="{api}">The API</a></p></html>'
    )
