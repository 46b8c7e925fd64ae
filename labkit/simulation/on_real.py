"""The same story on real Kafka and MongoDB: real workers, killed and paused where the tape says so.

The clients send the same commands under the same ids, and again where they are not answered. A
fault at a failpoint becomes a signal there; it strikes the first worker of its role and service
that has passed the place so often. What no signal can do is named. Then all must come to rest, and
the same checkers judge.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct, to_builtins

from labkit import stack
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.planted_bugs import SIMULATED
from labkit.experiments.verify.planting import planted as planted_in_workers
from labkit.experiments.verify.planting import planted_here
from labkit.experiments.verify.verdict import red, to_report
from labkit.ports.failpoints import ALL
from labkit.simulation.judging import judge
from labkit.simulation.ladder import fitting, in_worker, planted
from labkit.simulation.processors import quiet
from labkit.simulation.real_run import SIGNALS, Fallen, Played
from labkit.simulation.saved_tape import SavedTape
from labkit.simulation.scenario import Scenario, sizes
from labkit.simulation.tape import SCHEDULE, Tape
from labkit.simulation.trial import Outcome, Trial
from labkit.simulation.world import World


class OnReal(Struct):
    """What the checkers say of both runs.

    ``faults`` are those of the tape that had a signal, each with what came of it; of these,
    ``missed`` never struck. ``left_out`` is what real servers cannot be made to do.
    """

    plant: str
    simulated: list[str]
    red: list[str]
    verdicts: dict[str, Any]
    faults: list[str]
    missed: list[str]
    left_out: list[str]
    why: str = ""
    run: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether every fault struck, and nothing went wrong on real servers."""
        return not self.red and not self.missed

    @property
    def report(self) -> dict[str, Any]:
        """For the JSON."""
        return {**to_builtins(self), "ok": self.good}

    @property
    def text(self) -> str:
        """The verdicts beside each other, and what made them."""
        lines = [
            f"simulated: {_listed(self.simulated)}",
            f"on real Kafka and MongoDB: {_listed(self.red)}",
            *self.faults,
            *(f"not on real servers: {what}" for what in self.left_out),
        ]
        for name in self.red:
            found = self.verdicts.get(name, {}).get("violations") or [self.why]
            lines += [f"{name}: {line}" for line in found[:3]]
        return "\n".join(lines)


def on_real(
    scenario: Scenario,
    tape: SavedTape,
    plant: str | None = None,
    *,
    lab: str = "lab",
    client: str = "kafka-python",
    report: Callable[[str], None] = lambda line: None,
) -> OnReal:
    """Play a tape in the simulator and on the servers ``lab``, which are started if not up.

    Raises ``UsageError`` for a bug that only a twin can have, ``StackError`` without servers.
    """
    bugs = [in_worker(plant)] if plant else []
    scenario = fitting(tape.fitting(scenario), plant)
    outcome, fallen = simulated(scenario, tape, plant)
    began = time.monotonic()
    faults, left_out = signalled(fallen)
    if turns := sum(value > 0 for value in outcome.tape.values[SCHEDULE]):
        left_out.append(f"{turns} decisions about who takes a turn")
    bug = f"{SIMULATED}{plant}" if plant else None
    settings = {
        "services": scenario.services,
        "processes": scenario.processes,
        "partitions": sizes(scenario, _tape(tape)).partitions,
        "delivery": scenario.delivery,
        "write_concern": scenario.write_concern,
        "log": scenario.log,
        "client": client,
    }
    with (
        stack.borrowed(lab, report),
        planted_in_workers(bug) as marks,
        planted_here(*bugs),  # the clients read here
        scratch_run(lab, **settings) as real,
    ):
        real.of.check_importable()
        report(f"run {real.run}: the same commands and faults")
        played = Played(real, scenario, _tape(tape), faults, marks)
        try:
            why = played.run()
        finally:
            played.faulty.stop()
        verdicts = {} if why else judge(real, played.history, played.readers, 1.0)
        return OnReal(
            plant or "",
            outcome.red,
            ["liveness"] if why else red(verdicts),
            to_report(verdicts),
            [played.came_of(number) for number in range(len(faults))],
            [fault.told for number, fault in enumerate(faults) if not played.struck(number)],
            left_out,
            why,
            real.run,
            round(time.monotonic() - began, 1),
        )


def _tape(tape: SavedTape) -> Tape:
    return Tape(tape.seed, recorded=tape.values)


class _Counting(World):
    """Notes which faults strike, and how often their life has passed the place before."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.fallen: list[tuple[str, str, str, int, str]] = []
        self._passed: Counter[tuple[int, str]] = Counter()
        self._here = ""

    def place(self, name: str) -> None:
        if (life := self.current) is not None:
            self._passed[id(life), name] += 1
        self._here = name
        super().place(name)

    def note(self, kind: str, text: str, about: Iterable[str] = (), other: str = "") -> None:
        super().note(kind, text, about, other)
        if kind == "fault" and (life := self.current) is not None:
            passes = self._passed[id(life), self._here] - 1
            told = f"step {self.step}: {life.name} {text}"
            self.fallen.append((life.name, life.role, self._here, passes, told))


def simulated(
    scenario: Scenario, saved: SavedTape, plant: str | None
) -> tuple[Outcome, list[Fallen]]:
    tape = _tape(saved)
    world = _Counting(tape)
    with quiet(), planted(plant):
        outcome = Trial(scenario, tape, recording=True, world=world).run()
    kinds = (fault.kind for fault in outcome.struck)
    return outcome, [Fallen(k, *f) for k, f in zip(kinds, world.fallen, strict=True)]


def signalled(fallen: Sequence[Fallen]) -> tuple[list[Fallen], list[str]]:
    """The faults that have a signal, one for each role of a service, and the others in words."""
    found: dict[tuple[str, str], Fallen] = {}
    left_out = []
    for each in fallen:
        if each.kind not in SIGNALS or each.place not in ALL:
            left_out.append(each.told)
        elif (each.role, each.service) in found:
            left_out.append(f"{each.told} (a second fault of a {each.role} of {each.service})")
        else:
            found[each.role, each.service] = each
    return list(found.values()), left_out


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} red" if names else "good"
