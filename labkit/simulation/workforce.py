"""Who works in a trial: workers that begin, die, are started again, join and leave."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from msgspec import structs

from labkit.errors import LabkitError, said
from labkit.lab import Lab
from labkit.run.worker import Worker
from labkit.simulation.faults import RESTART_SECONDS
from labkit.simulation.lives import Life
from labkit.simulation.mongo_log import SimulatedMongoBroker
from labkit.simulation.scenario import Sizes
from labkit.simulation.stores import SimulatedStore
from labkit.simulation.twins import SimulatedBroker
from labkit.simulation.world import World

#: Who finds nothing waits for so long: nobody is kept from being first, since time is virtual.
POLL_SECONDS = 60.0
#: A worker that comes for a while is told to leave after so long at the latest.
GUEST_SECONDS = 3.0


def workers(lab: Lab, sizes: Sizes) -> list[Worker]:
    """Who works from the beginning."""
    counts = {
        "handler": sizes.handlers,
        "relay": 1,
        "projector": sizes.projectors,
        "process": 1,
        "query": sizes.queries,
    }
    return [
        Worker(role, instance, slot)
        for role, count in counts.items()
        for instance in lab.instances_of(role)
        for slot in range(count)
    ]


class Workforce:
    """The workers of a lab in a world, and what faults do to them."""

    def __init__(self, world: World, lab: Lab, log: SimulatedBroker, store: SimulatedStore) -> None:
        self._world = world
        self._lab = lab
        self._log = log
        self._store = store
        #: Workers that came for a while, and those of them that were told to leave.
        self.guests: set[str] = set()
        self.gone: set[str] = set()
        self._workers: dict[str, Worker] = {}
        #: The part that each worker is now.
        self.parts: dict[str, Any] = {}

    def begin(self, sizes: Sizes) -> None:
        """All that work from the beginning are there."""
        for worker in workers(self._lab, sizes):
            self._start(worker)

    def restart(self, life: Life) -> None:
        """See ``faults.Hands``."""
        self._start_later(self._workers[life.name])

    def _start(self, worker: Worker) -> None:
        self._workers[worker.name] = worker
        self._world.spawn(worker.name, self._living(worker), worker.role)

    def join(self, life: Life) -> None:
        """See ``faults.Hands``."""
        like = self._workers[life.name]
        slots = (structs.replace(like, slot=slot) for slot in itertools.count())
        guest = next(worker for worker in slots if worker.name not in self._workers)
        self.guests.add(guest.name)
        self._start(guest)
        self._world.later(
            f"{guest.name} is told to leave", GUEST_SECONDS, lambda: self._leave(guest.name)
        )

    def _leave(self, name: str) -> None:
        self.gone.add(name)
        for life in self._world.lives:
            life.leaving = life.leaving or life.name == name

    def elect(self) -> None:
        """See ``faults.Hands``."""
        self._store.elect()

    def rewind(self, life: Life) -> None:
        """All members of its group are gone, and somebody sets its offsets back to the start."""
        worker = self._workers[life.name]
        if isinstance(self._log, SimulatedMongoBroker):
            self._log.lose_tokens()
        if worker.role != "handler":
            return
        topic = self._lab.topic_name(f"{worker.service}.commands")
        name = self._lab.of.group(worker.role, worker.service)
        if not self._log.committed(topic, name):
            return
        for other in self._world.lives:
            known = self._workers.get(other.name)
            alike = known and (known.role, known.service) == (worker.role, worker.service)
            if known and alike and other.state != "dead":
                self._world.kill(other)
                self._start_later(known)
        group = self._log.group(topic, name)
        for member in list(group.members):
            self._log.leave(topic, name, member)
        group.offsets = dict.fromkeys(group.offsets, 0)

    def die(self, life: Life, place: str) -> None:
        """Kill a worker, which is started again later."""
        self._world.note("fault", f"is killed at {place}")
        self._world.kill(life)
        self.parts.pop(life.name, None)
        self._start_later(self._workers[life.name])

    def _start_later(self, worker: Worker) -> None:
        def start() -> None:
            if worker.name not in self.gone:
                self._start(worker)

        if worker.name not in self.gone:
            self._world.later(f"{worker.name} is started again", RESTART_SECONDS, start)

    def _living(self, worker: Worker) -> Callable[[], None]:
        def live() -> None:
            life = self._world.current
            assert life is not None
            while not life.leaving:
                part = None
                try:
                    part = self.parts[worker.name] = self._lab.parts.make(worker)
                    patience = GUEST_SECONDS if worker.name in self.guests else POLL_SECONDS
                    while not life.leaving:
                        part.step(patience)
                except LabkitError as error:
                    self._world.note("anew", f"begins anew, since {said(error)}")
                finally:
                    if part is not None:
                        part.close()
                        self.parts.pop(worker.name, None)
                self._world.clock.sleep(0.25)
            self._start_later(worker)

        return live
