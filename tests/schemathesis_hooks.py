"""What Schemathesis must know beside OpenAPI; loaded by ``schemathesis run``, not by pytest."""

from __future__ import annotations

import itertools
from typing import Any

import schemathesis

#: Problems of a request that fits its description, and yet says what cannot be.
EXPLAINED = {"/problems/unusable", "/problems/key-reused"}
numbers = itertools.count()
#: The newest token that was given out: a drawn one is hardly ever that of a command.
tokens: list[str] = []


def positive(case: schemathesis.Case) -> bool:
    return case.meta is not None and case.meta.generation.mode.is_positive


@schemathesis.hook
def before_call(service: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    if not positive(case):
        return
    if case.operation.path.endswith("/updates"):  # a stream lasts as long as it is wanted
        case.query = {**(case.query or {}), "seconds": 0.05}
    if tokens and case.query and case.query.get("token"):
        case.query = {**case.query, "token": tokens[-1:]}
    if case.headers and "if-match" in case.headers and next(numbers) % 2:
        del case.headers["if-match"]  # a drawn one is hardly ever true
    if case.headers and "idempotency-key" in case.headers:  # the simplest key is drawn every time
        case.headers["idempotency-key"] = f"{case.headers['idempotency-key'][:150]}-{next(numbers)}"


@schemathesis.hook
def after_call(service: Any, case: schemathesis.Case, response: schemathesis.Response) -> None:
    tokens.extend(response.headers.get("labkit-token", ()))


@schemathesis.check
def only_explained_422(
    ctx: Any, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """Of a request that fits its description, 422 must say what cannot be."""
    if positive(case) and response.status_code == 422:
        kind = response.json()["type"]
        assert kind in EXPLAINED, f"it fits its description, and is {kind}: {response.text}"
    return None


@schemathesis.check
def errors_are_problems(
    ctx: Any, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """RFC 9457 for every error, known or not."""
    if response.status_code >= 400:
        (media,) = response.headers["content-type"]
        assert media == "application/problem+json", media
        assert response.json()["status"] == response.status_code
    return None


@schemathesis.check
def etag_is_the_version(
    ctx: Any, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """Whoever sends it back as ``If-Match`` must mean what was shown."""
    if response.status_code in (200, 201) and "etag" in response.headers:
        (etag,) = response.headers["etag"]
        assert etag == f'"{response.json()["version"]}"', etag
    return None
