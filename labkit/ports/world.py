"""What the core needs of the world beside a broker and a store: time, chance, threads.

All of it is handed in at one place (``run.wiring``), so that a test or a simulator can replace it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from random import Random

from msgspec import Struct, field

from labkit.ports.broker import Broker
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.executor import AtOnce
from labkit.ports.ids import Ids, new_id
from labkit.ports.store import Store


class World(Struct, frozen=True):
    """``executor`` makes the executor in which a handler saves its states; ``twins`` the broker,
    the log and the store of a run in memory, if they are not the usual ones."""

    clock: Clock = SYSTEM
    ids: Ids = new_id
    random: Random = field(default_factory=Random)
    executor: Callable[[], Executor] = AtOnce
    twins: Callable[[], tuple[Broker, Broker, Store]] | None = None


REAL = World()
