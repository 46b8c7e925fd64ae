"""Autoscaled workers against fixed ones, on a peak and on the days of a real shop.

Each *arm* is a way to choose the number of handlers: always one, always ``MANY``, by the time lag,
by the CPU of the workers, and by the time lag with fewer partitions than workers are allowed. All
arms run the same loop (``run.elastic``): a fixed number is its bounds with ``least`` equal to
``most``, so all are looked at in the same way.

The handlers are *paced*: they take ``BATCH`` commands every ``EVERY`` seconds (scheduled mode, a
setting of any run). So the capacity of a worker is known, ``BATCH / EVERY`` commands a second, and
it is spent waiting, as in front of a slow service or a far broker. Two cores are enough for many
such workers, and that is the point of the arm by CPU: they are idle while the lag grows.

A load is one open loop (``load.offer``) on a new run: the mean rate is what one worker can do, and
the peak is more. Checkers judge every run. Figures: ``elasticity_figures.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
from msgspec import Struct, structs

from labkit import stack
from labkit.errors import UsageError
from labkit.experiments.bench.elasticity_figures import course, moves, row, summary
from labkit.experiments.demo import Progress
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.offer import Loaded, offer
from labkit.experiments.processes import hear, process, settings_of
from labkit.experiments.results import archive, machine
from labkit.experiments.scratch import scratch_run, versions_on
from labkit.lab import Lab
from labkit.run.autoscaler import Bounds
from labkit.run.elastic import LOOK_SECONDS, Elastic, Look
from labkit.run.settings import DEFAULTS

if TYPE_CHECKING:
    import pandas as pd

Load = Literal["peak", "days"]
LOADS: tuple[Load, ...] = get_args(Load)
ROLE = "handler"
#: The capacity of one handler is so many commands a second.
BATCH, EVERY = 10, 0.25
CAPACITY = BATCH / EVERY
MANY, PARTITIONS, FEW_PARTITIONS = 4, 4, 2
#: Lag in seconds, and for the arm by CPU the share of a core.
ELASTIC = Bounds(least=1, most=MANY, up_above=1.5, down_below=0.5, hold=1.0, cool_down=4.0)
BY_CPU = structs.replace(ELASTIC, up_above=0.7, down_below=0.3)
#: After all partitions have an owner: members that join later get their share.
SETTLE_SECONDS = 3.0


class Arm(Struct, frozen=True, kw_only=True):
    """One way to choose the number of handlers."""

    name: str
    bounds: Bounds
    by: Literal["lag", "cpu"] = "lag"
    partitions: int = PARTITIONS


def _fixed(workers: int) -> Bounds:
    return structs.replace(ELASTIC, least=workers, most=workers)


ONE = Arm(name="fixed, 1 worker", bounds=_fixed(1))
FOUR = Arm(name=f"fixed, {MANY} workers", bounds=_fixed(MANY))
BY_LAG = Arm(name="by time lag", bounds=ELASTIC)
CPU = Arm(name="by CPU", bounds=BY_CPU, by="cpu")
CEILING = Arm(name=f"by time lag, {FEW_PARTITIONS} partitions", bounds=ELASTIC)
CEILING = structs.replace(CEILING, partitions=FEW_PARTITIONS)
ARMS: dict[Load, tuple[Arm, ...]] = {
    "peak": (ONE, FOUR, BY_LAG, CPU, CEILING),
    "days": (ONE, FOUR, BY_LAG),
}


class Stretched(Struct):
    """``runs``: a row for each run (``elasticity_figures.row``); ``arms``: a row for each load and
    arm, with medians and intervals; ``courses``: lag, workers and arrivals over time; ``moves``: a
    row for each change of the number of workers. ``report`` is the JSON."""

    runs: pd.DataFrame
    arms: pd.DataFrame
    courses: pd.DataFrame
    moves: pd.DataFrame
    report: dict[str, Any]
    folder: Path

    @property
    def ok(self) -> bool:
        """Whether no checker is red."""
        return bool((self.runs["red"] == "").all())


def stretch(
    name: str,
    *,
    loads: Sequence[Load] = LOADS,
    seconds: float = 60.0,
    rounds: int = 6,
    seed: int = 1,
    client: str = DEFAULTS.client,
    service: str | None = None,
    arms: dict[Load, tuple[Arm, ...]] = ARMS,
    progress: Progress = lambda *_: None,
    report: Callable[[str], None] = lambda _: None,
) -> Stretched:
    """Run each arm on each load ``rounds`` times, in random order, and archive the result.

    Starts servers that are not up, and stops what it started. Raises ``UsageError`` for fewer than
    two rounds, ``StackError`` and ``TimedOut`` where servers or workers fail.
    """
    import pandas as pd

    if rounds < 2:
        raise UsageError(f"an interval needs at least 2 rounds, got {rounds}")
    plans = {load: plan_of(load, seconds, seed, service) for load in loads}
    rng = Random(seed)
    every = [(load, arm) for load in loads for arm in arms[load]]
    rows: list[dict[str, Any]] = []
    courses: list[pd.DataFrame] = []
    moved: list[dict[str, Any]] = []
    with stack.borrowed(name, report) as servers:
        known = versions_on(name, client)
        for number in range(rounds):
            for load, arm in rng.sample(every, len(every)):
                progress("runs", len(rows), rounds * len(every))
                plan = structs.replace(plans[load], seed=seed + number)
                loaded, looks = run(name, arm, plan, client)
                about: dict[str, Any] = {"load": load, "arm": arm.name, "round": number}
                about["order"] = len(rows)
                rows.append(about | row(loaded, looks, ELASTIC.up_above))
                courses.append(course(loaded, looks).assign(**about))
                moved += [about | move for move in moves(loaded, looks)]
                report(_told(rows[-1]))
    progress("runs", len(rows), len(rows))
    runs, changes = pd.DataFrame(rows), pd.DataFrame(moved)
    table = summary(runs, [(load, arm.name) for load, arm in every])
    whole = {
        "bench": "elasticity",
        "ok": bool((runs["red"] == "").all()),
        "settings": {
            "rounds": rounds,
            "seconds": seconds,
            "plans": {load: arrivals.shape(plan) for load, plan in plans.items()},
            "arms": {load: [structs.asdict(arm) for arm in arms[load]] for load in loads},
            "capacity_per_worker": CAPACITY,
            "lab": {"client": client, "batch_size": BATCH, "every": EVERY},
            "up_above_s": ELASTIC.up_above,
        },
        "seed": seed,
        "versions": known,
        "machine": machine(),
        "stack": servers.kind,
        "arms": table.to_dict("records"),
        "runs": rows,
        "moves": moved,
    }
    frames = {"runs": runs, "arms": table, "courses": pd.concat(courses), "moves": changes}
    folder = archive("elasticity", whole, frames)
    whole |= {"folder": str(folder)}
    return Stretched(runs, table, frames["courses"], changes, whole, folder)


def plan_of(load: Load, seconds: float, seed: int, service: str | None = None) -> Plan:
    """What is offered: in the mean, what one worker can do. Raises ``UsageError``."""
    plan = Plan(pattern=load, rate=CAPACITY, seconds=seconds, warm_up=0.0, seed=seed)
    return (plan if service is None else structs.replace(plan, services=(service,))).check()


def run(name: str, arm: Arm, plan: Plan, client: str) -> tuple[Loaded, list[Look]]:
    """One load on one arm, with a run of its own, which is dropped afterwards."""
    settings = {"batch_size": BATCH, "every": EVERY, "partitions": arm.partitions}
    with scratch_run(name, services=[plan.service], client=client, start=False, **settings) as lab:
        lab.start(handlers=0)
        of = settings_of(lab)
        with process(scale, of, plan.service.name, arm.bounds, arm.by) as scaler:
            hear(lab, scaler)
            time.sleep(SETTLE_SECONDS)
            loaded = offer(lab, plan, dry=False)
            scaler.send_bytes(b"stop")
            looks = msgspec.msgpack.decode(hear(lab, scaler), type=list[Look])
    return loaded, looks


def scale(
    pipe: Connection, settings: dict[str, Any], service: str, bounds: Bounds, by: Any
) -> None:
    """Scale the handlers until told to stop; says when they own all partitions, and in the end what
    it has seen."""
    looks: list[Look] = []
    with Lab(**settings, start=False) as lab:
        reader, *_ = lab.of.readers(ROLE, service)
        mine = {f"{reader.name}:{partition}" for partition in range(lab.partitions)}
        ready = False
        with closing(Elastic(lab.of, lab.positions, ROLE, service, bounds, by=by)) as elastic:
            while not pipe.poll(LOOK_SECONDS):
                if (look := elastic.step()) is None:
                    break
                looks.append(look)
                owned = {id for id, epoch in lab.positions.epochs().items() if epoch}
                if not ready and mine <= owned:
                    ready = True
                    pipe.send_bytes(b"ready")
    pipe.send_bytes(msgspec.msgpack.encode(looks))  # JSON has no NaN
    pipe.poll(None)  # until the parent has read it all


def _told(found: dict[str, Any]) -> str:
    why = f"; it does not count: {found['trouble']}" if found["trouble"] else ""
    return (
        f"{found['load']}, {found['arm']}: above the bound for {found['above_s']:.1f} s, "
        f"{found['worker_seconds']:.0f} worker seconds{why}"
    )
