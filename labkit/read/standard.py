"""The queries that every view has: a document by its id, and all documents in pages."""

from __future__ import annotations

from labkit.messages import Document
from labkit.service import Limit, Page, Query, Views


class ById(Query, frozen=True):
    """One document of a view (``service.view``) by its id; ``None`` if there is none."""

    view: str
    id: str

    def read(self, views: Views) -> Document | None:
        return views.get(self.view, self.id)


class All(Query, frozen=True):
    """A page of all documents of a view (``service.view``), by id."""

    view: str
    limit: Limit = 100
    cursor: str = ""

    def read(self, views: Views) -> Page:
        return views.page(self.view, limit=self.limit, cursor=self.cursor)


STANDARD = (ById, All)
