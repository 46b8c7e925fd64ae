"""The built-in services, for tests that go over all of them."""

from __future__ import annotations

from labkit.read.projection import ServiceProjection
from labkit.run import references
from labkit.service import Process, Service

SERVICES: dict[str, Service] = {
    name: references.service(name) for name in ("orders", "catalog", "inventory", "bank")
}
PROCESSES: dict[str, Process] = {
    name: references.process(name) for name in ("fulfilment", "transfer")
}
PROJECTIONS = {name: ServiceProjection(service) for name, service in SERVICES.items()}

#: The collections of the views of orders.
ORDER_DOCUMENTS = "orders.view.orders"
CUSTOMER_SUMS = "orders.view.customers"
MONTH_SUMS = "orders.view.months"
ORDER_VIEWS = (ORDER_DOCUMENTS, CUSTOMER_SUMS, MONTH_SUMS)
