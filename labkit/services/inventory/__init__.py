"""The stock of products: receive, reserve, release, ship, adjust."""

from labkit.service import Service
from labkit.services.inventory.audit import audit
from labkit.services.inventory.messages import (
    EVENTS,
    AdjustStock,
    ReceiveStock,
    ReleaseStock,
    ReservationCommand,
    ReserveStock,
    ShipStock,
    StockAdjusted,
    StockCommand,
    StockEvent,
    StockReceived,
    StockReleased,
    StockReserved,
    StockShipped,
)
from labkit.services.inventory.model import InventoryModel
from labkit.services.inventory.notices import notices
from labkit.services.inventory.queries import QUERIES, LowStock, StockOf
from labkit.services.inventory.rules import DECIDE, MAX_RESERVATIONS, StockState, evolve
from labkit.services.inventory.views import Held, Stock
from labkit.services.inventory.workload import WORKLOAD

INVENTORY = Service(
    "inventory",
    decide=DECIDE,
    events=EVENTS,
    evolve=evolve,
    state=StockState,
    views=[Stock(), Held()],
    queries=QUERIES,
    # Orders reserve, release and ship through the fulfilment.
    public={
        ReceiveStock: "POST /stock/{product_id}/receipts",
        AdjustStock: "POST /stock/{product_id}/adjustments",
    },
    notices=notices,
    workload=WORKLOAD,
    invariants={"nothing is negative": lambda stock: stock.on_hand >= 0},
    audits={"C7": audit},
    model=InventoryModel(),
)

__all__ = [
    "DECIDE",
    "EVENTS",
    "INVENTORY",
    "MAX_RESERVATIONS",
    "QUERIES",
    "WORKLOAD",
    "AdjustStock",
    "Held",
    "InventoryModel",
    "LowStock",
    "ReceiveStock",
    "ReleaseStock",
    "ReservationCommand",
    "ReserveStock",
    "ShipStock",
    "Stock",
    "StockAdjusted",
    "StockCommand",
    "StockEvent",
    "StockOf",
    "StockReceived",
    "StockReleased",
    "StockReserved",
    "StockShipped",
    "StockState",
    "evolve",
]
