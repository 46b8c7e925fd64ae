"""One run of a scenario in a seeded world, and what the checkers say of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from random import Random

from msgspec import Struct, field

from labkit.experiments.verify.history import History
from labkit.experiments.verify.verdict import Verdict, red
from labkit.lab import Lab
from labkit.ports.world import World as Ports
from labkit.simulation.clients import Client, Keeper
from labkit.simulation.faults import Fault, Striker, draw_faults
from labkit.simulation.fence import acting
from labkit.simulation.judging import judge, lags, running, waiting
from labkit.simulation.lives import Event
from labkit.simulation.mongo_log import SimulatedMongoBroker
from labkit.simulation.monitors import FirstBad
from labkit.simulation.reading import Readers
from labkit.simulation.scenario import Plan, Scenario, planned, sizes
from labkit.simulation.stores import SimulatedStore
from labkit.simulation.tape import Priorities, Tape, random_walk
from labkit.simulation.twins import SimulatedBroker
from labkit.simulation.workforce import Workforce
from labkit.simulation.world import Stopped, Stuck, World

#: Virtual seconds that chaos lasts at most, and that all may take to come to rest after it.
CHAOS_SECONDS, HEALING_SECONDS = 600.0, 7200.0
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
    #: Of other schemas, and where: ``schemas.MET``.
    met: Sequence[tuple[str, str]] = ()

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
        self.workforce = Workforce(self.world, self.lab, self.log, self.store)

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
        striker = Striker(world, draw_faults(self.tape), self.workforce)
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
        plan = planned(self.scenario, self.lab, self.tape)
        if plan.newer is not None:
            plan.newer.put(self.lab)
            self.world.note("happening", plan.newer.told, (plan.newer.stream,))
        self.met = plan.met
        self.clients = self._clients(plan)
        self.workforce.begin(self.sizes)

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
            self.met,
        )

    # --- lives

    def _clients(self, plan: Plan) -> list[Client]:
        count = self.sizes.clients
        #: Who releases parked streams, where there is poison.
        self.keeper: Keeper | None = None
        if plan.poisoned:
            self.keeper = Keeper(self.lab, self.history, self.world)
            self.world.spawn("keeper", self.keeper)
        clients = [
            Client(f"client-{number}", self.readers, self.history, plan.calls[number::count])
            for number in range(count)
        ]
        for number, client in enumerate(clients):
            self.world.spawn(f"client-{number}", client)
        return clients

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
