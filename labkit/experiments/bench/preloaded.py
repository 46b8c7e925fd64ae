"""A drain: commands lie in the topic, the workers are let go, and it is measured until all is done.

Closed: nobody sends meanwhile, so nothing but the workers and the servers takes time. What is
measured is what they can do, not how long a command waits; for that see ``load.py``.

An observer, a process of its own, counts each 50 ms: *committed* is what the handlers' group has
behind it, *visible* what the checkpoints of the view cover, both in commands (nothing else takes
offsets on a commands topic); and what workers and servers use, in CPU seconds and memory. Workers
join, and are held back until each owns its share of the partitions; then they are let go, all at
once. The rate begins at the first count that has risen when a tenth of the commands is through, and
ends at that of all.

The client keeps where each command was acknowledged. At the end it reads all answers, and the
checkers judge: a run that is not green has no rate, however fast it was.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from labkit import stack
from labkit.errors import TimedOut
from labkit.experiments.bench.filling import CHUNK, FILL_SECONDS, fill_client
from labkit.experiments.load import arrivals
from labkit.experiments.processes import hear, process, settings_of, steadily
from labkit.experiments.verify.checkers import check, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.planted_bugs import GO, HELD_SECONDS, planted
from labkit.experiments.verify.verdict import Verdict
from labkit.lab import READY_SECONDS, Lab
from labkit.messages import Command, Envelope, Token, encode
from labkit.run.registry import read_registry
from labkit.services.orders import CancelOrder

CONTEXT = "orders"
LOOKS_PER_SECOND = 20.0
#: The share of the commands that is through before anything counts.
WARM_UP = 0.1
#: So many of the commands come a second time, with the same id: who forgets ids is found out.
REPEATED = 0.01
#: The commands are those of an open loop; when it would send them matters to nobody here.
NEW_ORDERS = arrivals.Plan(rate=1.0, seconds=1.0, keys="new")
#: Nothing moved for so long: then what is missing is lost, or the workers hang.
STILL_SECONDS, QUIET_SECONDS = 1.0, 60.0


class Arm(Struct, frozen=True, kw_only=True):
    """One way to run the same work.

    Args:
        name: for people.
        value: what the factor is set to.
        commands: how many lie in the topic.
        workers: handlers, and as many projectors.
        payload: bytes of ballast in every second command, and in its event.
        settings: of the lab.
        plant: bugs, see ``plants.py``.
    """

    name: str
    value: int | str
    commands: int
    workers: int = 1
    payload: int = 0
    settings: dict[str, Any] = {}
    plant: str = ""


class Look(Struct, frozen=True):
    """One look of the observer; ``at`` in monotonic ns, ``cpu`` in seconds by role, so far.

    ``memory``: the bytes that the processes of a role hold (resident), all of them together.
    """

    at: int
    committed: int
    visible: int
    cpu: dict[str, float]
    memory: dict[str, int] = {}


class Window(Struct, frozen=True):
    """Two looks between which work is counted; ``steady``: see ``window``."""

    first: Look
    last: Look
    steady: bool

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.last.at - self.first.at) / 1e9


class Drained(Struct):
    """One run: a row of figures, the looks, and what the checkers say."""

    row: dict[str, Any]
    looks: list[Look]
    verdicts: dict[str, Verdict]


def drain(
    name: str, arm: Arm, seed: int, progress: Callable[[int, int], None] = lambda *_: None
) -> Drained:
    """One run of an arm, with topics and a database of its own, gone afterwards.

    Raises ``TimedOut`` where nothing moves any more, ``StackError`` where servers or workers fail.
    """
    with Lab(name, services=[CONTEXT], start=False, **arm.settings) as lab:
        try:
            with fast(lab) as client:
                history, size = _preload(client, arm, seed)
                looks, went = watch(lab, arm.workers, len(history), progress, arm.plant)
                lab.stop()
                return _judge(client, arm, history, looks, went, size)
        finally:
            lab.drop()


def fast(lab: Lab) -> Lab:
    """The same run, on the fastest client that is there: for what is not measured."""
    settings = settings_of(lab) | {"client": fill_client(lab.settings.client)}
    return Lab(**settings, start=False)


def _wait_until_shared(lab: Lab, workers: int, marks: Path) -> None:
    """Until each worker owns some partitions, and all are owned. Raises ``TimedOut``."""
    deadline = time.monotonic() + READY_SECONDS
    for role in ("handler", "projector"):
        while True:
            said = [file.read_text() for file in marks.glob(f"{role}.*")]
            owned = [int(count) for count in said if count]  # it may be writing just now
            if sum(owned) == lab.partitions and owned.count(0) == 0 and len(owned) == workers:
                break
            lab.check()
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"of {lab.partitions} partitions {workers} {role}s own {owned} after "
                    f"{READY_SECONDS:g} s; see {lab.of.logs()}"
                )
            time.sleep(HELD_SECONDS)


# --- what is sent


def orders(count: int, payload: int, seed: int) -> Iterator[tuple[str, Command]]:
    """So many commands with their ids: the CDNOW purchases, again and again, as new orders.

    With a payload every second command cancels the order before it, and has its reason to say: an
    order itself has no field that could be that long. One command in a hundred is sent twice.
    """
    rng, made = Random(seed), 0
    for order in arrivals.commands(NEW_ORDERS, count):
        calls: list[tuple[str, Command]] = [(f"c{made}", order)]
        if payload:
            calls.append((f"c{made}-", CancelOrder(order.stream, "x" * payload)))
        if rng.random() < REPEATED:
            calls.append(calls[-1])
        for call in calls[: count - made]:
            made += 1
            yield call


def _preload(client: Lab, arm: Arm, seed: int) -> tuple[History, int]:
    """Send all; the history, with the place of each command, and bytes in all."""
    history, size = History(), 0
    sender = client.log_broker.sender()
    topic = client.topic_name(f"{CONTEXT}.commands")
    under_way = []
    try:
        for id, command in orders(arm.commands, arm.payload, seed):
            now = time.monotonic_ns()
            value = encode(Envelope(id, command, intended=now, sent=now))
            size += len(value)
            delivery = sender.send(topic, command.stream.encode(), value)
            under_way.append((history.invoke(command, id=id), delivery))
            if len(under_way) == CHUNK or len(history) == arm.commands:
                sender.flush(FILL_SECONDS)
                for operation, sent in under_way:
                    operation.token = Token(CONTEXT, *sent.result(FILL_SECONDS))
                under_way.clear()
    finally:
        sender.close()
    return history, size


# --- what is seen meanwhile


def watch(
    lab: Lab,
    workers: int,
    total: int,
    progress: Callable[[int, int], None],
    plant: str = "",
) -> tuple[list[Look], int]:
    """Start so many handlers and projectors of a run in whose topic ``total`` commands lie.

    All looks until all is through, or nothing more will be; and when the workers were let go, in
    monotonic ns. They live on. Raises ``TimedOut`` where nothing moves any more.
    """
    names = "held", plant or os.environ.get("LABKIT_PLANT")
    with process(_observe, settings_of(lab)) as observer, planted(*names) as at:
        hear(lab, observer)
        lab.start(workers, workers)
        _wait_until_shared(lab, workers, at)
        (at / GO).touch()
        went = time.monotonic_ns()
        return _follow(lab, observer, total, progress), went


def _observe(pipe: Connection, settings: dict[str, Any]) -> None:
    """Looks at a steady rate, each told at once, until the other end is closed."""
    with Lab(**settings, start=False) as lab:
        meter = Meter(lab)
        topic, group = lab.topic_name(f"{CONTEXT}.commands"), lab.of.group("handler", CONTEXT)

        def look(_: int) -> None:
            committed = lab.log_broker.committed(topic, group)
            reached = lab.queries.reached(CONTEXT)
            at = time.monotonic_ns()
            visible = sum(offset + 1 for offset in reached.values())
            cpu, memory = meter.read()
            seen = Look(at, sum(committed.values()), visible, cpu, memory)
            pipe.send_bytes(msgspec.json.encode(seen))

        look(0)
        steadily(pipe, LOOKS_PER_SECOND, look)


class Meter:
    """What workers and servers use by role, as far as they are processes of this host."""

    def __init__(self, lab: Lab) -> None:
        self._registry = lab.of.registry()
        self._seconds: dict[tuple[str, int], float] = {}
        servers = stack.status(lab.name)["servers"]
        self._servers = [(s["name"], s["pid"]) for s in servers if s.get("pid")]

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        """The CPU seconds of each role so far, and the bytes that it holds now.

        A process that has died counts with the seconds of its last reading.
        """
        registry = read_registry(self._registry)
        workers = [(w.role, w.pid) for w in registry.workers] if registry else []
        memory: dict[str, int] = {}
        for role, pid in [*workers, *self._servers]:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                times = process.cpu_times()
                self._seconds[role, pid] = times.user + times.system
                memory[role] = memory.get(role, 0) + process.memory_info().rss
        seconds: dict[str, float] = {}
        for (role, _), spent in self._seconds.items():
            seconds[role] = seconds.get(role, 0.0) + spent
        return seconds, memory


def _follow(
    lab: Lab, observer: Connection, total: int, progress: Callable[[int, int], None]
) -> list[Look]:
    """All looks until everything is visible, or nothing more will be."""
    looks: list[Look] = []
    moved, through = time.monotonic(), 0
    while True:
        look = msgspec.json.decode(hear(lab, observer), type=Look)
        if not looks or (look.committed, look.visible) != (looks[-1].committed, looks[-1].visible):
            moved = time.monotonic()
            progress(min(look.visible, total), total)
        looks.append(look)
        if look.visible >= total and look.committed >= total:
            return looks
        if through and look.at > through:  # it was looked at after all had been done
            return looks
        still = time.monotonic() - moved
        if still > STILL_SECONDS and not through and not _behind(lab):
            through = time.monotonic_ns()
        if still > QUIET_SECONDS:
            raise TimedOut(
                f"{look.visible} of {total} commands are visible, then nothing moved for "
                f"{QUIET_SECONDS:g} s; see {lab.of.logs()}"
            )


def _behind(lab: Lab) -> bool:
    """Asked in the order of a message: who has nothing left gets nothing more."""
    roles = ("handler", *(["relay"] if lab.instances_of("relay") else []), "projector")
    return any(lab.lag(role, CONTEXT) for role in roles)


def window(looks: Sequence[Look], total: int, went: int, what: str) -> Window | None:
    """Where ``what`` (``committed`` or ``visible``) is counted; ``None``: it never got to all.

    A count begins where it has just risen, or the batch under way would count too much. Where less
    than half of the commands would be left, it begins earlier, and is not steady.
    """
    counts = [getattr(look, what) for look in looks]
    last = next((n for n, count in enumerate(counts) if count >= total), None)
    if last is None:
        return None
    risen = [n for n in range(1, last) if counts[n] > max(counts[n - 1], WARM_UP * total - 1)]
    steady = [n for n in risen if looks[n].at >= went and counts[n] <= total / 2]
    if steady:
        return Window(looks[steady[0]], looks[last], True)
    return Window(looks[risen[0] if risen else max(0, last - 1)], looks[last], False)


def rate(found: Window | None, what: str) -> float:
    """Commands a second; NaN where there is no window."""
    if found is None or not found.seconds:
        return math.nan
    count: int = getattr(found.last, what) - getattr(found.first, what)
    return count / found.seconds


# --- what is judged afterwards


def _judge(
    client: Lab, arm: Arm, history: History, looks: list[Look], went: int, size: int
) -> Drained:
    evidence = gather(client, CONTEXT)
    history.read(CONTEXT, evidence.commits)
    verdicts = check(evidence, history)
    red = [name for name, verdict in verdicts.items() if not verdict.ok]
    ends = sum(client.ends(f"{CONTEXT}.events").values())
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


__all__ = [
    "Arm",
    "Drained",
    "Look",
    "drain",
    "fast",
    "orders",
    "rate",
    "watch",
    "window",
]
