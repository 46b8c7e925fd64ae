"""``labkit load``: an open loop over real servers, and whether its figures count.

Four kinds of processes take part, each with its own connections: the *generator* sends by its
timetable (``generator.py``), the *observer* counts the commands in the system (``observer.py``),
the *workers* work, and this process *listens*: it records when it hears each commit (``heard``),
and between which two looks the view shows each command (``stale``, ``visible``).

During the load only instants are recorded. Afterwards the commits are decoded and joined with the
commands, and the checkers run.

A run counts if the generator was on time, Little's law holds within 5 %, and no checker is red.
Otherwise the result has no figures, only the reasons (``Loaded.trouble``).
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from labkit.errors import CheckFailed, TimedOut, UsageError
from labkit.experiments.backlog import behind
from labkit.experiments.load import arrivals, steady
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.figures import figures, judge, judge_by_checkers
from labkit.experiments.load.generator import GeneratorReady, acknowledged, generate
from labkit.experiments.load.observer import Watch, cost, observe, samples
from labkit.experiments.meter import Meter, spent
from labkit.experiments.processes import harness_of, hear, on_fast_client, process
from labkit.experiments.results import versions
from labkit.lab import Lab
from labkit.messages import Commit
from labkit.ports.broker import Source
from labkit.read.projection import streams_of

if TYPE_CHECKING:
    import pandas as pd

#: From the last preparation to the first command.
START_SECONDS = 0.5
#: From one look of the listener at the view to the next: a look takes the machine 0.3 ms.
LOOK_SECONDS = 0.005
#: If nothing changes for this long and no worker is behind, the missing commands are lost.
STILL_SECONDS = 5.0
#: If nothing changes for this long and a worker is behind, the workers hang.
QUIET_SECONDS = 60.0

#: Called with the number of visible commands and the number of all commands.
Visible = Callable[[int, int], None]


class Loaded(Struct):
    """The result of a run.

    ``commands`` has a row for each command of the measured window: id, stream, partition, offset,
    outcome, version, and instants (monotonic ns of one host; NaN where unknown): intended, sent,
    acked, polled, decided, heard, fetched, applied, stale, visible. It became visible between the
    last two. A view keeps ``fetched`` and ``applied`` of the newest command of each stream.

    ``samples`` has a row for each look of the observer, also before and after the window
    (``observer.samples``). ``window``: from and until, in the same nanoseconds. ``run``: the run
    whose workers did it; ``sent``: commands in all, those of the warm-up and the opening too.
    """

    plan: Plan
    commands: pd.DataFrame
    samples: pd.DataFrame
    window: steady.Window
    report: dict[str, Any]
    sent: int
    trouble: list[str] = msgspec.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether its figures count."""
        return not self.trouble


class _Listener:
    """Records commits as they arrive, undecoded, and looks at the view."""

    def __init__(self, lab: Lab, through: Lab, service: str) -> None:
        """``lab`` has the workers; ``through`` is the same run on the client that listens."""
        self._lab = lab
        self._tail: Source = through.broker.source(lab.topic_name(f"{service}.events"))
        for partition, end in self._tail.ends().items():
            self._tail.start(partition, end)
        self.watch = Watch(through, service)
        self.heard: list[tuple[int, bytes]] = []
        self.visible = 0
        #: Given the number of visible commands, why the load should end; "": it may go on.
        self.overload: Callable[[int], str] = lambda visible: ""
        self._looked = 0.0  # the first call looks
        self._checked = self._changed = time.monotonic()

    def listen(self) -> None:
        """Poll once, and look if it is time; raises if servers or workers are gone."""
        wait = max(0.001, self._looked + LOOK_SECONDS - time.monotonic())
        records = self._tail.poll(5_000, wait).records
        now = time.monotonic_ns()
        self.heard += [(now, record.value) for record in records]
        visible = self.visible
        if now >= (self._looked + LOOK_SECONDS) * 1e9:
            self._looked, visible = now / 1e9, self.watch.look()
        if records or visible != self.visible:
            self._changed = time.monotonic()
        self.visible = visible
        if time.monotonic() - self._checked > 1:
            self._checked = time.monotonic()
            self._lab.check()
            if why := self.overload(visible):
                raise CheckFailed(
                    f"the load was ended, it is too much: {why}. `labkit load --sustainable` finds "
                    "a rate that these workers sustain"
                )

    def until(self, count: int, meanwhile: Callable[[], None]) -> bool:
        """Wait until ``count`` commits are heard and visible; ``False`` if some are lost.

        Raises ``TimedOut`` if the workers hang.
        """
        while len(self.heard) < count or self.visible < count:
            self.listen()
            meanwhile()
            still = time.monotonic() - self._changed
            if still > STILL_SECONDS and not behind(self._lab):
                return False
            if still > QUIET_SECONDS:
                raise TimedOut(
                    f"{len(self.heard)} of {count} commands were answered and {self.visible} are "
                    f"visible, then nothing came from the workers for {QUIET_SECONDS:g} s; see "
                    f"{self._lab.of.logs()}"
                )
        return True

    def close(self) -> None:
        self._tail.close()


def offer(
    lab: Lab,
    plan: Plan,
    progress: Visible = lambda *_: None,
    *,
    dry: bool = True,
    checked: bool = True,
    warn: Callable[[str], None] = lambda _: None,
) -> Loaded:
    """Offer a load to the running workers of a lab; each load needs a new run.

    ``dry``: first measure the generator's greatest rate; ``warn`` is told of a plan above it.
    ``checked``: run the checkers; without them no figure counts, so a caller that says ``False``
    has its own checks. Raises ``UsageError`` for a plan that cannot be, ``CheckFailed`` as soon as
    a checked load is hopeless (``steady.Overload``), ``TimedOut`` and ``StackError`` where workers,
    generator or servers fail.
    """
    plan.check()
    if lab.backend == "memory":
        raise UsageError("a load is offered to worker processes, got a lab with backend 'memory'")
    service = plan.service.name
    if service not in lab.services:
        raise UsageError(
            f"keys {plan.named!r} are for service {service!r}, and this run has "
            f"{', '.join(lab.services)}"
        )
    if any(lab.ends(f"{service}.commands").values()):
        raise UsageError(f"run {lab.run!r} has had commands already; make a new Lab for each load")
    settings = harness_of(lab)
    count = multiprocessing.get_context("spawn").RawValue("q", 0)
    with (
        on_fast_client(lab) as through,
        closing(_Listener(lab, through, service)) as listener,
        process(observe, settings, service, count) as observer,
        process(generate, settings, plan, dry, count) as generator,
    ):
        pid = int(hear(lab, observer))
        ready = msgspec.json.decode(hear(lab, generator), type=GeneratorReady)
        listener.until(ready.opened, lambda: None)
        beginning = time.monotonic_ns() + int(START_SECONDS * 1e9)
        total = ready.opened + ready.commands
        if 0 < ready.ability.topic < plan.rate:
            warn(
                f"the generator has just tried, and sends at most {ready.ability.topic:,.0f} "
                f"commands a second here: it will not keep a timetable of {plan.rate:,.0f}"
            )
        if checked:
            overload = steady.Overload()
            listener.overload = lambda visible: overload.look(
                time.monotonic(), count.value, visible
            )
        harness = {"generator": ready.pid, "listener": os.getpid(), "observer": pid}
        meter = Meter(lab, harness)
        began, (before, _) = time.monotonic_ns(), meter.read()
        acked = _drive(lab, listener, generator, beginning, total, progress)
        ended, (after, _) = time.monotonic_ns(), meter.read()
        with suppress(BrokenPipeError):  # it is dead, as the next line finds
            observer.send_bytes(b"stop")
        looks = samples(hear(lab, observer))
    opened = beginning + plan.warm_up * 1e9
    window = (opened, opened + plan.seconds * 1e9)
    heard = _decoded(plan, listener.heard)
    everything = _rows(lab, plan, beginning, acked, heard, listener.watch)
    report: dict[str, Any] = {
        "run": lab.run,
        "client": lab.settings.client,
        "harness_client": ready.client,
        "settings": {"plan": arrivals.shape(plan), "lab": structs.asdict(lab.settings)}
        | {"workers": dict(Counter(worker.role for worker in lab.workers()))},
        "seed": plan.seed,
        "versions": versions(lab.server_versions(), lab.settings.client, ready.client),
        "ability": structs.asdict(ready.ability),
        "observer": cost(looks, window),
        "cpu": spent(before, after, (ended - began) / 1e9, ready.commands)
        | {"harness": list(harness), "servers": list(meter.servers)},
    }
    inside = everything[everything["intended"].between(*window, inclusive="left")]
    loaded = Loaded(plan, inside.reset_index(drop=True), looks, window, report, total)
    if checked:
        judge(loaded, everything)
        judge_by_checkers(lab, loaded, acked, heard)
        if loaded.ok:
            report |= figures(loaded)
    else:
        loaded.trouble.append("it was not checked")
    report |= {"ok": loaded.ok, "trouble": loaded.trouble}
    return loaded


def _drive(
    lab: Lab,
    listener: _Listener,
    generator: Connection,
    beginning: int,
    total: int,
    progress: Visible,
) -> NDArray[np.int64]:
    """Start the generator and listen until all commands are visible; returns its table."""
    with suppress(BrokenPipeError):
        generator.send_bytes(str(beginning).encode())
    told = 0.0

    def tell() -> None:
        nonlocal told
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            progress(min(listener.visible, total), total)

    while not generator.poll(0):
        listener.listen()
        tell()
    acked = acknowledged(hear(lab, generator))
    failed = int((acked[:, 0] < 0).sum())
    listener.until(total - failed, tell)
    progress(listener.visible, total)
    return acked


# --- what became of each command


def _decoded(plan: Plan, heard: Sequence[tuple[int, bytes]]) -> list[tuple[int, Commit[Any]]]:
    codec = plan.service.codec
    return [(at, codec.decode_commit(value)) for at, value in heard]


def _rows(
    lab: Lab,
    plan: Plan,
    beginning: int,
    acked: NDArray[np.int64],
    heard: list[tuple[int, Commit[Any]]],
    watch: Watch,
) -> pd.DataFrame:
    """One row for each command, in the order of the timetable; see ``Loaded.commands``."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "id": [f"c{number}" for number in range(len(acked))],
            "stream": [command.stream for command in arrivals.commands(plan, len(acked))],
            "partition": acked[:, 1],
            "offset": acked[:, 2],
            "intended": (arrivals.instants(plan) + beginning).astype(np.float64),
            "acked": np.where(acked[:, 0] < 0, np.nan, acked[:, 0]),
        }
    )
    commits = pd.DataFrame(
        [
            (c.id, c.answer.outcome, c.answer.version, c.sent, c.polled, c.decided, at)
            for at, c in heard
        ],
        columns=["id", "outcome", "version", "sent", "polled", "decided", "heard"],
    ).drop_duplicates("id")
    frame = frame.merge(commits, "left", "id").merge(_traces(lab, plan), "left", "id")
    frame["stale"], frame["visible"] = watch.ends(acked[:, 1], acked[:, 2])
    order = ["id", "stream", "partition", "offset", "outcome", "version"]
    instants = ["intended", "sent", "acked", "polled", "decided", "heard"]
    instants += ["fetched", "applied", "stale", "visible"]
    return frame[order + instants].astype(dict.fromkeys(instants, np.float64))


def _traces(lab: Lab, plan: Plan) -> pd.DataFrame:
    """The projector's instants, which the view keeps for the newest command of each stream."""
    import pandas as pd

    columns = ["id", "fetched", "applied"]
    where = lab.where(streams_of(plan.service))
    found = [d["trace"] for d in lab.store.find(where, {}, fields=["trace"]) if "trace" in d]
    frame = pd.DataFrame(found, columns=columns)
    return frame.astype({"id": object, "fetched": np.float64, "applied": np.float64})
