"""Queries over HTTP: answers from the views, as fresh as the client asks, and their updates.

The ``ETag`` of an answer about one stream is the stream's version. Pages go on at
``Link: rel="next"``.
"""

from __future__ import annotations

import inspect
import math
import re
import reprlib
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from msgspec import structs

from labkit.api import answers, fields, openapi
from labkit.api.addresses import QueryRoute
from labkit.api.backend import Backend, Here
from labkit.api.fields import Schema
from labkit.api.paths import fields_in, filled, template
from labkit.api.problems import invalid, not_found
from labkit.api.request_options import FreshOptions, Many, One, OneOptions
from labkit.api.schema import LastEventId, Seconds
from labkit.api.updates import updates
from labkit.errors import UsageError
from labkit.messages import encode
from labkit.read.freshness import Version
from labkit.read.queries import Asked
from labkit.service import Page, Query, made

#: Parameters that every query has besides its conditions.
OPTIONS = {"freshness", "token", "timeout"}


def routes(backend: Backend) -> APIRouter:
    """The queries and views of a run's services."""
    router = APIRouter()
    for route in backend.addresses.queries:
        _add(router, backend, route)
    return router


def _add(router: APIRouter, backend: Backend, route: QueryRoute) -> None:
    conditions = Conditions(route, backend.schemas.of(route.kind))

    def one(request: Request, here: Here, options: One) -> Response:
        query = conditions.query(here, request, {*OPTIONS, "version"})
        return _answer(here, request, route, query, options, options.version)

    def many(request: Request, here: Here, options: Many) -> Response:
        query = conditions.query(here, request, OPTIONS)
        return _answer(here, request, route, query, options)

    async def follow(
        request: Request, here: Here, last_event_id: LastEventId = None, seconds: Seconds = None
    ) -> Response:
        query = conditions.query(here, request, {"seconds"})
        return await updates(here, route, query, last_event_id, seconds)

    about = inspect.cleandoc(route.kind.__doc__ or "")
    parameters = openapi.path_parameters(conditions.in_path)
    parameters += openapi.query_parameters(conditions.others)
    router.add_api_route(
        template(route.path),
        follow if route.updates else one if route.one else many,
        methods=["GET"],
        operation_id=route.operation,
        response_class=openapi.EventStream if route.updates else openapi.Json,
        responses=(openapi.stream(about) if route.updates else openapi.query(route))
        | backend.guard.responses,
        dependencies=backend.guard.streams if route.updates else backend.guard.reads,
        description=about,
        summary=openapi.words(route.kind, "Follow" if route.updates else ""),
        tags=[route.service.name],
        openapi_extra={"parameters": parameters},
    )


class Conditions:
    """The conditions of one query; ``in_path`` and ``others`` are the schemas of its parts."""

    def __init__(self, route: QueryRoute, schema: Schema) -> None:
        self._route = route
        named = fields_in(route.path)
        known: dict[str, Schema] = schema["properties"]
        self.in_path = {n: fields.in_path(s) for n, s in known.items() if n in named}
        self.others = {
            n: (fields.as_condition(s), n in schema["required"])
            for n, s in known.items()
            if n not in named and n not in route.fixed
        }
        self._schemas = self.in_path | {n: s for n, (s, _) in self.others.items()}
        self._lists = {
            f.name for f in structs.fields(route.kind) if fields.takes_lists_only(f.type)
        }

    def query(self, here: Backend, request: Request, options: set[str]) -> Query:
        """The query of a request; raises a problem that names the condition."""
        given: dict[str, Any] = {n: request.path_params[n] for n in self.in_path}
        for name in request.query_params:
            if name in options:
                continue
            if name not in self.others:
                takes = ", ".join([*self.others, *sorted(options)])
                what = f"is unknown; {self._route.kind.__name__} takes {takes}"
                raise invalid(f"query.{name[:60]}", what)
            values = request.query_params.getlist(name)
            given[name] = values if len(values) > 1 or name in self._lists else values[0]
        for name, value in given.items():
            if isinstance(value, str) and not fields.written(value, self._schemas[name]):
                raise invalid(self._where(name), f"is of another type, got {value[:60]!r}")
        try:
            query = made(self._route.kind, {**given, **self._route.fixed})
        except UsageError as error:
            found = re.search(r"`\$\.(\w+)|field `(\w+)`", str(error))
            name = (found[1] or found[2]) if found else ""
            raise invalid(self._where(name), str(error)) from None
        for name in given:
            value = getattr(query, name)
            wrong = here.schemas.wrong(value, self._schemas[name])
            if wrong not in ("", fields.OTHER):
                raise invalid(self._where(name), wrong)
        return query

    def _where(self, name: str) -> str:
        return f"path.{name}" if name in self.in_path else f"query.{name}"


def _answer(
    here: Backend,
    request: Request,
    route: QueryRoute,
    query: Query,
    options: FreshOptions,
    version: int | None = None,
) -> Response:
    """The answer to a query: 304 if the client has it already, 404 if there is none."""
    asked = here.queries.asked(query)
    goal = None
    if version is not None:
        if asked.stream is None:
            raise UsageError(f"version is of one stream, and {query!r:.200} is not about one")
        goal = Version(*asked.stream, version)
    found, headers = _found(here, asked, options, goal)
    if found is None:
        problem = not_found(f"answer to {reprlib.repr(query)}")
        problem.headers = headers
        raise problem
    if asked.stream is not None and (at := answers.version(found)) is not None:
        headers["ETag"] = f'"{at}"'
        if isinstance(options, OneOptions) and options.holds(headers["ETag"]):
            return Response(status_code=304, headers=headers)
    if isinstance(found, Page) and found.cursor:
        headers["Link"] = f'<{_next(request, route, found.cursor)}>; rel="next"'
    body = encode(answers.shown(found, route))
    return Response(body, headers=headers, media_type="application/json")


def _found(
    here: Backend, asked: Asked, options: FreshOptions, goal: Version | None
) -> tuple[Any, dict[str, str]]:
    """What a query finds, as fresh as the client asks; if the views are too far behind, and the
    operator wants it so, as fresh as it is. Headers then say how old."""
    headers: dict[str, str] = {}

    def answer() -> Any:
        age = here.guard.age(asked.services)
        waits = bool(options.token or goal) or options.freshness == "linearizable"
        if waits and here.guard.gives_way(options.request, age, "query"):
            headers["Labkit-Freshness"] = "eventual"
            found = here.queries.answer(asked).value
        else:
            found = here.queries.answer(asked, here.fresh(options, goal)).value
            if waits:  # the view is no longer as old as it was before
                age = here.guard.age(asked.services, anew=True)
        if age is not None:
            headers["Age"] = str(math.ceil(age))
        return found

    return here.guard.mongodb(answer), headers


def _next(request: Request, route: QueryRoute, cursor: str) -> str:
    kept = [(k, v) for k, v in request.query_params.multi_items() if k != "cursor"]
    return f"{filled(route.path, request.path_params)}?{urlencode([*kept, ('cursor', cursor)])}"
