"""From a request to a command: the path and the JSON body hold the fields.

The id of the stream that a command creates may be left out: it is derived from the idempotency key,
or new.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from fastapi import Request

from labkit.api import fields
from labkit.api.addresses import CommandRoute
from labkit.api.fields import Schema, Schemas
from labkit.api.paths import fields_in
from labkit.api.problems import Problem, invalid
from labkit.api.request_options import Options, derived
from labkit.errors import Refused
from labkit.messages import Command
from labkit.ports.ids import new_id


class Form:
    """The form of one command; ``in_path`` and ``body`` are the schemas of its two parts."""

    def __init__(self, route: CommandRoute, schemas: Schemas) -> None:
        self._route = route
        self._schemas = schemas
        schema = schemas.of(route.kind)
        self._types = {f.name: f.type for f in msgspec.structs.fields(route.kind)}
        named = fields_in(route.path)
        known: dict[str, Schema] = {n: schema["properties"][n] for n in self._types}
        self.in_path = {n: fields.in_path(known[n]) for n in self._types if n in named}
        rest = {n: s for n, s in known.items() if n not in named}
        if route.creates:  # its address has the id in it
            rest[route.key] = fields.in_path(rest[route.key])
        #: Whether the id may be left out: a new one fits its schema.
        self.makes_id = route.creates and not schemas.wrong(new_id(), rest[route.key])
        needed = {*schema["required"]} - ({route.key} if self.makes_id else set())
        required = [n for n in rest if n in needed]
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
        #: Whether a body must be sent. Without one, a browser would let any site send the command.
        self.needed = route.method != "DELETE" or bool(required)

    def command(self, request: Request, sent: bytes, options: Options) -> Command:
        """The command of a request, checked as far as no state is needed; raises a problem."""
        path = self._from_path(request)
        values = self._schemas.whole(self._read(request, sent), self.body)
        if unknown := sorted(values.keys() - self.body["properties"].keys()):
            takes = ", ".join(self.body["properties"]) or "no fields"
            what = f"is unknown; {self._route.kind.__name__} takes {takes}"
            raise invalid(f"body.{unknown[0]}", what)
        if self.makes_id and self._route.key not in values:
            values[self._route.key] = _new_stream(options)
        try:
            command = msgspec.convert(values | path, self._route.kind)
        except msgspec.ValidationError as error:
            raise _unfit("body", error) from None
        for name, value in values.items():
            if wrong := self._schemas.wrong(value, self.body["properties"][name]):
                raise invalid(f"body.{name}", wrong)
        try:
            command.validate()
        except Refused as refused:
            raise Problem("unusable", str(refused)) from None
        return command

    def _from_path(self, request: Request) -> dict[str, Any]:
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
            if wrong := self._schemas.wrong(found[name], schema):
                raise invalid(f"path.{name}", wrong)
        return found

    def _read(self, request: Request, sent: bytes) -> dict[str, Any]:
        if not sent and not self.needed:
            return {}
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json" and not media.endswith("+json"):
            what = f"it is sent as {media[:60]}" if media else "the request has no Content-Type"
            raise Problem(
                "media-type",
                f"the body must be sent with Content-Type: application/json; {what}",
                {"Accept": "application/json"},
            )
        try:
            found = msgspec.json.decode(sent)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unread(sent, error) from None
        if not isinstance(found, dict):
            raise invalid("body", "must be an object")
        return found


def _unread(sent: bytes, error: Exception) -> Problem:
    """400 for what is no JSON, with the place of the error; 422 for JSON that no message can hold,
    like half a character."""
    what, place = str(error), "body"
    try:
        json.loads(sent, parse_constant=int)
        return invalid(place, what)
    except json.JSONDecodeError as wrong:
        what, place = wrong.msg, f"body, line {wrong.lineno} column {wrong.colno}"
    except UnicodeDecodeError as wrong:
        what, place = wrong.reason, f"body, byte {wrong.start + 1}"
    except (ValueError, RecursionError):
        pass
    errors = [{"where": place, "what": what[:500]}]
    return Problem("malformed", f"{place}: no JSON: {what}"[:1_000], errors=errors)


def _unfit(where: str, error: Exception) -> Problem:
    """Where it says so, msgspec names the place: ``... - at `$.quantity```."""
    what, _, place = str(error).partition(" - at `$")
    inner = place.rstrip("`").lstrip(".")
    if missing := what.partition("missing required field `")[2]:
        inner = ".".join(filter(None, (inner, missing.rstrip("`"))))
    return invalid(".".join(filter(None, (where, inner))), what)


def _new_stream(options: Options) -> str:
    """The id of what is created: derived from the idempotency key, or new."""
    key = options.idempotency_key
    return new_id() if key is None else derived("stream", key)
