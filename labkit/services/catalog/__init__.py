"""The catalog: customers and products, each a stream of its own."""

from labkit.service import Service
from labkit.services.catalog.messages import (
    EVENTS,
    ChangePrice,
    CustomerRegistered,
    ListProduct,
    PriceChanged,
    ProductListed,
    RegisterCustomer,
)
from labkit.services.catalog.queries import QUERIES, CustomerById, ProductById, Products
from labkit.services.catalog.rules import DECIDE, CatalogEntry, evolve
from labkit.services.catalog.views import Entries
from labkit.services.catalog.workload import WORKLOADS

CATALOG = Service(
    "catalog",
    decide=DECIDE,
    events=EVENTS,
    evolve=evolve,
    state=CatalogEntry,
    views=[Entries()],
    queries=QUERIES,
    public={
        RegisterCustomer: "POST /customers",
        ListProduct: "POST /products",
        ChangePrice: "PUT /products/{product_id}/price",
    },
    workload=WORKLOADS,
)

__all__ = [
    "CATALOG",
    "DECIDE",
    "EVENTS",
    "QUERIES",
    "WORKLOADS",
    "CatalogEntry",
    "ChangePrice",
    "CustomerById",
    "CustomerRegistered",
    "Entries",
    "ListProduct",
    "PriceChanged",
    "ProductById",
    "ProductListed",
    "Products",
    "RegisterCustomer",
    "evolve",
]
