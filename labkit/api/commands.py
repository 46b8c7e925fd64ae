"""Commands over HTTP: a resource for each public one, and one for what has become of it.

The path and the JSON body hold the fields of the command. It is answered 202 as soon as the broker
has acknowledged it, and not before. With ``Prefer: wait=N`` it is answered when it is handled: 200
or 201 with the version, 409 where a rule said no. The id of what a command creates may be left out:
it is derived from the idempotency key, or new.
"""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from labkit.api import fields, openapi
from labkit.api.addresses import CommandRoute, fields_in
from labkit.api.backend import Backend, Here, new_stream
from labkit.api.fields import Schema
from labkit.api.problems import Problem, invalid
from labkit.api.request_options import Change, ChangeWishes, Create, Options
from labkit.api.schema import CommandStatus, TokenInPath
from labkit.errors import Refused
from labkit.messages import Command


async def sent(request: Request) -> bytes:
    """The body as it came."""
    return await request.body()


Sent = Annotated[bytes, Depends(sent)]


def routes(backend: Backend) -> APIRouter:
    """The public commands of a run's services."""
    router = APIRouter()
    for route in backend.addresses.commands:
        _add(router, backend, route)
    router.add_api_route(
        "/commands/{token}",
        command_status,
        operation_id="getCommand",
        response_model=CommandStatus,
        responses=openapi.problems(404, 422, 503),
        tags=["commands"],
    )
    return router


def command_status(token: TokenInPath, here: Here) -> CommandStatus:
    """What has become of a command."""
    return here.status(token)


def _add(router: APIRouter, backend: Backend, route: CommandRoute) -> None:
    schema = backend.schemas.of(route.kind)
    form = Form(route, schema)

    def create(request: Request, sent: Sent, here: Here, wishes: Create) -> Response:
        return here.submit(form.command(here, request, sent, wishes), wishes, creates=True)

    def change(request: Request, sent: Sent, here: Here, wishes: Change) -> Response:
        return here.submit(form.command(here, request, sent, wishes), wishes)

    extra: dict[str, Any] = {"parameters": openapi.path_parameters(form.in_path)}
    if route.method != "DELETE" or form.body["properties"]:
        content = {"application/json": {"schema": form.body}}
        extra["requestBody"] = {"required": form.needed, "content": content}
    router.add_api_route(
        route.path,
        create if route.creates else change,
        methods=[route.method],
        operation_id=route.operation,
        status_code=201 if route.creates else 200,
        responses=openapi.command(backend.addresses, route),
        description=inspect.cleandoc(route.kind.__doc__ or ""),
        summary=openapi.words(route.kind),
        tags=[route.service.name],
        openapi_extra=extra,
    )


class Form:
    """Makes a command of a request; ``in_path`` and ``body`` are the schemas of its two parts."""

    def __init__(self, route: CommandRoute, schema: Schema) -> None:
        self._route = route
        self._types = {f.name: f.type for f in msgspec.structs.fields(route.kind)}
        named = fields_in(route.path)
        known: dict[str, Schema] = {n: schema["properties"][n] for n in self._types}
        self.in_path = {n: fields.in_path(known[n]) for n in self._types if n in named}
        rest = {n: s for n, s in known.items() if n not in named}
        if route.creates:  # its address has the id in it
            rest[route.key] = fields.in_path(rest[route.key])
        required = [n for n in schema["required"] if n in rest]
        if route.creates and route.key in required:
            required.remove(route.key)
        self.body: Schema = {
            "type": "object",
            "title": route.kind.__name__,
            "properties": rest,
            "required": required,
            "additionalProperties": False,
        }
        examples = {n: s["examples"][0] for n, s in rest.items() if s.get("examples")}
        if set(required) <= set(examples):
            self.body["examples"] = [examples]
        #: Whether there must be a body: browsers send requests without one across sites.
        self.needed = route.method != "DELETE" or bool(required)

    def command(
        self, here: Backend, request: Request, sent: bytes, wishes: Options | ChangeWishes
    ) -> Command:
        """The command, checked alone; raises a problem."""
        path = self._from_path(request, here)
        values = fields.whole(self._read(request, sent), self.body["properties"])
        if unknown := sorted(values.keys() - self.body["properties"].keys()):
            takes = ", ".join(self.body["properties"]) or "no fields"
            what = f"is unknown; {self._route.kind.__name__} takes {takes}"
            raise invalid(f"body.{unknown[0]}", what)
        if self._route.creates and self._route.key not in values:
            values[self._route.key] = new_stream(wishes)
        try:
            command = msgspec.convert(values | path, self._route.kind)
        except msgspec.ValidationError as error:
            raise _unfit("body", error) from None
        for name, value in values.items():
            if wrong := here.schemas.wrong(value, self.body["properties"][name]):
                raise invalid(f"body.{name}", wrong)
        try:
            command.validate()
        except Refused as refused:
            raise Problem(422, "unusable", str(refused)) from None
        return command

    def _from_path(self, request: Request, here: Backend) -> dict[str, Any]:
        found = {}
        for name, schema in self.in_path.items():
            text = request.path_params[name]
            if not fields.written(text, schema):
                raise invalid(f"path.{name}", f"is of another type, got {text[:60]!r}")
            try:
                value = msgspec.convert(text, self._types[name], strict=False)
            except msgspec.ValidationError as error:
                raise _unfit(f"path.{name}", error) from None
            found[name] = msgspec.to_builtins(value)
            if wrong := here.schemas.wrong(found[name], schema):
                raise invalid(f"path.{name}", wrong)
        return found

    def _read(self, request: Request, sent: bytes) -> dict[str, Any]:
        if not sent and not self.needed:
            return {}
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json" and not media.endswith("+json"):
            raise invalid("body", f"must be sent as application/json, got {media[:60]!r}")
        try:
            found = msgspec.json.decode(sent)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unread(sent, error) from None
        if not isinstance(found, dict):
            raise invalid("body", "must be an object")
        return found


def _unread(sent: bytes, error: Exception) -> Problem:
    """JSON may hold what no message can: a number without end, half a character."""
    try:
        json.loads(sent, parse_constant=int)
    except (ValueError, RecursionError):
        return Problem(400, "malformed", f"the body is no JSON: {error}")
    return invalid("body", str(error))


def _unfit(where: str, error: Exception) -> Problem:
    """Where it says so, msgspec names the place: ``... - at `$.quantity```."""
    what, _, place = str(error).partition(" - at `$")
    inner = place.rstrip("`").lstrip(".")
    if missing := what.partition("missing required field `")[2]:
        inner = ".".join(filter(None, (inner, missing.rstrip("`"))))
    return invalid(".".join(filter(None, (where, inner))), what)
