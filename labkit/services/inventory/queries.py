"""What the views of the stock answer, one of them with the orders beside it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from labkit.messages import Document
from labkit.service import Limit, Page, Query, Views
from labkit.services.bounds import ProductId
from labkit.services.inventory.views import Stock


class StockOf(Query, frozen=True):
    """The stock of one product; ``None`` if the view has not seen it."""

    product: ProductId
    path = "/stock/{product}"

    def read(self, views: Views) -> Document | None:
        """By its id."""
        return views.get(Stock, self.product)


class LowStock(Query, frozen=True):
    """A page of the products of which at most ``at_most`` pieces are free, the fewest first."""

    at_most: Annotated[int, Meta(ge=0, le=2**31)] = 10
    limit: Limit = 100
    cursor: str = ""
    path = "/stock"

    def read(self, views: Views) -> Page:
        """What is on hand is free: what orders hold is taken off already."""
        most = {"on_hand": self.at_most}
        return views.page(Stock, sort="on_hand", at_most=most, limit=self.limit, cursor=self.cursor)


QUERIES: list[type[Query]] = [StockOf, LowStock]
