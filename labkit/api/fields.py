"""The JSON schemas of message fields, and a check of values against them.

The schemas come from the types and are part of ``/openapi.json``. All they say is enforced,
also the bounds that a type only documents (``Meta(extra_json_schema=...)``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct, inspect

from labkit.messages import MAX_ID

Schema = dict[str, Any]

#: What the id of a stream can be.
ID = r"^[^\x00]"
#: The integers that MongoDB can hold.
WHOLE = {"minimum": -(2**63), "maximum": 2**63 - 1}
#: The characters of a text condition without a limit of its own.
MAX_TEXT = 4_000
REF = "#/components/schemas/"

#: The notation of values in an address, by type; text is not restricted.
WRITTEN = {
    "integer": re.compile(r"-?[0-9]{1,19}"),
    "number": re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?"),
    "boolean": re.compile(r"true|false"),
}
TYPES: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
    "null": type(None),
}


class Schemas:
    """The schemas of struct types; ``components`` are those that they refer to."""

    def __init__(self, kinds: Iterable[type[Struct]]) -> None:
        every = list(dict.fromkeys(kinds))
        refs, self.components = msgspec.json.schema_components(every, ref_template=f"{REF}{{name}}")
        for schema in self.components.values():
            _bound(schema)
        self._names = {k: ref["$ref"].removeprefix(REF) for k, ref in zip(every, refs, strict=True)}
        #: The schemas that fields refer to.
        self.nested = {n: s for n, s in self.components.items() if n not in self._names.values()}

    def of(self, kind: type[Struct]) -> Schema:
        """The schema of a type."""
        found: Schema = self.components[self._names[kind]]
        return found

    def _found(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self.components[schema["$ref"].removeprefix(REF)]
        return schema

    def whole(self, value: Any, schema: Schema) -> Any:
        """A value with its integers as such: in JSON Schema 5.0 is one, too."""
        schema = self._found(schema)
        choices = [self._found(choice) for choice in schema.get("anyOf", [schema])]
        kinds = {choice.get("type") for choice in choices}
        if isinstance(value, float) and value.is_integer():
            return int(value) if "integer" in kinds and "number" not in kinds else value
        for choice in choices:
            if isinstance(value, dict) and (known := choice.get("properties")):
                return {name: self.whole(v, known.get(name, {})) for name, v in value.items()}
            if isinstance(value, list) and (items := choice.get("items")):
                return [self.whole(item, items) for item in value]
        return value

    def wrong(self, value: Any, schema: Schema) -> str:
        """Why a value does not fit a schema; empty if it does."""
        schema = self._found(schema)
        if parts := schema.get("allOf"):
            rest = {name: part for name, part in schema.items() if name != "allOf"}
            return next(filter(None, (self.wrong(value, part) for part in (*parts, rest))), "")
        if choices := schema.get("anyOf"):
            found = [self.wrong(value, choice) for choice in choices]
            return "" if "" in found else next((w for w in found if w != OTHER), OTHER)
        kind = TYPES.get(schema.get("type", ""))
        if kind is not None and not isinstance(value, kind):
            return OTHER
        if isinstance(value, dict):
            known = schema.get("properties", {})
            fields = [self.wrong(v, known[name]) for name, v in value.items() if name in known]
            return next(filter(None, fields), "")
        if isinstance(value, list):
            items = [self.wrong(item, schema.get("items", {})) for item in value]
            return next(filter(None, items), "") or _outside(len(value), schema, "Items")
        if isinstance(value, str):
            return _wrong_text(value, schema)
        return _outside(value, schema) if isinstance(value, (int, float)) else ""


OTHER = "is of another type"


def _wrong_text(value: str, schema: Schema) -> str:
    pattern = schema.get("pattern")
    if pattern and not re.search(pattern, value):
        return f"must match {pattern}, got {value[:60]!r}"
    return _outside(len(value), schema, "Length")


def _outside(value: float, schema: Schema, of: str = "") -> str:
    """Why a number, or a length, is outside its bounds; empty if it is not."""
    low, high = schema.get(f"min{of or 'imum'}"), schema.get(f"max{of or 'imum'}")
    if (low is None or value >= low) and (high is None or value <= high):
        return ""
    what = {"": "must be", "Length": "must have a length", "Items": "must have items"}[of]
    bounds = [f"at least {low}"] if low is not None else []
    bounds += [f"at most {high}"] if high is not None else []
    return f"{what} {' and '.join(bounds)}, got {value}"


def _bound(schema: Any) -> None:
    """Give integers without bounds those of the store."""
    if isinstance(schema, list):
        for part in schema:
            _bound(part)
    elif isinstance(schema, dict):
        if schema.get("type") == "integer":
            for bound, exclusive in (
                ("minimum", "exclusiveMinimum"),
                ("maximum", "exclusiveMaximum"),
            ):
                if exclusive not in schema:
                    schema.setdefault(bound, WHOLE[bound])
        for name, part in schema.items():
            if name not in ("default", "examples", "enum", "const"):
                _bound(part)


def in_path(schema: Schema) -> Schema:
    """The schema of a field that is a segment of a path."""
    found = without_null(schema)
    found.pop("default", None)
    if found.get("type") != "string" or "enum" in found:
        return found
    return {"minLength": 1, "maxLength": MAX_ID, "pattern": ID, **found}


def as_condition(schema: Schema) -> Schema:
    """The schema of a field that is a query parameter."""
    found = without_null(schema)
    if found.get("default", 0) is None:
        del found["default"]
    texts = [choice for choice in found.get("anyOf", ()) if choice.get("type") == "string"]
    if len(texts) == 1:  # the field is a list, or one text
        found = {**{k: v for k, v in found.items() if k != "anyOf"}, **texts[0]}
    if found.get("type") == "string" and "enum" not in found:
        found.setdefault("maxLength", MAX_TEXT)
    return found


def without_null(schema: Schema) -> Schema:
    """A schema without its choice of null: an optional parameter is left out instead."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    if len(choices) != len(schema.get("anyOf", ())) and len(choices) == 1:
        return {**{k: v for k, v in schema.items() if k != "anyOf"}, **choices[0]}
    return {**schema, "anyOf": choices} if choices else dict(schema)


def written(text: str, schema: Schema) -> bool:
    """Whether text in an address can stand for a value of this type."""
    kinds = {s.get("type", "") for s in (schema, *schema.get("anyOf", ()))} & WRITTEN.keys()
    is_text = any(s.get("type") == "string" for s in (schema, *schema.get("anyOf", ())))
    return is_text or not kinds or any(WRITTEN[kind].fullmatch(text) for kind in kinds)


def takes_lists_only(hint: Any) -> bool:
    """Whether a condition is a list also if one value is given."""
    info = inspect.type_info(hint)
    while isinstance(info, inspect.Metadata):
        info = info.type
    kinds = info.types if isinstance(info, inspect.UnionType) else (info,)
    plain = [kind.type if isinstance(kind, inspect.Metadata) else kind for kind in kinds]
    lists = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType)
    return any(isinstance(kind, lists) for kind in plain) and not any(
        isinstance(kind, inspect.StrType) for kind in plain
    )
