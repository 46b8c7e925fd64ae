"""Queries: one struct for each question, with its conditions as fields.

::

    class TicketsOf(Query):
        customer: str
        limit: Limit = 100
        cursor: str = ""

        def read(self, views: Views) -> Page:
            return views.page(Tickets, customer=self.customer, limit=self.limit, cursor=self.cursor)

The one declaration serves Python (``lab.ask(TicketsOf("ann"))``), the query bus over Kafka, and
HTTP (``GET /desk/tickets-of?customer=ann``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol

import msgspec
from msgspec import Meta, Struct

from labkit.errors import UsageError
from labkit.messages import Document
from labkit.service.view import View

#: Rows of one page at most.
MAX_PAGE = 1_000
Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE)]
#: A view by its class, or by ``service.view``.
Which = type[View] | str
#: Sorting: a field, or several; a leading ``-`` sorts downwards.
Sort = str | Sequence[str]


class Page(Struct, frozen=True):
    """A part of a long answer; the next page begins at ``cursor`` (empty: this was the last)."""

    rows: list[Document]
    cursor: str = ""


class Views(Protocol):
    """What a query reads from: views, all at one instant."""

    def get(self, view: Which, id: str) -> Document | None:
        """One document by its id."""

    def load(self, view: Which, ids: Iterable[str]) -> dict[str, Document]:
        """The documents that exist among ``ids``."""

    def find(
        self,
        view: Which,
        *,
        sort: Sort = (),
        limit: int = 0,
        at_most: Mapping[str, int] | None = None,
        **equal: Any,
    ) -> list[Document]:
        """The documents whose fields have these values; without ``limit``, all."""

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
        """A page of what ``find`` gives; equal rows are sorted by ``_id``."""

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
        """Sums of ``fields`` for each value of ``by`` (as ``_id``): the largest ``sort`` first, or
        in the order of ``_id``."""

    def count(self, view: Which) -> int:
        """The number of documents."""


class Query(Struct, frozen=True, forbid_unknown_fields=True):
    """The root of all queries. ``reads`` names the views it reads, if not only its own service's.

    ``path`` is its address over HTTP, with conditions in braces; the default is
    ``/{service}/{name-of-the-class}``.
    """

    reads: ClassVar[tuple[type[View], ...]] = ()
    path: ClassVar[str] = ""

    def read(self, views: Any) -> Any:
        """The answer: a document, ``None``, a list, a ``Page`` or a number.

        Raises ``UsageError`` that names a condition which cannot be. It is stopped if it does not
        end (``guard.LOOKS``).
        """
        raise NotImplementedError(f"{type(self).__name__} needs read(views)")


def kebab(name: str) -> str:
    """``TicketsOf`` -> ``tickets-of``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def made(kind: type[Query], conditions: Mapping[str, Any]) -> Query:
    """A query from its conditions; numbers may be text, as people type them and addresses carry.

    Raises ``UsageError`` that names the condition and what it takes.
    """
    fields = kind.__struct_fields__
    if unknown := sorted(set(conditions) - set(fields)):
        takes = ", ".join(fields) or "no conditions"
        raise UsageError(f"{kind.__name__} has no condition {unknown[0][:60]!r}; it takes {takes}")
    try:
        return msgspec.convert(dict(conditions), kind, strict=False)
    except msgspec.ValidationError as error:
        shown = {name: value for name, value in conditions.items() if f"`$.{name}" in str(error)}
        got = str(shown or dict(conditions))[:200]
        raise UsageError(f"{kind.__name__}: {error}, got {got}") from None


def checked(query: Query) -> Query:
    """The same query with its conditions checked: structs do not check what Python gives them."""
    if not isinstance(query, Query):
        raise UsageError(f"a query is an object of a Query class, with conditions; got {query!r}")
    return made(type(query), {name: getattr(query, name) for name in query.__struct_fields__})
