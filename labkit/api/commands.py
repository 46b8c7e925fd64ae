"""Commands over HTTP: a resource for each public one, and one for what has become of it.

The path and the JSON body hold the fields of the command. It is answered 202 as soon as the broker
has acknowledged it, and not before. With ``Prefer: wait=N`` it is answered when it is handled: 200
or 201 with the version, 409 where a rule said no. The id of what a command creates may be left out:
it is derived from the idempotency key, or new.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from labkit.api import openapi
from labkit.api.addresses import CommandRoute
from labkit.api.backend import Backend, Here
from labkit.api.forms import Form
from labkit.api.request_options import Change, Create
from labkit.api.schema import CommandStatus, TokenInPath


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
    form = Form(route, backend.schemas)

    def create(request: Request, sent: Sent, here: Here, wishes: Create) -> Response:
        return here.submit(form.command(request, sent, wishes), wishes, creates=True)

    def change(request: Request, sent: Sent, here: Here, wishes: Change) -> Response:
        return here.submit(form.command(request, sent, wishes), wishes)

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
