"""What OpenAPI documents besides parameters and bodies: answers, headers, and links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from labkit.api import answers
from labkit.api.addresses import Addresses, CommandRoute, QueryRoute
from labkit.api.fields import Schema, Schemas, without_null
from labkit.api.paths import NAME, fields_in, shape
from labkit.api.problems import KINDS, MEDIA_TYPE
from labkit.api.schema import CommandStatus, ProblemDetails
from labkit.read.queries import is_page
from labkit.service import kebab

Responses = dict[int | str, dict[str, Any]]

NOT_CHANGED = "Not changed since the `ETag` that was sent."
#: Statuses of problems, each with what it may mean.
WHY = {
    status: " Or: ".join(kind.what for kind in KINDS.values() if kind.status == status)
    for status in {kind.status for kind in KINDS.values()}
}
REF = {"$ref": "#/components/schemas/ProblemDetails"}
RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}


class EventStream(Response):
    """Server-sent events."""

    media_type = "text/event-stream"


class Json(Response):
    """An answer; its schema is that of its query."""

    media_type = "application/json"


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
        if status in (429, 503):
            found[status]["headers"] = RETRY
    return found


def query(route: QueryRoute) -> Responses:
    """The answers to a query, by status."""
    content = {"application/json": {"schema": answers.schema(route)}}
    done: dict[str, Any] = {"description": "The answer.", "content": content}
    found: Responses = {200: done, **problems(404, 422, 503, 504)}
    if route.one:
        done["headers"] = ETAG
        found[304] = {"description": NOT_CHANGED, "headers": ETAG}
    elif is_page(route.kind):
        done["headers"] = NEXT
    return found


def stream(of: str) -> Responses:
    """Server-sent events."""
    content = {"text/event-stream": {"schema": EVENT}}
    return {200: {"description": of, "content": content}, **problems(404, 422, 503)}


def path_parameters(schemas: Mapping[str, Schema]) -> list[Schema]:
    """The parameters in a path."""
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in schemas.items()
    ]


def query_parameters(schemas: Mapping[str, tuple[Schema, bool]]) -> list[Schema]:
    """The conditions of a query, each with whether it is required."""
    return [
        {"name": name, "in": "query", "required": required, "schema": schema}
        for name, (schema, required) in schemas.items()
    ]


def words(kind: type, before: str = "") -> str:
    """``OpenTicket`` -> ``Open ticket``."""
    name = f"{before} {kebab(kind.__name__).replace('-', ' ')}".strip()
    return name[0].upper() + name[1:].lower()


def _links(addresses: Addresses, route: CommandRoute) -> dict[str, Any]:
    """From a command to the queries of its stream, and to the commands that can follow."""
    id, version = "$response.body#/id", "$response.body#/version"
    links: dict[str, Any] = {}
    for other in addresses.commands:
        if other.service is route.service and fields_in(other.path) == {route.key}:
            links[other.operation] = {route.key: id}
    home = addresses.home(route.kind)
    if home is not None and not home.fixed:
        named = fields_in(home.path)
        (field,) = named
        for query in addresses.queries:
            if (
                query.service is route.service
                and not query.fixed
                and fields_in(query.path) == named
            ):
                links[query.operation] = {field: id}
        links[home.operation]["version"] = version
    return {name: {"operationId": name, "parameters": found} for name, found in links.items()}


def command(addresses: Addresses, route: CommandRoute) -> Responses:
    """The answers to a command, by status, with links to its stream."""
    status = {"application/json": {"schema": {"$ref": "#/components/schemas/CommandStatus"}}}
    look = {
        "operationId": "getCommand",
        "parameters": {"token": "$response.body#/token"},
    }
    done = {
        "description": "Done, after a wait for it.",
        "content": status,
        "headers": TOKEN | APPLIED | ETAG | (LOCATION if route.creates else {}),
        "links": _links(addresses, route) | {"getCommand": look},
    }
    accepted = {
        "description": "Acknowledged by the broker; it will be handled.",
        "content": status,
        "headers": TOKEN | LOCATION,
        "links": {"getCommand": look},
    }
    statuses = (400, 409, 413, 415, 422, 503) + (() if route.creates else (412,))
    return {201 if route.creates else 200: done, 202: accepted, **problems(*statuses)}


def _merged(paths: dict[str, Any]) -> dict[str, Any]:
    """Paths that differ only in their names are one path in OpenAPI, with the names of the first.

    Links and parameters get these names, too.
    """
    found: dict[str, Any] = {}
    first: dict[str, str] = {}
    names: dict[str, dict[str, str]] = {}
    for path, operations in paths.items():
        known = first.setdefault(shape(path), path)
        renamed = dict(zip(NAME.findall(path), NAME.findall(known), strict=True))
        for operation in operations.values():
            names[operation["operationId"]] = renamed
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["name"] = renamed[parameter["name"]]
        found.setdefault(known, {}).update(operations)
    for operations in found.values():
        for operation in operations.values():
            for response in operation["responses"].values():
                for link in response.get("links", {}).values():
                    new = names[link["operationId"]]
                    link["parameters"] = {new.get(k, k): v for k, v in link["parameters"].items()}
    return found


def describe(app: FastAPI, schemas: Schemas) -> None:
    """Add to ``/openapi.json`` the schemas that only references name."""

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                servers=[{"url": "."}],  # whatever the prefix that a proxy puts before it
            )
            _, extra = models_json_schema(
                [(CommandStatus, "serialization"), (ProblemDetails, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            known = document.setdefault("components", {}).setdefault("schemas", {})
            known.update(schemas.nested | extra["$defs"])
            document["paths"] = _merged(document["paths"])
            for path in document["paths"].values():
                for operation in path.values():
                    for parameter in operation.get("parameters", ()):
                        parameter["schema"] = without_null(parameter["schema"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = made  # type: ignore[method-assign]
