"""The types of the states of a run, so that a change without a new ``fold`` is seen at once.

What a run's handlers have saved is of the type that the state had then. A field that is gone, or
one that is new and has a default, would pass unseen and be wrong. So the run keeps of each fold of
each service what its state is made of::

    collection run   {_id: "orders.state.v1", fields: ["cents: ...", ...]}
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct, structs

from labkit.errors import Duplicate, UsageError
from labkit.log.snapshots import CURE
from labkit.ports.store import Store, Writes
from labkit.service import Service

#: What is said of a type, and does not change what is saved.
SAID = {"title", "description", "examples", "default"}


def check(store: Store, collection: str, services: Iterable[Service]) -> None:
    """Note the states of folds that are new; raises ``UsageError`` where a known one has changed.

    That a fold is new to the run is what raising it means.
    """
    every = {service.states: service for service in services}
    kept = store.load(collection, every)
    for name, service in every.items():
        today = fields(service.state)
        if name not in kept:
            document = {"_id": name, "fields": today}
            # Another worker may be first: of the same code, or it is told so itself.
            with suppress(Duplicate):
                store.advance(f"{collection}.checkpoints", [], Writes({collection: [document]}))
        elif differ := [
            f"{what} {line}"
            for what, these, others in (
                ("then", kept[name]["fields"], today),
                ("now", today, kept[name]["fields"]),
            )
            for line in these
            if line not in others
        ]:
            raise UsageError(
                f"{service.state.__qualname__}, the state of service {service.name!r}, has changed "
                f"since this run began ({'; '.join(differ)}): {CURE}"
            )


def fields(state: type[Struct]) -> list[str]:
    """What is saved of a state: a line ``name: type`` for each field and each of a part."""
    try:
        (root,), components = msgspec.json.schema_components([state])
    except TypeError:  # it has a type of its own somewhere
        return [f"{field.encode_name}: {field.type!r}" for field in structs.fields(state)]
    top = root["$ref"].rpartition("/")[2]
    return [
        f"{'' if name == top else f'{name}.'}{field}: {_text(schema)}"
        for name, part in components.items()
        for field, schema in part.get("properties", {"": part}).items()
    ]


def _text(schema: Any) -> str:
    return msgspec.json.encode(_bare(schema), order="deterministic").decode()


def _bare(schema: Any) -> Any:
    """Without what is only said of it."""
    if isinstance(schema, dict):
        return {key: _bare(value) for key, value in schema.items() if key not in SAID}
    return [_bare(value) for value in schema] if isinstance(schema, list) else schema
