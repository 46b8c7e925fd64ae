"""``labkit verify queries``: each its own answer, though a handler is killed in the middle.

The services' workloads fill the views, and the checkers of these services say whether they are
right. Then a requester sends queries over the query bus, many at once: those that the services
declare, with conditions taken from the documents, and those that every view has. A handler of each
service is killed while queries are under way. Its supervisor starts it again; until then the other
handler takes over what was not answered. Nothing is written meanwhile, so the right answer to each
query is known: the views are read once beforehand, in this process.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
from hdrh.histogram import HdrHistogram
from msgspec import Struct

from labkit import stack
from labkit.errors import CheckFailed, LabkitError, UsageError
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import quotient
from labkit.experiments.percentiles import RANGE, percentiles
from labkit.experiments.processes import PATIENCE_SECONDS
from labkit.experiments.results import archive, machine, versions
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.checkers import check_run, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.mixture import workload_of
from labkit.experiments.verify.planted_bugs import planted
from labkit.experiments.verify.verdict import red
from labkit.lab import Lab
from labkit.messages import Document, encode
from labkit.plots.rule_of_three import at_most
from labkit.query.bus import Question
from labkit.query.wire import Result
from labkit.read.standard import All, ById
from labkit.run import references
from labkit.run.registry import Alive
from labkit.run.worker import calm_gc
from labkit.service import Query, Service, made
from labkit.service.declared import samples
from labkit.services import MEASURED

#: What may be planted, and so must be seen.
PLANTS = ("swapped-answers", "lost-answers")
#: Commands to each service: at most, and as a share of the queries.
COMMANDS, SHARE = 1_500, 0.5
LEAST_COMMANDS = 100
#: Of each view, so many documents are asked for, and their fields are conditions.
DOCUMENTS = 300
#: Queries under way at once.
WINDOW = 400
#: A dead handler's partitions go to others when its session is over: 3 s, on a busy host more.
TIMEOUT_SECONDS = 60.0
#: At least so many of the queries must be answered.
ANSWERED = 0.99
HANDLERS = 2


class Expected(Struct, frozen=True):
    """A query, and what it must be answered."""

    query: Query
    answer: bytes

    @property
    def name(self) -> str:
        return type(self.query).__name__


class Tally(Struct):
    """What became of the queries."""

    asked: int = 0
    answered: int = 0
    timed_out: int = 0
    refused: int = 0
    mismatched: int = 0
    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    examples: list[str] = msgspec.field(default_factory=list)


def verify_queries(
    name: str,
    client: str,
    count: int,
    plant: str | None,
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
    services: Sequence[str | Service] = (),
) -> dict[str, Any]:
    """Run it on real servers; the result is the JSON.

    ``services`` as for ``Lab``; without them, two built-in ones take part. Starts servers that are
    not up, and stops what it started. Raises ``UsageError`` for an unknown plant or service, for a
    service without a workload or without views; ``StackError`` where servers or workers cannot be
    had, and ``CheckFailed`` if the views are wrong before anything was asked.
    """
    if plant not in (None, *PLANTS):
        raise UsageError(f"--plant must be one of {', '.join(PLANTS)}, got {plant!r}")
    for service in (services := services or MEASURED):  # before servers are started
        found_service = references.service(service)
        workload_of(found_service)
        if not found_service.views:
            raise UsageError(f"service {found_service.name!r} has no views to query")
    calm_gc()
    with (
        stack.borrowed(name, report) as servers,
        planted(plant),
        scratch_run(name, client=client, services=services) as lab,
    ):
        lab.start(queries=HANDLERS)
        report(f"run {lab.run}: {count:,} queries")
        _fill(lab, max(LEAST_COMMANDS, min(COMMANDS, int(count * SHARE))), seed)
        known = _expected(lab, Random(seed), progress)
        tally, times = Tally(), HdrHistogram(*RANGE)
        began = time.monotonic()
        killed = _ask(lab, known, count, Random(seed), tally, times, progress)
        seconds = time.monotonic() - began
        reborn = _reborn(lab, killed)
        found: dict[str, Any] = {
            "verify": "queries",
            "ok": (
                tally.answered >= count * ANSWERED
                and tally.mismatched == 0
                and len(killed) == len(lab.services)
                and reborn
            ),
            "asked": tally.asked,
            "answered": tally.answered,
            "timed_out": tally.timed_out,
            "refused": tally.refused,
            "mismatched": tally.mismatched,
            "mismatched_at_most": at_most(tally.mismatched, tally.answered),
            "dropped": lab.query_bus.dropped,
            "queries": dict(sorted(tally.kinds.items())),
            "examples": tally.examples,
            "killed": [{"worker": f"query-{w.service}-{w.slot}", "pid": w.pid} for w in killed],
            "started_again": reborn,
            "seconds": round(seconds, 1),
            "answers_per_second": round(quotient(tally.answered, seconds), 1),
            **percentiles(times),
            "plant": plant,
            "seed": seed,
            "client": client,
            "settings": {
                "window": WINDOW,
                "timeout_s": TIMEOUT_SECONDS,
                "handlers": HANDLERS,
                "partitions": lab.partitions,
            },
            "versions": versions(lab.server_versions(), lab.settings.client),
            "machine": machine(),
            "stack": servers.kind,
        }
    found["folder"] = str(archive("verify-queries", found))
    return found


def _fill(lab: Lab, count: int, seed: int) -> None:
    """Send ``count`` commands to each service, and wait for the views; the checkers judge them."""
    history = History(lab.bus)
    for service in lab.services.values():
        workload, name = workload_of(service), f"{seed} {service.name}"
        every = itertools.chain(workload.opening(Random(name)), workload.commands(Random(name)))
        for command in itertools.islice(every, count):
            history.send(command)
    history.settle(PATIENCE_SECONDS)
    sent = [operation.token for operation in history if operation.token is not None]
    lab.queries.until(sent, PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while wrong := red(check_run(lab, history, {name: gather(lab, name) for name in lab.services})):
        if time.monotonic() > deadline:  # handlers save their states a moment later
            raise CheckFailed(f"the views are wrong before any query: {', '.join(wrong)} are red")
        lab.drive()
        time.sleep(0.2)


def _expected(lab: Lab, random: Random, progress: Progress) -> list[Expected]:
    """Queries with different answers, read here; each once."""
    known: dict[bytes, Expected] = {}
    queries = list(_queries(lab, random))
    for number, query in enumerate(queries, 1):
        with suppress(LabkitError):  # a condition that cannot be, or a view of another service
            value = lab.queries.ask(query)
            key = encode([type(query).__name__, msgspec.to_builtins(query)])
            known[key] = Expected(query, encode(value))
        progress("read", number, len(queries))
    return list(known.values())


def _queries(lab: Lab, random: Random) -> Iterator[Query]:
    for service in lab.services.values():
        found: list[Document] = []
        for view in service.views:
            name = f"{service.name}.{view.name}"
            documents = lab.store.find(lab.where(service.collection(view)), {})
            chosen = random.sample(documents, min(DOCUMENTS, len(documents)))
            found += chosen
            yield from (ById(name, document["_id"]) for document in chosen)
            yield from (All(name, limit=limit) for limit in (1, 2, 5, 10))
            yield ById(name, "nobody")
        for kind in service.queries.values():
            yield from samples(kind)
            for document in found:
                with suppress(UsageError):
                    yield _about(kind, document)


def _about(kind: type[Query], document: Document) -> Query:
    """The query with the conditions that it needs: fields of the document, or else its id."""
    needed = [field.name for field in msgspec.structs.fields(kind) if field.required]
    return made(kind, {name: document.get(name, document["_id"]) for name in needed})


def _ask(
    lab: Lab,
    known: list[Expected],
    count: int,
    rng: Random,
    tally: Tally,
    times: HdrHistogram,
    progress: Progress,
) -> list[Alive]:
    """Ask ``count`` queries, many at once; returns the handlers killed in the middle."""
    bus = lab.query_bus
    under_way: dict[str, tuple[Question, Expected, float]] = {}
    killed: list[Alive] = []
    while under_way or tally.asked < count:
        while tally.asked < count and len(under_way) < WINDOW:
            expected = rng.choice(known)
            question = bus.send(expected.query, timeout=TIMEOUT_SECONDS)
            under_way[question.id] = question, expected, time.monotonic()
            tally.asked += 1
            tally.kinds[expected.name] += 1
        for result in bus.hear(0.02):
            question, expected, began = under_way.pop(result.id)
            bus.forget(question.id)
            times.record_value(max(1, int((time.monotonic() - began) * 1e6)))
            compare(expected, result, tally)
        now = time.monotonic()
        for id, (question, _, _) in list(under_way.items()):
            if now > question.deadline:
                bus.forget(id)
                del under_way[id]
                tally.timed_out += 1
        done = tally.asked - len(under_way)
        progress("asked", done, count)
        if not killed and done >= count // 2:
            killed = _kill(lab)
        lab.check()
    return killed


def compare(expected: Expected, result: Result, tally: Tally) -> None:
    """Count an answer, and whether it is the right one."""
    if not result.ok:
        tally.refused += 1
        line = f"{expected.query}: {result.error}: {result.text}"
    elif encode(result.value) == expected.answer:
        tally.answered += 1
        return
    else:
        tally.answered += 1
        tally.mismatched += 1
        line = f"{expected.query} was answered {str(result.value)[:200]}"
    tally.examples += [line][: 5 - len(tally.examples)]


def _kill(lab: Lab) -> list[Alive]:
    """One handler of each service, by SIGKILL."""
    victims = [w for w in lab.workers() if w.role == "query" and w.slot == 0]
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    return victims


def _reborn(lab: Lab, killed: list[Alive]) -> bool:
    """Whether the supervisor has started them again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        living = {(w.service, w.slot): w for w in lab.workers() if w.role == "query"}
        if all(living[w.service, w.slot].pid != w.pid for w in killed):
            return True
        time.sleep(0.1)
    return False
