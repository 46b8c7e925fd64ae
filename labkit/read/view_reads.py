"""What a query reads from: the views of some services, at one instant, with a note of each read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labkit.errors import UsageError
from labkit.messages import Document
from labkit.read.generations import Serving
from labkit.read.pages import page
from labkit.service import Page
from labkit.service.query import Sort, Which

#: A collection, and an id in it; ``None``: all of it.
Place = tuple[str, str | None]


class ViewReads:
    """Reads by view; ``collections`` holds those that the query may read.

    ``places`` are the documents that were read, so that whoever keeps the answer knows which
    changes concern it.
    """

    def __init__(self, serving: Serving, collections: Mapping[Which, str]) -> None:
        self._serving = serving
        self._collections = collections
        self.places: set[Place] = set()

    def get(self, view: Which, id: str) -> Document | None:
        return self.load(view, [id]).get(id)

    def load(self, view: Which, ids: Iterable[str]) -> dict[str, Document]:
        collection, wanted = self._collection(view), list(ids)
        self.places.update((collection, id) for id in wanted)
        return self._serving.load(collection, wanted)

    def find(
        self,
        view: Which,
        *,
        sort: Sort = (),
        limit: int = 0,
        at_most: Mapping[str, int] | None = None,
        **equal: Any,
    ) -> list[Document]:
        return self._serving.find(self._all_of(view), equal, _sorting(sort), limit, at_most)

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
        sorting = _sorting(sort)
        if all(field != "_id" for field, _ in sorting):
            sorting.append(("_id", sorting[-1][1] if sorting else 1))
        collection = self._all_of(view)
        return page(self._serving, collection, equal, sorting, limit, cursor, at_most)

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
        return self._serving.totals(self._all_of(view), by, fields, sort, limit, equal)

    def count(self, view: Which) -> int:
        return self._serving.count(self._all_of(view))

    def _all_of(self, view: Which) -> str:
        collection = self._collection(view)
        self.places.add((collection, None))
        return collection

    def _collection(self, view: Which) -> str:
        if (found := self._collections.get(view)) is None:
            name = view if isinstance(view, str) else view.__name__
            known = ", ".join(sorted(key for key in self._collections if isinstance(key, str)))
            raise UsageError(
                f"this query cannot read the view {name!r}, but {known or 'none'}; a query of "
                "another service's view names it in `reads`, and that service is part of the run"
            )
        return found


def _sorting(sort: Sort) -> list[tuple[str, int]]:
    fields = [sort] if isinstance(sort, str) else list(sort)
    return [(f.removeprefix("-"), -1 if f.startswith("-") else 1) for f in fields if f]
