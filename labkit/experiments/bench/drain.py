"""A drain: commands wait in the topic, the workers are released, and their rate is measured.

The load is closed: nothing is sent meanwhile, so only the workers and the servers take time. The
result is their capacity, not the latency of a command; for that see ``load/offer.py``.

Workers join and are held back until each owns its share of the partitions; then all are released at
once. An observer (``observer.py``) counts meanwhile. The measured window (``window.py``) starts
after a tenth of the commands and ends with the last one.

The client keeps the token of each command. At the end it reads all answers, and the checkers judge:
a run with a red checker has no rate, however fast it was. Of a service without a reference model
one of them, C9, cannot judge the views.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import TimedOut, UsageError
from labkit.experiments.backlog import behind
from labkit.experiments.bench.observer import Observation, observe
from labkit.experiments.bench.preload import preload, repeated
from labkit.experiments.bench.subject import Subject, subject
from labkit.experiments.bench.window import rate, window
from labkit.experiments.processes import harness_of, hear, on_fast_client, process
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.checkers import check, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.planted_bugs import GO, HELD_SECONDS, planted
from labkit.experiments.verify.verdict import Verdict
from labkit.experiments.verify.verdict import red as names_of_red
from labkit.lab import Lab
from labkit.run.starting import READY_SECONDS

#: After this time without progress the backlog is looked at, and after the second one the run is
#: given up: commands are lost, or the workers hang.
STILL_SECONDS, QUIET_SECONDS = 1.0, 60.0


class Arm(Struct, frozen=True, kw_only=True):
    """One way to run the same work.

    Args:
        name: for people.
        value: the value of the factor.
        commands: how many are in the topic.
        workers: handlers, and as many projectors.
        payload: additional bytes in every second command and in its event, if the workload has
            an option ``payload``.
        settings: of the lab.
        plant: bugs, see ``planted_bugs.py``.
        service: a name or ``module:ATTRIBUTE``; ``None``: the built-in one.
    """

    name: str
    value: int | str
    commands: int
    workers: int = 1
    payload: int = 0
    settings: dict[str, Any] = {}
    plant: str = ""
    service: str | None = None

    @property
    def subject(self) -> Subject:
        """What is drained. Raises ``UsageError``."""
        found = subject("sweep", self.service)
        if self.payload and not found.takes("payload"):
            raise UsageError(
                f"workload {found.chosen.workload!r} of service {found.name!r} has no option "
                "'payload' for the size of its commands; sweep another factor"
            )
        return found


class Drained(Struct):
    """The result of one run: a row of figures, the looks and the verdicts of the checkers."""

    row: dict[str, Any]
    looks: list[Observation]
    verdicts: dict[str, Verdict]


def drain(
    name: str, arm: Arm, seed: int, progress: Callable[[int, int], None] = lambda *_: None
) -> Drained:
    """Run an arm once, with its own topics and database, which are dropped afterwards.

    Raises ``UsageError`` for a service that cannot be drained, ``TimedOut`` where nothing moves any
    more, ``StackError`` where servers or workers fail.
    """
    measured = arm.subject
    commands = measured.all(seed, payload=arm.payload)
    with (
        scratch_run(name, services=[measured.service], start=False, **arm.settings) as lab,
        on_fast_client(lab) as client,
    ):
        history, size = History(), 0
        for sent in preload(client, measured.name, repeated(commands, arm.commands, seed)):
            history.invoke(sent.command, id=sent.id).token = sent.token
            size += sent.size
        looks, went = watch(lab, arm.workers, len(history), progress, arm.plant)
        lab.stop()
        return _judge(client, arm, history, looks, went, size)


# --- the run


def watch(
    lab: Lab,
    workers: int,
    total: int,
    progress: Callable[[int, int], None],
    plant: str = "",
) -> tuple[list[Observation], int]:
    """Start ``workers`` handlers and projectors of a run that has ``total`` commands in its topic.

    Returns all looks until everything is visible, or until nothing more can become visible; and the
    instant at which the workers were released, in monotonic ns. The workers keep running. Raises
    ``TimedOut`` where nothing moves any more.
    """
    names = "held", plant or os.environ.get("LABKIT_PLANT")
    with process(observe, harness_of(lab)) as observer, planted(*names) as at:
        hear(lab, observer)
        lab.start(workers, workers)
        _wait_until_shared(lab, workers, at)
        (at / GO).touch()
        went = time.monotonic_ns()
        return _follow(lab, observer, total, progress), went


def _wait_until_shared(lab: Lab, workers: int, marks: Path) -> None:
    """Wait until all partitions are owned, some by each worker. Raises ``TimedOut``."""
    deadline = time.monotonic() + READY_SECONDS
    for role in ("handler", "projector"):
        while True:
            said = [file.read_text() for file in marks.glob(f"{role}.*")]
            owned = [int(count) for count in said if count]  # a worker may be writing its file
            if sum(owned) == lab.partitions and owned.count(0) == 0 and len(owned) == workers:
                break
            lab.check()
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"of {lab.partitions} partitions {workers} {role}s own {owned} after "
                    f"{READY_SECONDS:g} s; see {lab.of.logs()}"
                )
            time.sleep(HELD_SECONDS)


def _follow(
    lab: Lab, observer: Connection, total: int, progress: Callable[[int, int], None]
) -> list[Observation]:
    """All looks until everything is visible, or until the workers have nothing left to read."""
    looks: list[Observation] = []
    moved, through = time.monotonic(), 0
    while True:
        look = msgspec.json.decode(hear(lab, observer), type=Observation)
        if not looks or (look.committed, look.visible) != (looks[-1].committed, looks[-1].visible):
            moved = time.monotonic()
            progress(min(look.visible, total), total)
        looks.append(look)
        if look.visible >= total and look.committed >= total:
            return looks
        if through and look.at > through:  # this look was taken after the end
            return looks
        still = time.monotonic() - moved
        if still > STILL_SECONDS and not through and not behind(lab):
            through = time.monotonic_ns()
        if still > QUIET_SECONDS:
            raise TimedOut(
                f"{look.visible} of {total} commands are visible, then nothing moved for "
                f"{QUIET_SECONDS:g} s; see {lab.of.logs()}"
            )


# --- the verdict


def _judge(
    client: Lab, arm: Arm, history: History, looks: list[Observation], went: int, size: int
) -> Drained:
    service = client.first
    evidence = gather(client, service)
    history.read(service, evidence.commits)
    verdicts = check(evidence, history)
    red = names_of_red(verdicts)
    ends = sum(client.ends(f"{service}.events").values())
    windows = {what: window(looks, arm.commands, went, what) for what in ("committed", "visible")}
    rates = {what: rate(found, what) for what, found in windows.items()}
    whole = windows["visible"]
    used = dict.fromkeys(looks[-1].cpu, math.nan)
    if whole is not None:
        used = {r: at - whole.first.cpu.get(r, 0.0) for r, at in whole.last.cpu.items()}
    row = {
        "arm": arm.name,
        "value": arm.value,
        "commands": arm.commands,
        "bytes_per_command": round(size / arm.commands, 1),
        "commands_per_second": rates["visible"] if not red else math.nan,
        "committed_per_second": rates["committed"],
        "visible_per_second": rates["visible"],
        "seconds": whole.seconds if whole else math.nan,
        "steady": whole is not None and whole.steady,
        "green": not red,
        "red": ", ".join(red),
        "transactions": len({commit.polled for commit in evidence.commits}),
        "markers": ends - len(evidence.commits) - len(evidence.aborted),
        **{f"cpu_{role}_s": seconds for role, seconds in sorted(used.items())},
    }
    return Drained(row, looks, verdicts)
