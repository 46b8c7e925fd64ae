"""Errors over HTTP: ``application/problem+json`` (RFC 9457) for every one of them.

========================  ======  ==================================================================
type                      status  what happened
========================  ======  ==================================================================
/problems/malformed       400     the body is no JSON
/problems/not-found       404     there is no such thing, or the view has not seen it
/problems/method          405     this resource does not know the method; ``Allow`` says which
/problems/refused         409     a business rule said no; ``detail`` is its reason
/problems/precondition    412     the stream is not at the version that ``If-Match`` expects
/problems/too-large       413     no command is so large
/problems/invalid         422     the request is not as OpenAPI says; ``errors`` says where
/problems/unusable        422     it is, but what it says cannot be: a cursor that no page gave, ...
/problems/key-reused      422     the idempotency key was used for another command
/problems/internal        500     a bug
/problems/unreachable     503     Kafka or MongoDB does not answer; ``Retry-After`` says when to try
/problems/busy            503     others were in the way; ``Retry-After`` says when to try again
/problems/parked          503     the view holds this stream back: an event could not be applied
/problems/timed-out       504     the view did not get as fresh as asked in time
========================  ======  ==================================================================
"""

from __future__ import annotations

import json
import reprlib
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labkit.api.addresses import order
from labkit.errors import (
    CheckFailed,
    Conflict,
    DecodeError,
    Duplicate,
    Fenced,
    LabkitError,
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
#: The statuses that a framework's own errors have, and their types.
TYPES = {400: "malformed", 404: "not-found", 405: "method", 413: "too-large", 422: "invalid"}


class Problem(Exception):
    """An error that the client is told of: ``kind`` is the end of its type."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers
        self.more = more

    def response(self) -> Response:
        """As JSON in pure ASCII: a detail may repeat half a character, which no UTF-8 can hold."""
        body = {
            "type": f"/problems/{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(json.dumps(body), self.status, self.headers, MEDIA_TYPE)


def not_found(what: str) -> Problem:
    """The view has not seen it."""
    return Problem(404, "not-found", f"there is no {what}, or the view has not seen it yet")


def invalid(where: str, what: str) -> Problem:
    """The request is not as OpenAPI says."""
    errors = [{"where": where[:200], "what": what[:500]}]
    return Problem(422, "invalid", f"{where}: {what}"[:1_000], errors=errors)


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


#: What each of this package's errors is over HTTP: status, type, and whether to try it again.
ANSWERS: dict[type[LabkitError], tuple[int, str, bool]] = {
    UsageError: (422, "unusable", False),
    DecodeError: (422, "unusable", False),
    Unstorable: (422, "unusable", False),
    Refused: (409, "refused", False),
    Duplicate: (409, "refused", False),
    CheckFailed: (409, "refused", False),
    TimedOut: (504, "timed-out", False),
    Parked: (503, "parked", True),
    StackError: (503, "unreachable", True),
    Conflict: (503, "busy", True),
    TooSlow: (503, "busy", True),
    Pending: (503, "busy", True),
    Transient: (503, "busy", True),
    Fenced: (503, "busy", True),
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
    return Problem(422, "invalid", words, errors=errors).response()


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = TYPES.get(error.status_code, "http")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # The framework names the methods of the first route of this path alone.
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return Problem(error.status_code, kind, str(error.detail), headers).response()


def _methods(request: Request) -> set[str]:
    """The methods of a path, by the description of the API; the live page is not in it.

    As in OpenAPI, a path with text counts, and not one with a name in the same place.
    """
    if request.scope["path"] in ("/", "/live"):
        return {"GET"}
    paths = request.app.openapi()["paths"]
    fit = [path for path in paths if compile_path(path)[0].match(request.scope["path"])]
    return {method.upper() for method in paths[min(fit, key=order)]} if fit else set()


async def _ours(request: Request, error: Exception) -> Response:
    return problem_of(error).response()


def problem_of(error: Exception) -> Problem:
    """One of this package's errors as a problem."""
    kind = next((kind for kind in type(error).__mro__ if kind in ANSWERS), StackError)
    status, name, again = ANSWERS[kind]
    headers = {"Retry-After": str(RETRY_SECONDS)} if again else None
    return Problem(status, name, _short(error), headers)


async def _bug(request: Request, error: Exception) -> Response:
    structlog.get_logger().error("bug", path=request.url.path, error=repr(error))
    detail = f"a bug: {type(error).__name__}; the log of the API says more"
    return Problem(500, "internal", detail).response()


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 1_000 else reprlib.repr(text)
