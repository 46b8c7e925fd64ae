"""Paths: any value can be a segment of one, and any prefix may come before it.

- A value is percent-encoded (RFC 3986). An ASGI server decodes a path before a route is matched,
  which makes the ``%2F`` of an id a slash between two segments. So the middleware here leaves
  slashes and percent signs encoded, and ``Segment`` decodes them once the route is known.
- Clients remove the segments ``.`` and ``..``, percent-encoded or not (the URL Standard, 4.1). So
  these two values are written ``~.`` and ``~..``, and ``~.`` is written ``~~.``.
- A proxy may serve this app below a prefix, and not say so. So addresses in headers are relative.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: A name in the path of a route.
NAME = re.compile(r"{(\w+)}")

_DOTS = re.compile(r"~*\.{1,2}")
#: ``%2F`` and ``%25``: a slash and a percent sign.
_KEPT = re.compile(r"%(?=2[Ff]|25)")


def segment(value: str) -> str:
    """A value as a segment of a path."""
    return quote(f"~{value}" if _DOTS.fullmatch(value) else value, safe="")


class Segment(Convertor[str]):
    """The value of a segment, as ``segment`` has written it."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """The segment comes with its slashes and percent signs still encoded."""
        found = unquote(value)
        if not found.isascii() and any("\ud800" <= character <= "\udfff" for character in found):
            raise HTTPException(400, "the path is not UTF-8, percent-encoded")
        return found.removeprefix("~") if _DOTS.fullmatch(found) else found

    def to_string(self, value: str) -> str:
        """The inverse."""
        return segment(value)


register_url_convertor("segment", Segment())


def template(path: str) -> str:
    """The path of a route for the framework: each name in braces stands for one segment."""
    return NAME.sub(r"{\1:segment}", path)


def filled(path: str, values: Mapping[str, str]) -> str:
    """The address of a route, with values for its names."""
    parts = path.split("/")
    return "/".join(segment(values[p[1:-1]] if NAME.fullmatch(p) else p) for p in parts)


def fields_in(path: str) -> set[str]:
    """The names in braces."""
    return set(NAME.findall(path))


def shape(path: str) -> str:
    """A path without its names: paths that differ only in these are one address."""
    return NAME.sub("{}", path)


def order(path: str) -> list[bool]:
    """The place of a path among others: text comes before a name."""
    return ["{" in part for part in path.split("/")]


class Paths:
    """Middleware: the path that routes are matched with, and relative addresses in headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = _to_match(scope)
        below = path.removeprefix(scope.get("root_path", ""))
        up = ("../" * (below.count("/") - 1) or "./").encode()

        async def relative(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, _relative(name, value, up)) for name, value in message["headers"]]
                message = {**message, "headers": headers}
            await send(message)

        await self._app({**scope, "path": path}, receive, relative)


def _to_match(scope: Scope) -> str:
    """The path, decoded except for slashes and percent signs."""
    path: str = scope["path"]
    raw = (scope.get("raw_path") or b"").decode("ascii", "replace")
    once = unquote(raw)
    if path not in (once, unquote(once)):  # (Starlette's test client decodes twice)
        raw = quote(path)  # a part in front of this app has changed the path alone
    return unquote(_KEPT.sub("%25", raw), errors="surrogateescape")


def _relative(name: bytes, value: bytes, up: bytes) -> bytes:
    """An address from the root of this app, as seen from the address of the request."""
    if name.lower() == b"location" and value.startswith(b"/"):
        return up + value[1:]
    return value.replace(b"</", b"<" + up) if name.lower() == b"link" else value
