"""What OpenAPI says beside the routes: problems, headers, and the links between operations."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from labkit.api.problems import MEDIA_TYPE
from labkit.api.schema import CommandStatus, ProblemDetails

Responses = dict[int | str, dict[str, Any]]

WHY = {
    304: "Not changed since the `ETag` that was sent.",
    400: "The body is no JSON.",
    404: "There is no such thing, or the view has not seen it.",
    409: "A business rule said no.",
    412: "The version is another than `If-Match` expects.",
    413: "No command is so large.",
    422: "The request is not as described here, or says what cannot be.",
    503: "Kafka or MongoDB does not answer.",
    504: "The view did not get as fresh as asked in time.",
}
REF = {"$ref": "#/components/schemas/ProblemDetails"}
RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}


class EventStream(Response):
    """Server-sent events."""

    media_type = "text/event-stream"


#: One event as OpenAPI 3.2 sees it: ``data`` is JSON.
EVENT = {
    "type": "object",
    "properties": {
        "data": {"type": "string"},
        "id": {"type": "string"},
        "event": {"type": "string"},
        "retry": {"type": "integer", "minimum": 0},
    },
}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


TOKEN = {"Labkit-Token": _header("What a query can wait for.")}
APPLIED = {"Preference-Applied": _header("The wait that was granted.")}
ETAG = {"ETag": _header("The version of the stream.")}
LOCATION = {"Location": _header("Where to look for it.")}
NEXT = {"Link": _header('`rel="next"`: the next page, if there is one.')}


def problems(*statuses: int) -> Responses:
    """These errors, each as a problem."""
    found: Responses = {}
    for status in statuses:
        found[status] = {"description": WHY[status], "content": {MEDIA_TYPE: {"schema": REF}}}
        if status == 503:
            found[status]["headers"] = RETRY
    return found


#: What every query may be answered.
QUERY = problems(404, 422, 503, 504)
LIST = {200: {"headers": NEXT}, **problems(404, 422, 503, 504)}
ONE: Responses = {
    200: {"headers": ETAG},
    304: {"description": WHY[304], "headers": ETAG},
    **QUERY,
}


def stream(of: str) -> Responses:
    """Server-sent events."""
    content = {"text/event-stream": {"schema": EVENT}}
    return {200: {"description": of, "content": content}, **problems(404, 422, 503)}


def command(
    get: str, parameter: str, *, creates: bool = False, then: tuple[str, ...] = ()
) -> Responses:
    """What a command may be answered, with links to what it made or changed (operation ``get``),
    and to the commands that come ``then``."""
    status = {"application/json": {"schema": {"$ref": "#/components/schemas/CommandStatus"}}}
    links: dict[str, Any] = {
        get: {
            "operationId": get,
            "parameters": {
                parameter: "$response.body#/id",
                "version": "$response.body#/version",
            },
        },
        "getCommand": {
            "operationId": "getCommand",
            "parameters": {"token": "$response.body#/token"},
        },
    }
    for operation in then:
        of_this = {parameter: "$response.body#/id"}
        links[operation] = {"operationId": operation, "parameters": of_this}
    done = {
        "description": "Done, after a wait for it.",
        "content": status,
        "headers": TOKEN | APPLIED | ETAG | (LOCATION if creates else {}),
        "links": links,
    }
    accepted = {
        "description": "Acknowledged by the broker; it will be handled.",
        "content": status,
        "headers": TOKEN | LOCATION,
        "links": {"getCommand": links["getCommand"]},
    }
    statuses = (400, 409, 413, 422, 503) if creates else (400, 409, 412, 413, 422, 503)
    return {201 if creates else 200: done, 202: accepted, **problems(*statuses)}


def describe(app: FastAPI) -> None:
    """Make ``/openapi.json`` complete: the models that only references name are added."""

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _, extra = models_json_schema(
                [(CommandStatus, "serialization"), (ProblemDetails, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(extra["$defs"])
            for path in document["paths"].values():
                for operation in path.values():
                    for parameter in operation.get("parameters", ()):
                        parameter["schema"] = _without_null(parameter["schema"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = made  # type: ignore[method-assign]


def _without_null(of: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is not needed is left out; it is never ``null``."""
    choices = [choice for choice in of.get("anyOf", ()) if choice.get("type") != "null"]
    if len(choices) != 1:
        return of
    return {**{k: v for k, v in of.items() if k != "anyOf"}, **choices[0]}
