"""One run of a scenario in a seeded world, and what the checkers say of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import stamina
from msgspec import Struct, field, structs

from labkit.errors import LabkitError, said
from labkit.experiments.verify.checkers import check_run
from labkit.experiments.verify.evidence import adopt_commands, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.verdict import Verdict, red
from labkit.lab import Lab
from labkit.ports.failpoints import Failpoint, watched
from labkit.ports.world import World as Ports
from labkit.run.worker import Worker
from labkit.service.guard import guarded
from labkit.simulation.faults import RESTART_SECONDS, Fault, Striker, draw_faults
from labkit.simulation.fence import fenced
from labkit.simulation.mongo_log import SimulatedMongoBroker
from labkit.simulation.monitors import FirstBad
from labkit.simulation.reading import Readers
from labkit.simulation.scenario import Client, Keeper, Poison, Scenario, Sizes, calls, sizes
from labkit.simulation.stores import SimulatedStore
from labkit.simulation.tape import Priorities, Tape, random_walk
from labkit.simulation.twins import SimulatedBroker
from labkit.simulation.world import Event, Life, Stopped, Stuck, World

#: Virtual seconds that chaos lasts at most, and that all may take to come to rest after it.
CHAOS_SECONDS, HEALING_SECONDS = 600.0, 7200.0
#: Who finds nothing waits for so long: nobody is kept from being first, since time is virtual.
POLL_SECONDS = 60.0
#: A worker that comes for a while is told to leave after so long at the latest.
GUEST_SECONDS = 3.0
#: Clients that are hindered for so many steps are helped: a trial must end.
CHAOS_STEPS, HEALING_STEPS = 20_000, 60_000


class Outcome(Struct):
    """What a trial has shown: ``red`` are the names of the checkers that found something."""

    seed: int | str
    red: list[str]
    verdicts: dict[str, Verdict]
    steps: int
    struck: list[Fault]
    tape: Tape
    trace: list[Event] = field(default_factory=list)
    why: str = ""
    first_bad: FirstBad | None = None

    @property
    def good(self) -> bool:
        return not self.red


class Trial:
    """A scenario in a world of its own."""

    def __init__(
        self,
        scenario: Scenario,
        tape: Tape,
        *,
        recording: bool = False,
        world: World | None = None,
    ) -> None:
        self.scenario = scenario
        self.tape = tape
        self.world = world or World(tape)
        self.world.recording = recording
        if scenario.horizon:
            self.world.search = Priorities(scenario.horizon, lambda: self.world.step)
        self.sizes = sizes(scenario, tape)
        self.store = SimulatedStore(self.world)
        self.broker = SimulatedBroker(self.world, first=scenario.log == "kafka")
        #: Where commands and commits are kept.
        self.log = self.broker
        if scenario.log == "mongodb":
            self.log = SimulatedMongoBroker(self.world)
        #: Workers that came for a while, and those of them that were told to leave.
        self.guests: set[str] = set()
        self.gone: set[str] = set()
        self._workers: dict[str, Worker] = {}
        #: The part that each worker is now.
        self.parts: dict[str, Any] = {}
        ports = Ports(
            clock=self.world.clock,
            ids=self.world.new_id,
            random=Random(f"{tape.seed}:random"),
            twins=lambda: (self.broker, self.log, self.store),
        )
        self.lab = Lab(
            backend="memory",
            services=scenario.services,
            processes=scenario.processes,
            world=ports,
            partitions=self.sizes.partitions,
            delivery=scenario.delivery,
            write_concern=scenario.write_concern,
            log=scenario.log,
        )
        if scenario.write_concern != "majority":
            self.lab.of.view_store = self.store.weak()

    def run(self) -> Outcome:
        with acting(self.world), self.lab:
            try:
                return self._run()
            finally:
                self.world.end()

    def until(self, step: int) -> Lab:
        """The lab as it stands before a step, to be looked into; close it."""
        self._run_until(step)
        self.world.end()
        return self.lab

    def branch(self, step: int) -> Lab:
        """The same, to be gone on with by hand: all workers are gone, and what they have left open
        is undone."""
        self._run_until(step)
        for life in self.world.lives:
            if life.role and life.state != "dead":
                self.world.kill(life)
        for happening in list(self.world.happenings):
            happening.action()
        self.world.end()
        return self.lab

    def _run_until(self, step: int) -> None:
        self.world.stop_at = step
        with acting(self.world), suppress(Stopped):
            self._run()

    def _run(self) -> Outcome:
        world = self.world
        striker = Striker(world, draw_faults(self.tape), self)
        world.strike = striker
        self.begin()
        why = ""
        try:
            served = world.run(self._served, CHAOS_SECONDS, CHAOS_STEPS)
            self._heal()
            if not world.run(self.quiet, HEALING_SECONDS, HEALING_STEPS):
                why = "no liveness: " + self._waiting(served)
        except Stuck as stuck:
            why = f"no liveness: {stuck}"
        if why and self._at_rest():  # what does not end is judged by C11
            why = ""
        return self.judged(striker.struck, why)

    def begin(self) -> None:
        """Clients and workers are there, and nothing has happened yet."""
        #: What every run begins with: nobody changes these documents.
        held = self.store._collections.values()
        self.first_documents = {id(d): d for documents in held for d in documents.values()}
        self.history = History(self.lab.bus)
        self.history.listen(*self.lab.services)
        self.readers = Readers(self.lab, self.world)
        self.clients = self._clients()
        for worker in workers(self.lab, self.sizes):
            self._restart_worker(worker)

    def judged(self, struck: list[Fault], why: str = "") -> Outcome:
        """What the checkers say; ``why``: the run did not come to rest."""
        world = self.world
        world.recording = False
        verdicts: dict[str, Verdict] = {}
        if not why:
            verdicts = judge(self.lab, self.history, self.readers)
        wrong = ["liveness"] if why else red(verdicts)
        return Outcome(
            self.tape.seed,
            wrong,
            verdicts,
            world.step,
            struck,
            self.tape,
            world.trace,
            why,
            world.monitors.first_bad,
        )

    # --- lives

    def _clients(self) -> list[Client]:
        all_calls = calls(self.scenario, self.lab, self.tape)
        count = self.sizes.clients
        #: Who releases parked streams, where there is poison.
        self.keeper: Keeper | None = None
        if any(isinstance(call, Poison) for call in all_calls):
            self.keeper = Keeper(self.lab, self.history, self.world)
            self.world.spawn("keeper", self.keeper)
        clients = [
            Client(f"client-{number}", self.readers, self.history, all_calls[number::count])
            for number in range(count)
        ]
        for number, client in enumerate(clients):
            self.world.spawn(f"client-{number}", client)
        return clients

    def restart(self, life: Life) -> None:
        """See ``faults.Hands``."""
        self._start_later(self._workers[life.name])

    def _restart_worker(self, worker: Worker) -> None:
        self._workers[worker.name] = worker
        self.world.spawn(worker.name, self._living(worker), worker.role)

    def join(self, life: Life) -> None:
        """See ``faults.Hands``."""
        like = self._workers[life.name]
        slots = (structs.replace(like, slot=slot) for slot in itertools.count())
        guest = next(worker for worker in slots if worker.name not in self._workers)
        self.guests.add(guest.name)
        self._restart_worker(guest)
        self.world.later(
            f"{guest.name} is told to leave", GUEST_SECONDS, lambda: self._leave(guest.name)
        )

    def _leave(self, name: str) -> None:
        self.gone.add(name)
        for life in self.world.lives:
            life.leaving = life.leaving or life.name == name

    def elect(self) -> None:
        """See ``faults.Hands``."""
        self.store.elect()

    def rewind(self, life: Life) -> None:
        """All members of its group are gone, and somebody sets its offsets back to the start."""
        worker = self._workers[life.name]
        if isinstance(self.log, SimulatedMongoBroker):
            self.log.lose_tokens()
        if worker.role != "handler":
            return
        topic = self.lab.topic_name(f"{worker.service}.commands")
        name = self.lab.of.group(worker.role, worker.service)
        if not self.log.committed(topic, name):
            return
        for other in self.world.lives:
            known = self._workers.get(other.name)
            alike = known and (known.role, known.service) == (worker.role, worker.service)
            if known and alike and other.state != "dead":
                self.world.kill(other)
                self._start_later(known)
        group = self.log.group(topic, name)
        for member in list(group.members):
            self.log.leave(topic, name, member)
        group.offsets = dict.fromkeys(group.offsets, 0)

    def die(self, life: Life, place: str) -> None:
        """Kill a worker, which is started again later."""
        self.world.note("fault", f"is killed at {place}")
        self.world.kill(life)
        self.parts.pop(life.name, None)
        self._start_later(self._workers[life.name])

    def _start_later(self, worker: Worker) -> None:
        def start() -> None:
            if worker.name not in self.gone:
                self._restart_worker(worker)

        if worker.name not in self.gone:
            self.world.later(f"{worker.name} is started again", RESTART_SECONDS, start)

    def _living(self, worker: Worker) -> Callable[[], None]:
        def live() -> None:
            life = self.world.current
            assert life is not None
            while not life.leaving:
                part = None
                try:
                    part = self.parts[worker.name] = self.lab.parts.make(worker)
                    patience = GUEST_SECONDS if worker.name in self.guests else POLL_SECONDS
                    while not life.leaving:
                        part.step(patience)
                except LabkitError as error:
                    self.world.note("anew", f"begins anew, since {said(error)}")
                finally:
                    if part is not None:
                        part.close()
                        self.parts.pop(worker.name, None)
                self.world.clock.sleep(0.25)
            self._start_later(worker)

        return live

    # --- the end

    def _heal(self) -> None:
        """From now on nothing goes wrong, and all that was to come comes."""
        self.world.calm = True
        self.world.search = random_walk  # nobody is kept from their turn
        for happening in list(self.world.happenings):
            self.world._happen(happening)

    def _served(self) -> bool:
        return all(client.done for client in self.clients)

    def quiet(self) -> bool:
        """Whether all have come to rest, and no process has more to do."""
        return self._at_rest() and not running(self.lab)

    def _at_rest(self) -> bool:
        """Whether all clients are served, nobody is behind, and what can be dropped is."""
        free = self.keeper is None or self.keeper.done
        return self._served() and free and not any(lags(self.lab).values())

    def _waiting(self, served: bool) -> str:
        late = waiting(self.lab, self.clients, self.keeper)
        return late or ("too many steps" if served else "the clients took too long")


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


def lags(lab: Lab) -> dict[str, int]:
    """How much each role has not done yet."""
    return {
        f"{role} of {name}": lab.lag(role, name)
        for role in ("handler", "relay", "projector", "process")
        for name in lab.instances_of(role)
    }


def running(lab: Lab) -> list[str]:
    """The processes that have more to do."""
    return [n for n in lab.processes if lab.store.find(f"{n}.instances", {"ended": False})]


def waiting(lab: Lab, clients: list[Client], keeper: Keeper | None) -> str:
    """Who is not done."""
    late = [f"{name} ({lag})" for name, lag in lags(lab).items() if lag]
    late += ["keeper"] if keeper is not None and not keeper.done else []
    late += [f"client-{n}" for n, client in enumerate(clients) if not client.done]
    return ", ".join(late)


def judge(lab: Lab, history: History, readers: Readers, timeout: float = 0.0) -> dict[str, Verdict]:
    """What the checkers say of a run that has come to rest; on real servers an answer may still be
    on its way for ``timeout`` seconds."""
    while history.hear(0.0):
        pass
    history.settle(timeout)
    adopt_commands(lab, history)
    evidence = {name: gather(lab, name) for name in lab.services}
    return {**check_run(lab, history, evidence), "C10": readers.verdict}


@contextmanager
def acting(world: World) -> Iterator[None]:
    """Failpoints are places of the world, and nothing really sleeps."""

    def at(point: Failpoint) -> None:
        world.place(point)

    guarded(int)("0")  # the thread that watches a service's code is there before the fence
    with watched(at), stamina.set_testing(True, attempts=10, cap=True), fenced(world):
        yield
