"""What the view of the catalog answers."""

from __future__ import annotations

from labkit.messages import Document
from labkit.service import Query, Views
from labkit.services.bounds import CustomerId, ProductId
from labkit.services.catalog.views import Entries


class Products(Query, frozen=True):
    """All products that are listed, by id."""

    path = "/products"

    def read(self, views: Views) -> list[Document]:
        """By their kind."""
        return views.find(Entries, kind="product", sort="id")


class ProductById(Query, frozen=True):
    """One product; ``None`` if it is not listed."""

    product: ProductId
    path = "/products/{product}"

    def read(self, views: Views) -> Document | None:
        """By its stream."""
        return views.get(Entries, f"product-{self.product}")


class CustomerById(Query, frozen=True):
    """One customer; ``None`` if not registered."""

    customer: CustomerId
    path = "/customers/{customer}"

    def read(self, views: Views) -> Document | None:
        """By its stream."""
        return views.get(Entries, f"customer-{self.customer}")


QUERIES: list[type[Query]] = [Products, ProductById, CustomerById]
