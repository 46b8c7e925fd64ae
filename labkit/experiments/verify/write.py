"""``labkit verify write``: the write side under all that may happen to it, then the checkers.

Three services and two processes on real servers. A client sends the mixture of ``mixture.py`` and
writes down what it sees; meanwhile workers join, are killed, paused past their session, and leave
(``crew.py``). Parked streams are looked after midway and at the end, as a person would. Then, at
quiet, the checkers judge by what the client saw.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from labkit import stack
from labkit.errors import DecodeError, UsageError
from labkit.experiments.demo import Progress
from labkit.experiments.results import machine, versions
from labkit.experiments.verify import invariants
from labkit.experiments.verify.checkers import check, gather
from labkit.experiments.verify.faulty_workers import FaultyWorker, FaultyWorkers
from labkit.experiments.verify.history import History
from labkit.experiments.verify.mixture import Mixture
from labkit.experiments.verify.planted_bugs import REPAIRED, planted
from labkit.experiments.verify.verdict import Verdict, together
from labkit.lab import Lab
from labkit.log.partition import read_partition
from labkit.messages import Envelope, ReleaseParked, Token
from labkit.ports.broker import Source
from labkit.ports.failpoints import Failpoint
from labkit.run.worker import Worker, calm_gc
from labkit.services.services import CONTEXTS
from labkit.write.bus import Sent

SERVICES = ("orders", "inventory", "bank")
PROCESSES = ("fulfilment", "transfer")
#: What may be planted, and so must be seen.
PLANTS = ("no-dedupe", "early-offsets", "no-fence", "checkpoint-apart", "random-saga-ids")

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
#: Orders that are not paid in this time are called off.
PAY_WITHIN = 10.0


class Counts(Struct):
    """What the client did."""

    sent: int = 0
    repeated: int = 0
    poison: int = 0
    released: int = 0


def verify_write(
    name: str,
    client: str,
    count: int,
    plant: str | None,
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Run it on real servers; the result is the JSON.

    Starts servers that are not up, and stops what it started. Raises ``UsageError`` for an unknown
    plant, ``StackError`` where servers or workers cannot be had.
    """
    if plant not in (None, *PLANTS):
        raise UsageError(f"--plant must be one of {', '.join(PLANTS)}, got {plant!r}")
    if plant == "no-fence" and client != "kafka-python":
        raise UsageError("--plant no-fence is for --client kafka-python; librdkafka always fences")
    calm_gc()
    with stack.borrowed(name, report), planted("brittle", plant) as marks:
        delivery = "at_most_once" if plant == "early-offsets" else "exactly_once"
        with _lab(name, client, delivery) as lab:
            history = History(lab.bus)
            history.listen(*SERVICES)
            lab.start()
            report(f"run {lab.run}: {count:,} commands")
            crew = FaultyWorkers(lab, marks, _extras())
            try:
                counts, seconds = _drive(lab, history, Mixture(count, seed), crew, marks, progress)
                quiet = _wait_for_quiet(lab, history, crew, counts, progress)
            finally:
                crew.stop()
            report(f"{'quiet' if quiet else 'NOT quiet'}; the checkers look at it")
            found = _judge(lab, history)
            found |= {
                "commands": count,
                "sent": counts.sent,
                "repeated": counts.repeated,
                "poison": counts.poison,
                "released": counts.released,
                "quiet": quiet,
                "commands_per_second": round(count / seconds, 1),
                "seconds": round(seconds, 1),
                "faults": crew.report(),
                "plant": plant,
                "seed": seed,
                "client": client,
                "run": lab.run,
                "versions": versions(lab.server_versions(), lab.settings.client),
                "machine": machine(),
            }
            found["ok"] = (
                quiet
                and crew.struck
                and not found["parked"]
                and not found["ignored_commits"]
                and all(verdict["ok"] for verdict in found["checkers"].values())
            )
    return found


def red(found: dict[str, Any]) -> list[str]:
    """The checkers that found something."""
    return [name for name, verdict in found["checkers"].items() if not verdict["ok"]]


def _extras() -> list[FaultyWorker]:
    """Beside one steady worker for each part: those that something befalls."""
    kill, pause = signal.SIGKILL, signal.SIGSTOP
    return [
        FaultyWorker(Worker("handler", "orders", 1), 0.10, 0.80, kill, Failpoint.HANDLER_OFFSETS),
        FaultyWorker(Worker("handler", "bank", 1), 0.15, 0.95, pause, Failpoint.HANDLER_DECIDED),
        FaultyWorker(Worker("process", "transfer", 1), 0.20, 0.75, kill, Failpoint.PROCESS_SENT),
        FaultyWorker(
            Worker("projector", "inventory", 1), 0.25, 0.70, kill, Failpoint.PROJECTOR_APPLIED
        ),
        FaultyWorker(Worker("handler", "inventory", 1), 0.30, 0.60),
    ]


@contextmanager
def _lab(name: str, client: str, delivery: str) -> Iterator[Lab]:
    """A run of its own, that is gone afterwards."""
    lab = Lab(
        name,
        client=client,
        services=SERVICES,
        processes=PROCESSES,
        delivery=delivery,
        pay_within=PAY_WITHIN,
    )
    with lab:
        try:
            yield lab
        finally:
            lab.drop()


# --- the client


def _drive(
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
    for service in SERVICES:
        for document in lab.store.find(CONTEXTS[service].states, {"dead": True}):
            drop = document["parked"].startswith("not a message")
            release = ReleaseParked(document["_id"], drop=drop, head=document["held"][0])
            sent.append(lab.bus.send(release, service=service))
    deadline = time.monotonic() + STILL_SECONDS
    tokens = [delivery.token() for delivery in sent]
    history.raw += tokens
    while any(history.answer(token) is None for token in tokens) and time.monotonic() < deadline:
        history.hear(0.02)
    answers = [answer for token in tokens if (answer := history.answer(token)) is not None]
    return len(sent), sum(answer.accepted for answer in answers), len(sent) - len(answers)


def _wait_for_quiet(
    lab: Lab, history: History, crew: FaultyWorkers, counts: Counts, progress: Progress
) -> bool:
    """Until no stream is parked, every command has its last answer, every process its end, and
    nobody is behind."""
    deadline = time.monotonic() + QUIET_SECONDS
    still = time.monotonic()
    before: Any = None
    looked = 0.0
    while time.monotonic() < deadline and time.monotonic() - still < STILL_SECONDS:
        history.hear(0.05)
        crew.tend(1.0)
        lab.check()
        if time.monotonic() - looked < 1.0:
            continue
        open_ones = {
            process: len(lab.store.find(f"{process}.instances", {"ended": False}))
            for process in PROCESSES
        }
        lags = [lab.lag(role, host) for role in ("handler", "projector") for host in SERVICES]
        lags += [lab.lag("process", process) for process in PROCESSES]
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


# --- the judgement


def _judge(lab: Lab, history: History) -> dict[str, Any]:
    adopted = adopt_commands(lab, history, SERVICES)
    evidence = {service: gather(lab, service) for service in SERVICES}
    verdicts: dict[str, list[Verdict]] = {}
    for service in SERVICES:
        for name, verdict in check(evidence[service], history).items():
            verdicts.setdefault(name, []).append(verdict)
    instances = {process: lab.store.find(f"{process}.instances", {}) for process in PROCESSES}
    verdicts["C11"] = [invariants.processes(list(history), evidence, instances)]
    order = sorted(verdicts, key=lambda name: int(name[1:]))
    outcomes = Counter(c.outcome for e in evidence.values() for c in e.commits)
    return {
        "checkers": {n: msgspec.to_builtins(together(verdicts[n])) for n in order},
        "parked": sum(
            len(lab.store.find(CONTEXTS[service].states, {"dead": True})) for service in SERVICES
        ),
        "ignored_commits": lab.ignored_commits(),
        "process_commands": adopted,
        "commits": sum(len(e.commits) for e in evidence.values()),
        "aborted_commits": sum(len(e.aborted) for e in evidence.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "streams": {service: len(evidence[service].states) for service in SERVICES},
        "instances": {process: len(found) for process, found in instances.items()},
    }


def adopt_commands(lab: Lab, history: History, services: Iterable[str]) -> int:
    """Take over what processes have sent, as it lies in the commands topics; how many there are."""
    return sum(history.adopt(_commands(lab, service)) for service in services)


def _commands(lab: Lab, service: str) -> Iterator[tuple[Token, Envelope[Any]]]:
    """What lies in a commands topic, as far as it is a command to a service."""
    source: Source = lab.log_broker.source(lab.topic_name(f"{service}.commands"))
    try:
        for partition in sorted(source.ends()):
            for records in read_partition(source, partition):
                for record in records:
                    try:
                        envelope = CONTEXTS[service].codec.decode_command(record.value)
                    except DecodeError:
                        continue
                    if not isinstance(envelope.body, ReleaseParked):
                        yield Token(service, partition, record.offset), envelope
    finally:
        source.close()
