"""The view of the catalog: customers and products.

Collection ``catalog.view.entries``: {_id: stream, version, trace, kind, id, name, cents}.
"""

from __future__ import annotations

from typing import Any

from labkit.messages import Document
from labkit.service import View
from labkit.services.catalog.messages import CustomerRegistered, PriceChanged, ProductListed


class Entries(View):
    """A customer or a product."""

    indexes = (("kind", "id"),)

    def apply(self, document: Any, event: Any) -> Document:
        """Fold one event."""
        match event:
            case CustomerRegistered():
                return {"kind": "customer", "id": event.customer_id, "name": event.name}
            case ProductListed():
                fields = {"kind": "product", "id": event.product_id, "name": event.name}
                return {**fields, "cents": event.cents}
            case PriceChanged():
                document["cents"] = event.cents
        return document  # type: ignore[no-any-return]
