"""The arms on real servers, in the database and the topics of one run."""

from __future__ import annotations

from labkit.errors import UsageError
from labkit.experiments.cost.arm import ARMS, Arm
from labkit.experiments.cost.crud import Crud
from labkit.experiments.cost.fed_view import FedView
from labkit.experiments.cost.naive import Naive, PlainSaver
from labkit.experiments.cost.product import Product
from labkit.experiments.cost.subject import SERVICE
from labkit.lab import Lab
from labkit.service import Process


def connected(name: str, lab: Lab, seed: int, process: Process | None = None) -> Arm:
    """An arm of this process. ``process`` is followed in the transactions of ``crud``; labkit has
    its processes as workers. Raises ``UsageError`` for an unknown arm."""
    match name:
        case "crud":
            return Crud(SERVICE, lab.store, process=process, seed=seed)
        case "outbox":
            return Crud(SERVICE, lab.store, tells=True, seed=seed)
        case "view":
            return FedView(SERVICE, lab.store, seed=seed)
        case "naive":
            assert lab.servers is not None
            saver = PlainSaver(lab.servers.mongo_uri, lab.of.database)
            return Naive(SERVICE, lab.store, saver)
        case "labkit":
            return Product(SERVICE, lab)
    raise UsageError(f"arm must be one of {', '.join(ARMS)}, got {name!r}")
