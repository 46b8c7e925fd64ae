"""The addresses of a run: one for each public command, each query and each view of its services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, structs

from labkit.api.paths import fields_in, filled, order, shape
from labkit.errors import UsageError
from labkit.messages import Command
from labkit.read.projection import streams_of
from labkit.read.queries import Queries
from labkit.read.standard import All, ById
from labkit.service import Query, Service, View, declared

#: What the API has for itself.
OWN = (
    *("/", "/live", "/docs", "/docs/{name}", "/openapi.json", "/problems", "/problems/{kind}"),
    *("/commands/{token}", "/health/live", "/health/ready", "/metrics"),
)


class CommandRoute(Struct, frozen=True):
    """The address of a command. It creates its stream if its path does not name it."""

    service: Service
    kind: type[Command]
    method: str
    path: str
    operation: str

    @property
    def key(self) -> str:
        """The field that names the stream."""
        return declared.key_of(self.kind)

    @property
    def creates(self) -> bool:
        return self.key not in fields_in(self.path)

    def __str__(self) -> str:
        return f"the command {self.kind.__name__} of {self.service.name!r}"


class QueryRoute(Struct, frozen=True):
    """The address of a query; ``fixed`` are conditions that the address implies.

    ``one``: the query is about one stream. ``updates``: the route follows its answers.
    """

    service: Service
    kind: type[Query]
    path: str
    operation: str
    fixed: dict[str, str] = {}
    one: bool = False
    updates: bool = False

    @property
    def standard(self) -> bool:
        """Whether it is a query that every view has."""
        return bool(self.fixed)

    def __str__(self) -> str:
        of = f"the view {self.fixed['view']!r}" if self.fixed else f"of {self.service.name!r}"
        what = f"the query {self.kind.__name__} {of}"
        return f"the updates of {what}" if self.updates else what


class Addresses:
    """All routes; a path with text comes before one with a name in the same place.

    Raises ``UsageError`` if two routes have one address.
    """

    def __init__(self, services: Mapping[str, Service], queries: Queries) -> None:
        self._queries = queries
        self._taken: dict[str, object] = {f"GET {shape(p)}": f"the API's own {p}" for p in OWN}
        self._operations: set[str] = {"getCommand", "live", "ready", "metrics"}
        self.commands: list[CommandRoute] = []
        self.queries: list[QueryRoute] = []
        for service in services.values():
            self._add_commands(service)
        for service in services.values():
            for kind in service.queries.values():
                self._add_query(service, kind)
        for service in services.values():
            for view in service.views:
                self._add_view(service, view)
        self.commands.sort(key=lambda route: order(route.path))
        self.queries.sort(key=lambda route: order(route.path))
        self._plain = {filled(route.path, {}) for route in self.queries if "{" not in route.path}
        self._homes = {route.kind: self._home(route) for route in self.commands}

    # --- making them

    def _add_commands(self, service: Service) -> None:
        for kind, address in service.public.items():
            method, _, path = address.partition(" ")
            operation = self._operation(camel(kind.__name__), service)
            route = CommandRoute(service, kind, method, path, operation)
            self._take(f"{method} {shape(path)}", route)
            self.commands.append(route)

    def _add_query(self, service: Service, kind: type[Query]) -> None:
        name = next(name for name, known in service.queries.items() if known is kind)
        path = kind.path or f"/{service.name}/{name}"
        unknown = fields_in(path) - set(kind.__struct_fields__)
        if not declared.PATH.fullmatch(path) or unknown:
            raise UsageError(
                f"the path of {kind.__name__} must be like '/{service.name}/{{condition}}', with "
                f"conditions of the query in braces, got {path!r}"
            )
        operation = self._operation(camel(kind.__name__), service)
        route = QueryRoute(service, kind, path, operation, one=self._is_one(kind))
        self._take(f"GET {shape(path)}", route)
        self.queries.append(route)
        if route.one:
            follow = self._operation(camel(f"Follow{kind.__name__}"), service)
            updates = structs.replace(route, path=f"{path}/updates", operation=follow, updates=True)
            self._take(f"GET {shape(updates.path)}", updates)
            self.queries.append(updates)

    def _add_view(self, service: Service, view: View) -> None:
        path, fixed = f"/{service.name}/{view.name}", {"view": f"{service.name}.{view.name}"}
        name = f"{service.name}_{view.name}"
        one = service.collection(view) == streams_of(service)
        by_id = f"{path}/{{id}}"
        for route in (
            QueryRoute(service, All, path, camel(f"list_{name}"), fixed),
            QueryRoute(service, ById, by_id, camel(f"get_{name}"), fixed, one),
            QueryRoute(
                service, ById, f"{by_id}/updates", camel(f"follow_{name}"), fixed, one, True
            ),
        ):
            if self._taken.setdefault(f"GET {shape(route.path)}", route) is route:
                made = structs.replace(route, operation=self._operation(route.operation, service))
                self.queries.append(made)

    def _take(self, address: str, route: CommandRoute | QueryRoute) -> None:
        if (other := self._taken.setdefault(address, route)) is not route:
            raise UsageError(
                f"two routes have the address {address.split()[0]} {route.path}: {other} and "
                f"{route}; give one of them another path"
            )

    def _operation(self, name: str, service: Service) -> str:
        """A name that OpenAPI does not have yet, if need be with the service's in front."""
        if name in self._operations:
            name = camel(f"{service.name}_{name[0].upper()}{name[1:]}")
        while name in self._operations:
            name += "2"
        self._operations.add(name)
        return name

    # --- what is about one stream, and where that is found

    def _is_one(self, kind: type[Query]) -> bool:
        return any(self._stream(query) is not None for query in declared.samples(kind))

    def _stream(self, query: Query) -> tuple[str, str] | None:
        # Not checked: a sample need not fit its own bounds to show what is read.
        return self._queries._asked(query).stream

    def _home(self, route: CommandRoute) -> QueryRoute | None:
        """The query that shows the stream of a command by its id; else, the view that does."""
        own = [q for q in self.queries if q.service is route.service and q.one and not q.updates]
        for query in own:
            named = fields_in(query.path)
            required = {f.name for f in structs.fields(query.kind) if f.required}
            if not query.fixed and len(named) == 1 and required <= named:
                (field,) = named
                if self._same(route, query.kind, field):
                    return query
        return next((query for query in own if query.fixed), None)

    def _same(self, route: CommandRoute, kind: type[Query], field: str) -> bool:
        """Whether a query with an id reads the stream of a command with the same id."""
        try:
            sample = next(declared.samples(route.kind))  # type: ignore[arg-type]
            command: Any = structs.replace(sample, **{route.key: "x1"})
            return self._stream(kind(**{field: "x1"})) == (route.service.name, command.stream)
        except Exception:  # a sample need not make sense to the service's types
            return False

    def home(self, kind: type[Command]) -> QueryRoute | None:
        """The route that shows the stream of a command."""
        return self._homes.get(kind)

    def resource(self, command: Command, else_: str) -> str:
        """The address of what a command is about; ``else_`` if no view shows it."""
        if (home := self.home(type(command))) is None:
            return else_
        key = declared.key_of(type(command))
        id = command.stream if home.fixed else str(getattr(command, key))
        found = filled(home.path, dict.fromkeys(fields_in(home.path), id))
        if found not in self._plain:
            return found
        # The id is the name of another resource; the address by the view is free.
        view = next(
            (q for q in self.queries if q.fixed and q.one and q.service is home.service), None
        )
        return else_ if view is None else filled(view.path, {"id": command.stream})


def camel(name: str) -> str:
    """``OpenTicket``, ``open_ticket`` -> ``openTicket``."""
    head, *rest = name.split("_")
    joined = head + "".join(part[:1].upper() + part[1:] for part in rest)
    return joined[:1].lower() + joined[1:]
