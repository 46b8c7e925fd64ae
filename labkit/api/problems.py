"""Errors over HTTP: ``application/problem+json`` (RFC 9457) for every one of them.

Their types are in the table ``KINDS``; ``docs.py`` serves a page for each.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any, NamedTuple

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labkit.api.paths import order
from labkit.errors import (
    CheckFailed,
    Conflict,
    DecodeError,
    Duplicate,
    Fenced,
    LabkitError,
    Overloaded,
    Parked,
    Pending,
    Refused,
    StackError,
    TimedOut,
    TooSlow,
    Transient,
    Unstorable,
    UsageError,
)

RETRY_SECONDS = 2
MAX_BODY_BYTES = 64 << 10

MEDIA_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """A type of problem: its status, what happened, and what the client can do."""

    status: int
    what: str
    advice: str


#: By the end of their address, ``/problems/...``.
KINDS = {
    "malformed": Kind(
        400,
        "The body is not JSON, or the path is not UTF-8.",
        "`detail` and `errors` say where. Correct it, and send the request again.",
    ),
    "not-found": Kind(
        404,
        "There is no such thing, or the view does not show it yet.",
        "After a command, ask with `token` or `version`: the query then waits for the view. "
        "The API page lists all paths.",
    ),
    "method": Kind(
        405,
        "This path does not know the method.",
        "The header `Allow` names the methods that it knows.",
    ),
    "refused": Kind(
        409,
        "A business rule said no.",
        "`detail` is its reason. The answer to this command stays; another command may be accepted "
        "once the state is another.",
    ),
    "precondition": Kind(
        412,
        "The stream is not at the version that `If-Match` expects.",
        "Read it again, decide again, and send the new `ETag`.",
    ),
    "too-large": Kind(413, "No command is so large.", "Send less in one command."),
    "media-type": Kind(
        415,
        "The body is not sent as JSON.",
        "Send it with the header `Content-Type: application/json`.",
    ),
    "invalid": Kind(
        422,
        "The request is not as OpenAPI describes it.",
        "`errors` names each wrong field or parameter, and what it must be.",
    ),
    "unusable": Kind(
        422,
        "The request is as OpenAPI describes it, but a value cannot be used: a cursor that no page "
        "gave, for example.",
        "`detail` names the value.",
    ),
    "key-reused": Kind(
        422,
        "The `Idempotency-Key` was used for another command.",
        "Take a new key for a new command, and the old key only to send the same command again.",
    ),
    "limited": Kind(
        429,
        "More requests came than the operator allows, from this client or from all together.",
        "Send it again after `Retry-After` seconds, a command with the same `Idempotency-Key`: "
        "nothing was done.",
    ),
    "internal": Kind(500, "A bug.", "The log of the API says more. Please report it."),
    "unreachable": Kind(
        503,
        "Kafka or MongoDB does not answer, or the API is being shut down.",
        "Try again after `Retry-After` seconds; `labkit status` and `labkit doctor` show the "
        "servers. Send a command again with the same `Idempotency-Key`: it takes effect once.",
    ),
    "overloaded": Kind(
        503,
        "More is under way than can be done soon. The request was turned away, and a command was "
        "not sent.",
        "Send it again after `Retry-After` seconds, a command with the same `Idempotency-Key`. "
        "`Priority: u=0` (RFC 9218) says that it is urgent, `u=7` that it can wait.",
    ),
    "busy": Kind(
        503,
        "Another transaction was in the way.",
        "Try again after `Retry-After` seconds.",
    ),
    "parked": Kind(
        503,
        "The view holds this stream back: an event could not be applied.",
        "`labkit dead-letters` shows why, and lets the stream go on.",
    ),
    "timed-out": Kind(
        504,
        "The view was not as fresh as asked in time, or the query did not end in time.",
        "Ask with a longer `timeout`, or for less; `labkit status` shows whether the projectors "
        "run.",
    ),
}
#: The statuses that a framework's own errors have, and their types.
OF_STATUS = {400: "malformed", 404: "not-found", 405: "method", 413: "too-large"}


class Problem(Exception):
    """An error that the client is told of: ``kind`` is the end of its type."""

    def __init__(
        self, kind: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = headers or {}
        self.more = more

    def response(self) -> Response:
        """As JSON in pure ASCII: a detail may repeat half a character, which no UTF-8 can hold."""
        status, type = KINDS[self.kind].status, f"/problems/{self.kind}"
        body = {
            "type": type,
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": self.detail,
            **self.more,
        }
        headers = {"Link": f'<{type}>; rel="type"', **self.headers}
        return Response(json.dumps(body), status, headers, MEDIA_TYPE)


def not_found(what: str) -> Problem:
    """The view has not seen it."""
    return Problem("not-found", f"there is no {what}, or the view has not seen it yet")


def invalid(where: str, what: str) -> Problem:
    """The request is not as OpenAPI says."""
    errors = [{"where": where[:200], "what": what[:500]}]
    return Problem("invalid", f"{where}: {what}"[:1_000], errors=errors)


class Limited:
    """Middleware: reads no more of a body than any command can need."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, limited, send)


#: What each of this package's errors is over HTTP: its type, and whether to try it again.
ANSWERS: dict[type[LabkitError], tuple[str, bool]] = {
    UsageError: ("unusable", False),
    DecodeError: ("unusable", False),
    Unstorable: ("unusable", False),
    Refused: ("refused", False),
    Duplicate: ("refused", False),
    CheckFailed: ("refused", False),
    TimedOut: ("timed-out", False),
    Parked: ("parked", True),
    StackError: ("unreachable", True),
    Overloaded: ("overloaded", True),
    Conflict: ("busy", True),
    TooSlow: ("busy", True),
    Pending: ("busy", True),
    Transient: ("busy", True),
    Fenced: ("busy", True),
}


def install(app: FastAPI) -> None:
    """Answer every exception with a problem."""
    app.add_exception_handler(Problem, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(LabkitError, _ours)
    app.add_exception_handler(Exception, _bug)


async def _known(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"where": ".".join(str(part) for part in one["loc"])[:200], "what": str(one["msg"])[:500]}
        for one in error.errors()[:20]
    ]
    words = "; ".join(f"{one['where']}: {one['what']}" for one in errors[:3])
    return Problem("invalid", words, errors=errors).response()


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, detail = OF_STATUS.get(error.status_code, "malformed"), str(error.detail)
    headers = dict(error.headers or {})
    path, method = request.scope["path"], request.method
    if error.status_code == 405:
        # The framework names the methods of the first route of this path alone.
        headers["Allow"] = ", ".join(sorted(_methods(request)))
        detail = f"{path[:200]} does not know {method[:20]}; it knows {headers['Allow']}"
    elif error.status_code == 404:
        near = get_close_matches(path, [*request.app.openapi()["paths"], "/docs"], 3, 0.4)
        like = f"paths like it are {', '.join(near)}; " if near else ""
        detail = f"there is no path {path[:200]}; {like}/docs lists all"
    return Problem(kind, detail, headers).response()


def _methods(request: Request) -> set[str]:
    """The methods of a path, by the description of the API; what is not in it is read.

    As in OpenAPI, a path with text counts, and not one with a name in the same place.
    """
    paths = request.app.openapi()["paths"]
    fit = [path for path in paths if compile_path(path)[0].match(request.scope["path"])]
    return {method.upper() for method in paths[min(fit, key=order)]} if fit else {"GET"}


async def _ours(request: Request, error: Exception) -> Response:
    return problem_of(error).response()


def problem_of(error: Exception) -> Problem:
    """One of this package's errors as a problem."""
    kind = next((kind for kind in type(error).__mro__ if kind in ANSWERS), StackError)
    name, again = ANSWERS[kind]
    headers = {"Retry-After": str(RETRY_SECONDS)} if again else None
    return Problem(name, _short(error), headers)


async def _bug(request: Request, error: Exception) -> Response:
    structlog.get_logger().error("bug", path=request.url.path, error=repr(error))
    detail = f"a bug: {type(error).__name__}; the log of the API says more"
    return Problem("internal", detail).response()


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 1_000 else reprlib.repr(text)
