"""Answers as JSON: always an object, without the bookkeeping of the views."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from labkit.api.addresses import QueryRoute
from labkit.api.fields import Schema
from labkit.read.queries import answer_type
from labkit.service import Page

#: An answer whose shape is not declared, or a document.
OBJECT: Schema = {"type": "object"}
ROWS: Schema = {
    "type": "object",
    "properties": {"rows": {"type": "array", "items": OBJECT}},
    "required": ["rows"],
}
VALUE: Schema = {"type": "object", "properties": {"value": {}}, "required": ["value"]}


def shown(answer: Any, route: QueryRoute) -> dict[str, Any]:
    """An answer as clients see it.

    A document is an object with ``id`` instead of ``_id``; pages, lists and mappings of documents
    are ``{"rows": [...]}``; anything else is ``{"value": ...}``.
    """
    if isinstance(answer, Page):
        answer = answer.rows
    elif isinstance(answer, dict) and _is_mapping(answer_type(route.kind)):
        answer = list(answer.values())
    if isinstance(answer, (list, tuple)):
        return {"rows": [_clean(row, route.standard) for row in answer]}
    if isinstance(answer, dict):
        return _clean(answer, route.standard)  # type: ignore[no-any-return]
    return {"value": answer}


def _clean(value: Any, keyed: bool = False) -> Any:
    """Documents without ``_id`` and ``trace``. A field ``id`` of the document itself stays, unless
    ``keyed``: then ``id`` is the key, by which the view finds the document.
    """
    if isinstance(value, (list, tuple)):
        return [_clean(part) for part in value]
    if not isinstance(value, dict):
        return value
    found = {n: _clean(part) for n, part in value.items()}
    if "_id" not in found:
        return found
    key = found.pop("_id")
    found.pop("trace", None)
    return {**found, "id": key} if keyed else {"id": key, **found}


def version(answer: Any) -> int | None:
    """The version that a document shows."""
    at = answer.get("version") if isinstance(answer, dict) else None
    return int(at) if isinstance(at, int) else None


def schema(route: QueryRoute) -> Schema:
    """The schema of a query's answers, as far as the annotation of its ``read`` says."""
    kind = answer_type(route.kind)
    if kind is Page or get_origin(kind) is list or _is_mapping(kind):
        return ROWS
    return VALUE if kind in (int, float, str, bool) else OBJECT


def _is_mapping(kind: Any) -> bool:
    """Whether answers are documents by id: ``dict[str, Document]``."""
    if get_origin(kind) is not dict:
        return False
    values = get_args(kind)[1]
    return values is dict or get_origin(values) is dict
