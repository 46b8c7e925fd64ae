"""The client of ``labkit verify write``: sends, hears, and looks after parked streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from labkit.experiments.demo import Progress
from labkit.experiments.verify.faulty_workers import FaultyWorkers
from labkit.experiments.verify.history import History
from labkit.experiments.verify.mixture import Mixture
from labkit.experiments.verify.planted_bugs import REPAIRED
from labkit.lab import Lab
from labkit.messages import ReleaseParked
from labkit.write.bus import Sent

#: Commands under way at once, at most; the client looks after so many calls.
WINDOW = 4_000
STRIDE = 200
#: From this share of the load on the client takes its time until all faults have struck: it rests
#: after so few calls. From the second share on it waits for them, and sends nothing.
SLOW_SHARE, HELD_SHARE = 0.35, 0.9
SLOW_STRIDE, SLOW_SECONDS = 20, 0.1
#: A fault that has not struck by then, strikes no more; and the longest time without any change.
FAULTS_SECONDS = 120.0
STILL_SECONDS = 30.0
QUIET_SECONDS = 900.0


class Counts(Struct):
    """What the client did."""

    sent: int = 0
    repeated: int = 0
    poison: int = 0
    released: int = 0


def drive(
    lab: Lab, history: History, load: Mixture, crew: FaultyWorkers, marks: Path, progress: Progress
) -> tuple[Counts, float]:
    """Send everything; returns the counts, and the seconds from the first send to the last answer
    before anything is released at the end."""
    counts, seen = Counts(), set[str]()
    raw, put = lab.log_broker.sender(), list[Sent]()
    began = time.monotonic()
    tended = False
    try:
        for number, call in enumerate(load):
            if call.command is None:
                topic = lab.topic_name(f"{call.service}.commands")
                put.append(Sent("", call.service, raw.send(topic, call.key.encode(), call.raw)))
            else:
                history.send(call.command, id=call.id, expected_version=call.expected_version)
                counts.repeated += call.id in seen
                seen.add(call.id)
            counts.sent += 1
            counts.poison += call.poison
            share = min(1.0, counts.sent / (load.count * 1.05))
            slow = share > SLOW_SHARE and not crew.struck
            if number % (SLOW_STRIDE if slow else STRIDE) == 0:
                _keep_pace(lab, history, crew, share, time.monotonic() - began)
                progress("sent", min(counts.sent - counts.repeated, load.count), load.count)
                if share > 0.5 and not tended:
                    tended = True
                    counts.released += _release(lab, history)[1]
        raw.flush(30)
        history.raw += [sent.token() for sent in put]
    finally:
        raw.close()
    progress("sent", load.count, load.count)
    _until(lambda: history.waiting == 0, lab, history, crew)
    seconds = time.monotonic() - began
    (marks / REPAIRED).touch()  # from now on a replay helps
    return counts, seconds


def _keep_pace(
    lab: Lab, history: History, crew: FaultyWorkers, share: float, seconds: float
) -> None:
    history.acknowledge()
    history.hear()
    crew.tend(share)
    lab.check()
    waited = time.monotonic()
    while history.waiting > WINDOW and time.monotonic() - waited < STILL_SECONDS:
        if history.hear(0.01):
            waited = time.monotonic()
        crew.tend(share)
    if share > SLOW_SHARE and not crew.struck and seconds < FAULTS_SECONDS:
        deadline = time.monotonic() + SLOW_SECONDS
        if share > HELD_SHARE:
            deadline = time.monotonic() + FAULTS_SECONDS - seconds
        while time.monotonic() < deadline and not crew.struck:
            history.hear(0.01)
            crew.tend(share)


def _until(done: Callable[[], bool], lab: Lab, history: History, crew: FaultyWorkers) -> bool:
    """Hear on until it is so; ``False`` where nothing was heard for long."""
    history.acknowledge()
    still = time.monotonic()
    while not done():
        if history.hear(0.05):
            still = time.monotonic()
        elif time.monotonic() - still > STILL_SECONDS:
            return False
        crew.tend(1.0)
        lab.check()
    return True


def _release(lab: Lab, history: History) -> tuple[int, int, int]:
    """What somebody does about parked streams: what is no command is dropped, the rest replayed.

    Handlers save their states some tenths of a second after a commit, so this may look at what has
    changed since; then the release is refused, since it names the command that it is about.
    Returns how many streams seemed to be parked, how many were released, and how many releases had
    no answer: if they are lost, and not only late, C1 sees that.
    """
    sent = []
    for name, service in lab.services.items():
        for document in lab.store.find(service.states, {"dead": True}):
            drop = document["parked"].startswith("not a message")
            release = ReleaseParked(document["_id"], drop=drop, head=document["held"][0])
            sent.append(lab.bus.send(release, service=name))
    deadline = time.monotonic() + STILL_SECONDS
    tokens = [delivery.token() for delivery in sent]
    history.raw += tokens
    while any(history.answer(token) is None for token in tokens) and time.monotonic() < deadline:
        history.hear(0.02)
    answers = [answer for token in tokens if (answer := history.answer(token)) is not None]
    return len(sent), sum(answer.accepted for answer in answers), len(sent) - len(answers)


def wait_for_quiet(
    lab: Lab, history: History, crew: FaultyWorkers, counts: Counts, progress: Progress
) -> bool:
    """Until no stream is parked, every command has its last answer, every process its end, and
    nobody is behind."""
    deadline = time.monotonic() + QUIET_SECONDS
    still = time.monotonic()
    before: Any = None
    looked = time.monotonic()  # the first look comes when handlers have saved what they know
    while time.monotonic() < deadline and time.monotonic() - still < STILL_SECONDS:
        history.hear(0.05)
        crew.tend(1.0)
        lab.check()
        if time.monotonic() - looked < 1.0:
            continue
        open_ones = {
            process: len(lab.store.find(f"{process}.instances", {"ended": False}))
            for process in lab.processes
        }
        roles = ("handler", "projector", "process")
        lags = [lab.lag(role, host) for role in roles for host in lab.instances_of(role)]
        progress("answered", len(history) - history.unfinished, len(history))
        parked, released, unanswered = _release(lab, history)
        counts.released += released
        if unanswered:
            return False
        looked = time.monotonic()
        busy = parked or history.unfinished or any(open_ones.values()) or any(lags)
        if crew.done and not busy:
            return True
        now = (len(history.heard), open_ones, lags, crew.report())
        if now != before:
            before, still = now, time.monotonic()
    return False
