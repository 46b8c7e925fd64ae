"""``labkit bench burst``: peaks against a service, and each mechanism of protection under one.

Each round is a new run with its workers. A heap says what they do (the capacity: no higher rate can
be sustained). Then come the peaks without protection, and the mechanisms at one of them, in random
order and with the same timetable in each. At the end of the round the checkers judge all of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, structs

from labkit import stack
from labkit.errors import StackError, UsageError
from labkit.experiments.burst import figures
from labkit.experiments.burst.arm import Arm, Call, Running, Told
from labkit.experiments.burst.clients import Order, check_offer, clients, threads_for
from labkit.experiments.burst.mechanisms import Mechanism, chosen
from labkit.experiments.burst.over_http import OverHttp
from labkit.experiments.burst.report import summary, summed
from labkit.experiments.burst.timetable import READS, Burst, timetable
from labkit.experiments.demo import Progress
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.processes import process
from labkit.experiments.results import archive, machine
from labkit.experiments.scratch import versions_on
from labkit.experiments.verify.verdict import Verdict, red, to_report, together
from labkit.run.worker import calm_gc
from labkit.service import Operation

if TYPE_CHECKING:
    import pandas as pd

#: Before a peak and after it, commands come at this share of the capacity.
USUAL = 0.3
BEFORE_SECONDS = 1.5
#: The usual rate goes on for this many times the predicted drain, and some seconds.
AFTER, AFTER_SECONDS, MOST_AFTER_SECONDS = 1.2, 1.0, 60.0
#: The heap is this many seconds of work.
HEAP_SECONDS = 5.0
#: This number of commands of a workload is looked through for those that no client may send.
PUBLIC_CHECKED = 2_000
#: What is taken and not visible so long after the last answer is left to the checkers.
STILL_SECONDS = 5.0
#: A process of clients that says nothing for so long hangs.
PATIENCE_SECONDS = 120.0


class Sizes(Struct, frozen=True, kw_only=True):
    """``rate``: commands a second that the workers are paced to. ``at``: the peak at which the
    mechanisms are compared; peaks are multiples of what the workers do. ``seconds``: of a peak."""

    rate: float = 60.0
    peaks: tuple[float, ...] = (2.0, 5.0, 20.0)
    at: float = 5.0
    seconds: float = 0.5
    runs: int = 6
    only: tuple[str, ...] = ()

    def check(self) -> Sizes:
        """The same; raises ``UsageError``."""
        if not self.peaks or min(self.peaks) <= 1:
            raise UsageError(f"--peaks must be more than 1 each, got {self.peaks}: 2,5,20, say")
        if self.at <= 1:
            raise UsageError(f"--at must be more than 1, got {self.at:g}")
        chosen(self.only)
        return self


class One(Struct):
    """One burst: what it was under, its rows, and the operations of its clients."""

    mechanism: Mechanism
    times: float
    round: int
    burst: Burst
    rows: pd.DataFrame
    operations: list[Operation]
    found: dict[str, Any]


def burst(
    name: str,
    sizes: Sizes,
    seed: int = 1,
    client: str = "kafka-python",
    services: tuple[str, ...] = (),
    progress: Progress = lambda *_: None,
    report: Callable[[str], None] = lambda _: None,
    arm: Arm | None = None,
) -> dict[str, Any]:
    """Run it on real servers; the result is the JSON, with ``ok``: no checker is red.

    ``arm`` is labkit over HTTP if it is left out. Starts servers that are not up, and stops what it
    started. Raises ``UsageError`` for a peak that the clients cannot offer, ``StackError`` and
    ``TimedOut`` where servers, workers or clients fail.
    """
    import pandas as pd

    plan, able = planned(sizes, seed, services)
    arm = arm or OverHttp(plan.service, sizes.rate, client)
    calm_gc()
    done: list[One] = []
    verdicts: dict[str, list[Verdict]] = {}
    capacities = []
    with stack.borrowed(name, report):
        known = versions_on(name, client)
        steps = len(_steps(sizes))
        for number in range(sizes.runs):

            def tell(step: int, before: int = number * steps) -> None:
                progress("bursts", before + step, sizes.runs * steps)

            rate, ones, judged = _round(name, arm, plan, sizes, number, seed + number, tell)
            capacities.append(rate)
            done += ones
            for checker, verdict in judged.items():
                verdicts.setdefault(checker, []).append(verdict)
            wrong = f"RED: {', '.join(red(judged))}" if red(judged) else "all checkers green"
            report(f"round {number + 1}: the workers do {rate:,.1f} commands a second; {wrong}")
    whole = {checker: together(found) for checker, found in verdicts.items()}
    found = {
        "bench": "burst",
        "arm": arm.name,
        "settings": structs.asdict(sizes) | {"service": plan.service.name, "client": client},
        "seed": seed,
        "versions": known,
        "machine": machine(),
        "clients_are_able": round(able, 1),
        "capacity_per_second": summed(capacities),
        "peaks": [{"times": times} | summary(_found(done, "none", times)) for times in sizes.peaks],
        "mechanisms": [
            {"mechanism": m.name, "protection": m.protection(median(capacities))}
            | summary(_found(done, m.name, sizes.at))
            for m in chosen(sizes.only)
        ],
        "runs": [
            {"mechanism": o.mechanism.name, "times": o.times, "round": o.round} | o.found
            for o in done
        ],
        "late": sum(not o.found["on_time"] for o in done),
        "checkers": to_report(whole),
        "red": red(whole),
        "ok": not red(whole),
    }
    rows = pd.concat([_labelled(o, o.rows) for o in done], ignore_index=True)
    series = pd.concat([_labelled(o, figures.backlog(o.rows)) for o in done], ignore_index=True)
    return found | {"folder": str(archive("burst", found, {"calls": rows, "backlog": series}))}


def planned(sizes: Sizes, seed: int, services: tuple[str, ...]) -> tuple[Plan, float]:
    """What is sent, and how many calls a second the clients are able to make; raises ``UsageError``
    for what cannot be."""
    plan = Plan(rate=sizes.check().rate, seconds=60.0, seed=seed)
    plan = structs.replace(plan, services=services or plan.services).check()
    commands = arrivals.commands(plan, PUBLIC_CHECKED)
    if hidden := {type(c).__name__ for c in commands if type(c) not in plan.service.public}:
        raise UsageError(
            f"workload {plan.named!r} of service {plan.service.name!r} has {', '.join(hidden)}, "
            "which no client may send over HTTP: see Service(public=...)"
        )
    peaks = (*sizes.peaks, sizes.at)
    return plan, check_offer(plan, sizes.rate * READS / (READS - 1), peaks, sizes.seconds)


def _steps(sizes: Sizes) -> list[tuple[Mechanism, float]]:
    """What a round consists of; "none" at the peak of the mechanisms is one of the peaks, too."""
    none, *others = chosen(sizes.only)
    peaks = dict.fromkeys((*sizes.peaks, sizes.at))
    return [(none, times) for times in peaks] + [(other, sizes.at) for other in others]


def _round(
    name: str,
    arm: Arm,
    plan: Plan,
    sizes: Sizes,
    number: int,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[float, list[One], dict[str, Verdict]]:
    dice, ones = Random(seed), list[One]()
    with ExitStack() as opened:
        running = opened.enter_context(arm.running(name))
        pipe = opened.enter_context(process(clients))
        first = round(HEAP_SECONDS * sizes.rate)
        heap = [Call(0, n, client=n) for n in range(first)]
        none = chosen(("none",))[0]
        order = Order(plan, [structs.replace(c, client=0) for c in heap], "heap", False, first // 2)
        rows, everything = _asked(running, pipe, none, 1.0, order)
        rate = figures.capacity(rows["visible"].to_numpy(float))
        if not rate > 0:
            raise StackError(
                f"{len(rows)} commands were sent and {int(rows['visible'].count())} are visible: "
                f"the workers' rate is not known. {rows['why'].max()}"
            )
        steps = _steps(sizes)
        for step, (mechanism, times) in enumerate(dice.sample(steps, len(steps))):
            progress(step)
            made = _burst(rate, times, sizes.seconds, seed)
            calls = timetable(made, first)
            first = max(call.command for call in calls) + 1
            threads = threads_for(calls, made.begins, made.ends)
            key = f"{number}-{step}"
            order = Order(plan, calls, key, mechanism.urgencies, threads)
            rows, operations = _asked(running, pipe, mechanism, rate, order)
            found = figures.told(rows)
            found |= figures.drained(figures.backlog(rows), made, rate, USUAL * rate)
            ones.append(One(mechanism, times, number, made, rows, operations, found))
            everything += operations
        progress(len(steps))
        verdicts = dict(running.judge(everything))
    for one in ones:
        one.found |= _judged(one.operations, verdicts)
    return rate, ones, verdicts


def _burst(rate: float, times: float, seconds: float, seed: int) -> Burst:
    """Calls a second, of which some read: so that ``rate`` is that of the commands."""
    calls = rate * READS / (READS - 1)
    drain = (times - USUAL) * seconds / (1 - USUAL)
    return Burst(
        usual=USUAL * calls,
        peak=times * calls,
        before=BEFORE_SECONDS,
        during=seconds,
        after=min(AFTER * drain + AFTER_SECONDS, MOST_AFTER_SECONDS),
        seed=seed,
    )


def _asked(
    running: Running, pipe: Connection, mechanism: Mechanism, rate: float, order: Order
) -> tuple[pd.DataFrame, list[Operation]]:
    """Let the clients make the calls, and look until all that was taken is visible."""
    with running.protected(mechanism.protection(rate).check()) as connect:
        pipe.send((connect, order))
        _hear(pipe, running)
        beginning = time.monotonic_ns() + int(0.3e9)
        pipe.send_bytes(str(beginning).encode())
        told = msgspec.msgpack.decode(_hear(pipe, running), type=list[Told])
        sent = [each for each in told if each.token is not None or each.answer is not None]
        still, before = time.monotonic(), -1
        while (unseen := sum(math.isnan(v) for _, v in running.seen(sent))) and (
            time.monotonic() - still < STILL_SECONDS
        ):
            if unseen != before:
                still, before = time.monotonic(), unseen
            for _ in range(20):
                running.look()
    return _rows(running, order, told, beginning), _operations(running, order, told)


def _hear(pipe: Connection, running: Running) -> bytes:
    """The next message of the clients; meanwhile look at what is visible."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not pipe.poll(0):
        running.look()
        if time.monotonic() > deadline:
            raise StackError(
                f"the clients of the bench said nothing for {PATIENCE_SECONDS:g} s; run it again"
            )
    try:
        return pipe.recv_bytes()
    except EOFError:
        raise StackError("the clients of the bench died; the reason is above") from None


def _rows(running: Running, order: Order, told: Sequence[Told], beginning: int) -> pd.DataFrame:
    """A row for each call: instants are seconds from the beginning, NaN for never."""
    import pandas as pd

    frame = pd.DataFrame(
        [
            (
                *(call.command, call.read, call.client, call.urgency, call.intended / 1e9),
                *((each.sent - beginning) / 1e9, (each.told - beginning) / 1e9),
                *(each.outcome, each.code, each.age, each.retry_after, each.why[:200]),
            )
            for call, each in zip(order.calls, told, strict=True)
        ],
        columns=[
            *("command", "read", "client", "urgency", "intended", "sent", "told"),
            *("outcome", "code", "age", "retry_after", "why"),
        ],
    ).astype({"age": float, "retry_after": float})
    seen = running.seen(told)
    for name, place in (("heard", 0), ("visible", 1)):
        frame[name] = [(instants[place] - beginning) / 1e9 for instants in seen]
    frame.loc[frame["read"], ["heard", "visible"]] = float("nan")
    return frame


def _operations(running: Running, order: Order, told: Sequence[Told]) -> list[Operation]:
    """What the checkers are given: what is turned away has not happened."""
    found, commands = [], order.commands
    for call, each in zip(order.calls, told, strict=True):
        if call.read:
            continue
        operation = Operation(running.id_of(order.key_of(call)), commands[call.command])
        operation.token = each.token
        if each.outcome == "turned away":
            operation.failed(each.why)
        elif each.answer is not None:
            operation.ok(each.answer)
        else:
            operation.unknown(each.why or "its answer is in the log")
        found.append(operation)
    return found


def _judged(operations: Sequence[Operation], verdicts: dict[str, Verdict]) -> dict[str, int]:
    """The commands that were accepted, and those of them that C1 misses."""
    lost = verdicts["C1"].violations
    accepted = [o for o in operations if o.answer is not None and o.answer.accepted]
    return {
        "accepted": len(accepted),
        "lost": sum(any(f"{o.id!r}" in line for line in lost) for o in operations),
    }


def _found(done: Sequence[One], mechanism: str, times: float) -> list[dict[str, Any]]:
    return [o.found for o in done if o.mechanism.name == mechanism and o.times == times]


def _labelled(one: One, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(mechanism=one.mechanism.name, times=one.times, round=one.round)


__all__ = ["Sizes", "burst"]
