"""Commands over HTTP: a route for each public command, and one for the outcome of a command.

A command is answered with 202 once the broker has acknowledged it, and not before. With
``Prefer: wait=N`` it is answered when it is handled: 200 or 201 with the version, 409 if a rule
refused it.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from labkit.api import openapi
from labkit.api.addresses import CommandRoute
from labkit.api.backend import Backend, Here
from labkit.api.forms import Form
from labkit.api.paths import template
from labkit.api.request_options import Change, Create
from labkit.api.schema import CommandStatus, TokenInPath


async def sent(request: Request) -> bytes:
    """The body, not decoded."""
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
        responses=openapi.problems(404, 422, 503) | backend.guard.responses,
        dependencies=backend.guard.reads,
        tags=["commands"],
    )
    return router


def command_status(token: TokenInPath, here: Here) -> CommandStatus:
    """The outcome of a command."""
    return here.status(token)


def _add(router: APIRouter, backend: Backend, route: CommandRoute) -> None:
    form = Form(route, backend.schemas)

    def create(request: Request, sent: Sent, here: Here, options: Create) -> Response:
        return here.submit(form.command(request, sent, options), options, creates=True)

    def change(request: Request, sent: Sent, here: Here, options: Change) -> Response:
        return here.submit(form.command(request, sent, options), options)

    extra: dict[str, Any] = {"parameters": openapi.path_parameters(form.in_path)}
    if route.method != "DELETE" or form.body["properties"]:
        content = {"application/json": {"schema": form.body}}
        extra["requestBody"] = {"required": form.needed, "content": content}
    router.add_api_route(
        template(route.path),
        create if route.creates else change,
        methods=[route.method],
        operation_id=route.operation,
        status_code=201 if route.creates else 200,
        responses=openapi.command(backend.addresses, route) | backend.guard.responses,
        dependencies=backend.guard.commands,
        description=inspect.cleandoc(route.kind.__doc__ or ""),
        summary=openapi.words(route.kind),
        tags=[route.service.name],
        openapi_extra=extra,
    )
