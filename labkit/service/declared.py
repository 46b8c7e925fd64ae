"""What can be checked of a service when it is declared, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from labkit.errors import UsageError
from labkit.messages import Command, Document
from labkit.service.guard import Misbehaved, guarded
from labkit.service.query import Page, Query, Sort, Which, kebab
from labkit.service.view import View

METHODS = ("POST", "PUT", "PATCH", "DELETE")
#: An address: text, or the name of a field in braces, between slashes.
PATH = re.compile(r"(/[^/{}?#%\s]+|/{\w+})+")
#: Conditions that the HTTP API has for itself.
TAKEN = {"freshness", "seconds", "timeout", "token", "version"}
#: The names of the queries that every view has (``read.standard``).
OF_EVERY_VIEW = {"all", "by-id"}


def addresses(
    service: str,
    commands: Sequence[type[Command]],
    public: Mapping[type[Command], str] | Iterable[type[Command]] | None,
) -> dict[type[Command], str]:
    """The public commands, each with its method and path."""
    if isinstance(public, Mapping):
        chosen = dict(public)
    else:
        every = commands if public is None else tuple(public)
        chosen = {c: f"POST /{service}/{{{key_of(c)}}}/{kebab(c.__name__)}" for c in every}
    for command, address in chosen.items():
        if command not in commands:
            raise UsageError(f"service {service!r}: {command!r} is public and has no decision")
        method, _, path = address.partition(" ")
        fields = set(re.findall(r"{(\w+)}", path))
        unknown = fields - set(command.__struct_fields__)
        if method not in METHODS or not PATH.fullmatch(path) or unknown:
            raise UsageError(
                f"service {service!r}: the address of {command.__name__} must be like "
                f"'POST /{service}/{{{key_of(command)}}}/...', got {address!r}"
            )
    return chosen


def key_of(command: type[Command]) -> str:
    """The field that names the stream: the first one."""
    fields: tuple[str, ...] = command.__struct_fields__
    if not fields:
        raise UsageError(f"{command.__name__} needs a field for the id of its stream, as its first")
    return fields[0]


def check_types(where: str, what: str, types: Iterable[Any], root: type) -> None:
    """Each is a type below ``root``, and no two have one name."""
    names: set[str] = set()
    for found in types:
        if not isinstance(found, type) or not issubclass(found, root):
            raise UsageError(f"{where}: {what} must be {root.__name__} types, got {found!r}")
        tag = getattr(found, "__struct_config__", None)
        name = str(getattr(tag, "tag", None) or found.__name__)
        if name in names:
            raise UsageError(f"{where}: {what} has two types {name!r}")
        names.add(name)


def check_streams(where: str, commands: Iterable[type[Command]]) -> None:
    """Each command names its stream: by its first field, or by a property of its own."""
    for command in commands:
        key = key_of(command)
        if command.stream is Command.stream:
            hint = msgspec.structs.fields(command)[0].type
            if not isinstance(_plain(inspect.type_info(hint)), inspect.StrType):
                raise UsageError(
                    f"{where}: the first field of {command.__name__} is the id of its stream and "
                    f"must be str, got {key}: {hint!r}"
                )


def made_view(view: View | type[View]) -> View:
    """A view, which may be given as its class."""
    return view() if isinstance(view, type) and issubclass(view, View) else view


def check_views(where: str, views: Sequence[View]) -> None:
    """Views have different names, and indexes that can be made."""
    for view in views:
        if not isinstance(view, View):
            raise UsageError(f"{where}: views must be View objects, got {view!r}")
    names = [view.name for view in views]
    for view in views:
        if names.count(view.name) > 1:
            raise UsageError(f"{where}: two views are named {view.name!r}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", view.name) or view.name == "parked":
            raise UsageError(f"{where}: {view.name!r} cannot be the name of a view")
        for index in view.indexes:
            if isinstance(index, str) or not all(isinstance(field, str) for field in index):
                raise UsageError(
                    f"{where}: an index of {view.name!r} is a tuple of fields, got {index!r}"
                )


def check_queries(where: str, views: Sequence[View], queries: Iterable[type[Query]]) -> None:
    """Conditions do not clash with the API's, and each is answered by an index.

    Queries are tried with sample conditions on views that hold nothing.
    """
    known = {type(view) for view in views}
    names: set[str] = set()
    for query in queries:
        name = kebab(query.__name__)
        if name in OF_EVERY_VIEW:
            raise UsageError(
                f"{where}: {name!r} is a query of every view; {query.__name__} needs another name"
            )
        if name in names:
            raise UsageError(f"{where}: two queries have the address {name!r}")
        names.add(name)
        if taken := TAKEN & set(query.__struct_fields__):
            raise UsageError(
                f"{where}: {query.__name__} has a condition {taken.pop()!r}, which the HTTP API "
                "has for itself; take another name"
            )
        for sample in samples(query):
            for view, fields in reads_of(sample).found:
                if not isinstance(view, type) or view not in {*known, *query.reads}:
                    continue
                if fields and not any(index[0].lstrip("-") in fields for index in view.indexes):
                    raise UsageError(
                        f"{where}: {query.__name__} asks {view.__name__} by "
                        f"{', '.join(sorted(fields))}, and no index of that view begins with one "
                        f"of them; add indexes = [({fields[0]!r},)]"
                    )


def samples(query: type[Query]) -> Iterator[Query]:
    """The query with all of its conditions, and with those alone that it needs."""
    fields = msgspec.structs.fields(query)
    for every in (True, False):
        given = {f.name: _sample(inspect.type_info(f.type)) for f in fields if every or f.required}
        yield query(**given)


def _plain(info: Any) -> Any:
    """The type below what is said of it for OpenAPI."""
    return info.type if isinstance(info, inspect.Metadata) else info


def _sample(info: Any) -> Any:
    info = _plain(info)
    match info:
        case inspect.StrType():
            return "x" * (info.min_length or 1)
        case inspect.IntType() | inspect.FloatType():
            return info.ge or info.gt or 1
        case inspect.LiteralType():
            return info.values[0]
        case inspect.BoolType():
            return True
        case inspect.UnionType():
            return _sample(next(t for t in info.types if not isinstance(t, inspect.NoneType)))
        case inspect.EnumType():
            return next(iter(info.cls))
    return []


def reads_of(query: Query) -> Empty:
    """What a query reads where views hold nothing.

    Raises ``UsageError`` if it does not end. Whatever else is wrong shows at the first real read: a
    sample may be nonsense.
    """
    views = Empty()
    try:
        guarded(query.read)(views)
    except Misbehaved as error:
        raise UsageError(f"{error}, where its views hold nothing") from None
    except Exception:
        pass
    return views


class Empty:
    """Views that hold nothing, and note what is read from them: ``found`` has each view with the
    fields that select."""

    def __init__(self) -> None:
        self.found: list[tuple[Which, list[str]]] = []
        #: The ids of documents that were read one by one.
        self.ids: list[tuple[Which, str]] = []

    def get(self, view: Which, id: str) -> Document | None:
        """Nothing."""
        self.load(view, [id])
        return None

    def load(self, view: Which, ids: Iterable[str]) -> dict[str, Document]:
        """Nothing."""
        self.found.append((view, []))
        self.ids += [(view, id) for id in ids]
        return {}

    def find(
        self,
        view: Which,
        *,
        sort: Sort = (),
        limit: int = 0,
        at_most: Mapping[str, int] | None = None,
        **equal: Any,
    ) -> list[Document]:
        """Nothing."""
        self.found.append((view, [*equal, *(at_most or {})]))
        return []

    def page(
        self,
        view: Which,
        *,
        sort: Sort = (),
        limit: int = 100,
        cursor: str = "",
        at_most: Mapping[str, int] | None = None,
        **equal: Any,
    ) -> Page:
        """An empty page."""
        return Page(self.find(view, at_most=at_most, **equal))

    def totals(
        self,
        view: Which,
        by: str,
        fields: Sequence[str],
        *,
        sort: str = "",
        limit: int = 0,
        **equal: Any,
    ) -> list[Document]:
        """Nothing."""
        return self.find(view, **equal)

    def count(self, view: Which) -> int:
        """None."""
        self.found.append((view, []))
        return 0
