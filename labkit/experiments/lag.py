"""Open-loop load with probes: how long until the answer, how long until a query sees it.

Every command has an intended instant, and its latency runs from that: a slow server makes the
queue longer, it does not make the load lighter (no coordinated omission).
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import LabkitError, StackError, TimedOut
from labkit.lab import Lab
from labkit.messages import Command
from labkit.runtime import calm_gc

#: A probe asks again and again until it sees the version; so many are under way at once.
PROBES = 16
#: Commits arrive in batches; so many of one are probed, from its first to its last.
PROBES_A_BATCH = 4
#: Between two reads of the probes: a busy loop would take the time it wants to measure.
LOOK_SECONDS = 0.002
#: The generator sends in ticks, since waking up for every command costs more than the command.
TICK_SECONDS = 0.001
WARM_UP_SECONDS = 1.0
START_SECONDS = 0.5
QUIET_SECONDS = 60.0


class Probe(Struct, frozen=True):
    """Consistency lag of one commit: it became visible between the two instants.

    Milliseconds after the reply: the last read that missed it (0 where the first read saw it
    already, since nothing is known before that), and the first that saw it.
    """

    stale_ms: float
    fresh_ms: float


class Samples(Struct):
    """``reply_ms`` runs from the intended instant to the commit's arrival at the bus."""

    rate: float
    sent: int
    reply_ms: list[float] = msgspec.field(default_factory=list)
    probes: list[Probe] = msgspec.field(default_factory=list)


class _Asked(Struct):
    """A probe under way. Instants are monotonic nanoseconds."""

    version: int
    replied: int
    stale: int
    counts: bool


def measure(
    lab: Lab,
    commands: Sequence[Command],
    rate: float,
    progress: Callable[[int], None] = lambda _: None,
) -> Samples:
    """Send ``commands`` to orders at ``rate`` a second from a process of its own, and probe.

    The first second (of a short run: the first tenth) is cut. Raises ``TimedOut`` if not every
    command is answered.
    """
    samples = Samples(rate, len(commands))
    lab.bus.listen("orders")
    settings = {"name": lab.name, "run": lab.run, "client": lab.client, "contexts": ["orders"]}
    spawn = multiprocessing.get_context("spawn")
    generator = spawn.Process(target=_generate, args=(settings, list(commands), rate), daemon=True)
    generator.start()
    try:
        _observe(lab, samples, generator, progress)
    finally:
        if generator.is_alive():
            generator.terminate()
        generator.join()
    return samples


def _generate(settings: dict[str, Any], commands: list[Command], rate: float) -> None:
    """The generator's process: keeps to its timetable whatever the servers do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    try:
        with Lab(**settings, start=False) as lab:
            calm_gc()
            bus = lab.bus
            beginning = time.monotonic_ns() + int(START_SECONDS * 1e9)
            step = 1e9 / rate
            for number, command in enumerate(commands):
                intended = beginning + int(number * step)
                while (ahead := intended - time.monotonic_ns()) > 0:
                    time.sleep(max(ahead / 1e9, TICK_SECONDS))
                bus.send(command, id=command.stream, intended=intended)
            bus.flush(QUIET_SECONDS)
    except LabkitError as error:
        print(f"load generator: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _observe(lab: Lab, samples: Samples, generator: Any, progress: Callable[[int], None]) -> None:
    asked: dict[str, _Asked] = {}
    heard = 0
    first = 0
    warm_up = int(min(WARM_UP_SECONDS, (samples.sent - 1) / samples.rate / 10) * 1e9)
    quiet = checked = time.monotonic()
    while heard < samples.sent or asked:
        commits = lab.bus.hear("orders", LOOK_SECONDS)
        now = time.monotonic_ns()
        first = first or (commits[0].intended if commits else 0)
        warm = first + warm_up
        for commit in commits:
            if commit.intended >= warm:
                samples.reply_ms.append((now - commit.intended) / 1e6)
        if commits:
            heard += len(commits)
            quiet = time.monotonic()
            progress(heard)
            for commit in commits[:: len(commits) // PROBES_A_BATCH + 1]:
                if len(asked) < PROBES:
                    asked[commit.stream] = _Asked(commit.last, now, now, commit.intended >= warm)
        if asked:
            _ask(lab, samples, asked)
        if not commits and time.monotonic() - checked > 1:
            checked = time.monotonic()
            lab.check()
            if generator.exitcode not in (None, 0):
                raise StackError(
                    f"the load generator ended with code {generator.exitcode} after {heard} of "
                    f"{samples.sent} answers; its reason is above"
                )
            if checked - quiet > QUIET_SECONDS:
                raise TimedOut(
                    f"{heard} of {samples.sent} commands were answered, then nothing came for "
                    f"{QUIET_SECONDS:g} s; see the logs of lab {lab.name!r}"
                )


def _ask(lab: Lab, samples: Samples, asked: dict[str, _Asked]) -> None:
    """One read for all probes under way."""
    before = time.monotonic_ns()
    found = lab.queries.orders(asked)
    after = time.monotonic_ns()
    for order_id, probe in list(asked.items()):
        if order_id in found and found[order_id]["version"] >= probe.version:
            del asked[order_id]
            if probe.counts:
                stale, fresh = probe.stale - probe.replied, after - probe.replied
                samples.probes.append(Probe(stale / 1e6, fresh / 1e6))
        else:
            probe.stale = before
