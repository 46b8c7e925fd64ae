"""The built-in services and processes. They are made as anybody's own service is."""

from typing import Any

#: The services of a lab that names none.
DEFAULT = ("orders", "catalog")
#: What is loaded, and asked over Kafka, if no service is named.
MEASURED = ("orders", "bank")
#: What ``labkit verify write`` runs if no service is named. The fulfilment calls off unpaid orders
#: after seconds, so that every instance ends.
VERIFIED = ("orders", "inventory", "bank")
VERIFIED_PROCESSES = ("labkit.services.fulfilment:IMPATIENT", "transfer")
#: What each bench measures if no service is named: a service, one of its workloads, and options.
BENCHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "restart": ("catalog", "prices", {}),
    "rebuild": ("bank", "new", {}),
    "freshness": ("bank", "zipf", {"skew": 0.0, "accounts": 280}),
    "cache": ("bank", "zipf", {"skew": 0.0, "accounts": 200}),
    "latency": ("orders", "new", {}),
    "memory": ("orders", "new", {}),
    "growth": ("orders", "new", {}),
    "sweep": ("orders", "new", {}),
    "cost": ("bank", "cash", {"accounts": 200}),
    "agreement": ("bank", "transfers", {"accounts": 20}),
}
#: The process that ``agreement`` measures.
AGREEING = "transfer"
#: All that are built in.
BUILT_IN = ("orders", "catalog", "inventory", "bank")
PROCESSES = ("fulfilment", "transfer")
