"""The client of ``labkit verify write``: it sends, listens, and releases parked streams."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from labkit.experiments.demo import Progress
from labkit.experiments.verify.faulty_workers import FaultyWorkers
from labkit.experiments.verify.history import History
from labkit.experiments.verify.mixture import NO_MESSAGE, Call, Mixture
from labkit.experiments.verify.planting import REPAIRED
from labkit.lab import Lab
from labkit.messages import ReleaseParked
from labkit.ports.broker import Sender
from labkit.write.bus import Sent

#: Commands without an answer, at most; the client listens after every ``STRIDE`` calls.
WINDOW = 4_000
STRIDE = 200
#: From the first share of the calls on, the client pauses every ``SLOW_STRIDE`` calls until all
#: faults have struck. From the second share on it sends nothing until then.
SLOW_SHARE, HELD_SHARE = 0.35, 0.9
SLOW_STRIDE, SLOW_SECONDS = 20, 0.1
#: The client waits this long for the faults, and this long for anything to change.
FAULTS_SECONDS = 120.0
STILL_SECONDS = 30.0
QUIET_SECONDS = 900.0


class Counts(Struct):
    """What the client did; ``seconds`` run from its first send to the last answer before the final
    releases."""

    sent: int = 0
    repeated: int = 0
    poison: int = 0
    released: int = 0
    seconds: float = 0.0


class Client:
    """Sends a mixture to a run with faulty workers."""

    def __init__(
        self, lab: Lab, history: History, faulty: FaultyWorkers, progress: Progress
    ) -> None:
        self.counts = Counts()
        self._lab = lab
        self._history = history
        self._faulty = faulty
        self._progress = progress

    def send(self, load: Mixture, marks: Path) -> None:
        """Send everything and wait for the answers; then the planted rule is repaired, so that
        parked commands can be replayed."""
        began = time.monotonic()
        raw = self._lab.log_broker.sender()
        try:
            self._send_all(load, raw, began)
        finally:
            raw.close()
        self._progress("sent", load.count, load.count)
        self._wait_for_answers()
        self.counts.seconds = time.monotonic() - began
        (marks / REPAIRED).touch()

    def wait_for_quiet(self) -> bool:
        """Release parked streams until none is parked, each command has its final answer, each
        process has ended, and no worker is behind; ``False`` if nothing changes any more."""
        still = looked = time.monotonic()
        deadline = still + QUIET_SECONDS
        before: Any = None
        while time.monotonic() < deadline and time.monotonic() - still < STILL_SECONDS:
            self._listen(0.05)
            if time.monotonic() - looked < 1.0:  # handlers save their states in the meantime
                continue
            running, lags = self._running(), self._lags()
            answered = len(self._history) - self._history.unfinished
            self._progress("answered", answered, len(self._history))
            parked, unanswered = self._release()
            if unanswered:
                return False
            looked = time.monotonic()
            busy = parked or self._history.unfinished or any(running) or any(lags)
            if self._faulty.done and not busy:
                return True
            now = (len(self._history.heard), running, lags, self._faulty.report())
            if now != before:
                before, still = now, time.monotonic()
        return False

    def _send_all(self, load: Mixture, raw: Sender, began: float) -> None:
        seen, put, released = set[str](), list[Sent](), False
        counts = self.counts
        for number, call in enumerate(load):
            if call.command is None:
                put.append(self._put(call, raw))
            else:
                self._history.send(call.command, id=call.id, expected_version=call.expected_version)
                counts.repeated += call.id in seen
                seen.add(call.id)
            counts.sent += 1
            counts.poison += call.poison
            share = min(1.0, counts.sent / (load.count * 1.05))
            slow = share > SLOW_SHARE and not self._faulty.struck
            if number % (SLOW_STRIDE if slow else STRIDE) == 0:
                self._keep_pace(share, time.monotonic() - began)
                done = min(counts.sent - counts.repeated, load.count)
                self._progress("sent", done, load.count)
                if share > 0.5 and not released:
                    released = True
                    self._release()
        raw.flush(30)
        self._history.raw += [sent.token() for sent in put]

    def _put(self, call: Call, raw: Sender) -> Sent:
        topic = self._lab.topic_name(f"{call.service}.commands")
        return Sent("", call.service, raw.send(topic, call.key.encode(), call.raw))

    def _keep_pace(self, share: float, seconds: float) -> None:
        self._history.acknowledge()
        self._listen(0.0, share)
        waited = time.monotonic()
        while self._history.waiting > WINDOW and time.monotonic() - waited < STILL_SECONDS:
            if self._history.hear(0.01):
                waited = time.monotonic()
            self._faulty.tend(share)
        if share > SLOW_SHARE and not self._faulty.struck and seconds < FAULTS_SECONDS:
            deadline = time.monotonic() + SLOW_SECONDS
            if share > HELD_SHARE:
                deadline = time.monotonic() + FAULTS_SECONDS - seconds
            while time.monotonic() < deadline and not self._faulty.struck:
                self._history.hear(0.01)
                self._faulty.tend(share)

    def _listen(self, timeout: float, share: float = 1.0) -> int:
        heard = self._history.hear(timeout)
        self._faulty.tend(share)
        self._lab.check()
        return heard

    def _wait_for_answers(self) -> None:
        self._history.acknowledge()
        still = time.monotonic()
        while self._history.waiting and time.monotonic() - still < STILL_SECONDS:
            if self._listen(0.05):
                still = time.monotonic()

    def _running(self) -> list[int]:
        """How many instances of each process have not ended."""
        running = {"ended": False}
        names = self._lab.processes
        return [len(self._lab.store.find(f"{name}.instances", running)) for name in names]

    def _lags(self) -> list[int]:
        roles = ("handler", "projector", "process")
        return [self._lab.lag(r, name) for r in roles for name in self._lab.instances_of(r)]

    def _release(self) -> tuple[int, int]:
        """Drop what is not a command, and replay the other parked commands.

        Handlers save their states some tenths of a second after a commit, so a stream may have
        changed since; then the release is refused, since it names the command that it is about.
        Returns how many streams seem to be parked, and how many releases have no answer: C1 shows
        whether these are lost or only late.
        """
        sent = []
        for name, service in self._lab.services.items():
            for document in self._lab.store.find(service.states, {"dead": True}):
                drop = document["parked"].startswith(NO_MESSAGE)
                release = ReleaseParked(document["_id"], drop=drop, head=document["held"][0])
                sent.append(self._lab.bus.send(release, service=name))
        tokens = [delivery.token() for delivery in sent]
        self._history.raw += tokens
        deadline = time.monotonic() + STILL_SECONDS
        while None in map(self._history.answer, tokens) and time.monotonic() < deadline:
            self._history.hear(0.02)
        answers = [a for a in map(self._history.answer, tokens) if a is not None]
        self.counts.released += sum(answer.accepted for answer in answers)
        return len(sent), len(sent) - len(answers)
