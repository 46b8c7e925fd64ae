"""``labkit verify queries``: each its own answer, though a handler is killed in the middle.

Accounts and orders are made, each with a sum of its own. Then a requester asks for them over the
query bus, in several ways and many at once, and a handler of each service is killed while it holds
questions in its hands. Its supervisor starts it again, and until then the other one takes over what
was not answered. Nothing is written meanwhile, so what each question must be answered is known: the
views are read once beforehand, by the same conditions, and what they say of each sum is checked
against what was sent.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from hdrh.histogram import HdrHistogram
from msgspec import Struct

from labkit import stack
from labkit.errors import CheckFailed, UsageError
from labkit.experiments.demo import Progress
from labkit.experiments.percentiles import RANGE, percentiles
from labkit.experiments.processes import PATIENCE_SECONDS
from labkit.experiments.results import machine, versions
from labkit.experiments.verify.planted_bugs import planted
from labkit.lab import Lab
from labkit.messages import Result, encode_value
from labkit.query.bus import Question
from labkit.run.registry import Alive
from labkit.run.worker import calm_gc
from labkit.services.bank import Deposit, OpenAccount
from labkit.services.conditions import plan
from labkit.services.orders import PlaceOrder

SERVICES = ("bank", "orders")
#: What may be planted, and so must be seen.
PLANTS = ("swapped-answers", "lost-answers")
#: Accounts, and as many orders: at most, and as a share of the questions; and their customers.
SUMS, SHARE = 400, 0.1
CUSTOMERS = 20
#: Questions under way at once.
WINDOW = 400
#: A dead handler's partitions go to others when its session is over: 6 s, on a busy host more.
TIMEOUT_SECONDS = 60.0
#: At least so many of the questions must be answered.
ANSWERED = 0.99
HANDLERS = 2


class Way(Struct, frozen=True):
    """A question, and what it must be answered."""

    name: str
    params: dict[str, Any]
    expected: bytes


class Tally(Struct):
    """What became of the questions."""

    asked: int = 0
    answered: int = 0
    timed_out: int = 0
    refused: int = 0
    mismatched: int = 0
    kinds: Counter[str] = Counter()
    examples: list[str] = []


def verify_queries(
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
    calm_gc()
    with (
        stack.borrowed(name, report) as servers,
        planted(plant),
        Lab(name, client=client, services=SERVICES) as lab,
    ):
        try:
            lab.start(queries=HANDLERS)
            report(f"run {lab.run}: {count:,} questions")
            ways = _ways(lab, max(CUSTOMERS, min(SUMS, int(count * SHARE))), progress)
            tally, times = Tally(kinds=Counter()), HdrHistogram(*RANGE)
            began = time.monotonic()
            killed = _ask(lab, ways, count, Random(seed), tally, times, progress)
            seconds = time.monotonic() - began
            reborn = _reborn(lab, killed)
            found: dict[str, Any] = {
                "verify": "queries",
                "ok": (
                    tally.answered >= count * ANSWERED
                    and tally.mismatched == 0
                    and len(killed) == len(SERVICES)
                    and reborn
                ),
                "asked": tally.asked,
                "answered": tally.answered,
                "timed_out": tally.timed_out,
                "refused": tally.refused,
                "mismatched": tally.mismatched,
                "dropped": lab.query_bus.dropped,
                "queries": dict(sorted(tally.kinds.items())),
                "examples": tally.examples,
                "killed": [{"worker": f"query-{w.service}-{w.slot}", "pid": w.pid} for w in killed],
                "started_again": reborn,
                "seconds": round(seconds, 1),
                "answers_per_second": round(tally.answered / seconds, 1),
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
        finally:
            lab.drop()
    return found


def _ways(lab: Lab, sums: int, progress: Progress) -> list[Way]:
    """Make accounts and orders, and note what each question about them is answered."""
    commands: list[OpenAccount | Deposit | PlaceOrder] = []
    for number in range(sums):
        commands += [OpenAccount(f"a{number}", "ann"), Deposit(f"a{number}", 1_000 + number)]
    for number in range(sums):
        customer, day = f"c{number % CUSTOMERS}", f"1997-{number % 12 + 1:02}-01"
        commands.append(PlaceOrder(f"o{number}", customer, day, 1, 5_000 + number))
    sent = [lab.bus.send(command) for command in commands]
    lab.queries.until([s.token(PATIENCE_SECONDS) for s in sent], PATIENCE_SECONDS)
    asked: list[tuple[str, dict[str, Any]]] = []
    for number in range(sums):
        asked.append(("account", {"account": f"a{number}"}))
        asked.append(("statement", {"account": f"a{number}", "order": "newest first"}))
        asked.append(("account", {"account": f"nobody{number}"}))
    for number in range(sums):
        asked.append(("order", {"order": f"o{number}"}))
        asked.append(("orders", {"orders": f"o{number}, o{(number + 1) % sums}"}))
    for number in range(CUSTOMERS):
        for sort in ("-amount", "date"):
            conditions = {"customer": f"c{number}", "status": "UNPAID", "sort": sort, "limit": "5"}
            asked.append(("orders_of", conditions))
    ways = []
    for number, (name, params) in enumerate(asked):
        value = plan(name, params).ask(lab.queries)
        _true(name, params, value)
        ways.append(Way(name, params, encode_value(value)))
        progress("read", number + 1, len(asked))
    return ways


def _true(name: str, params: dict[str, Any], value: Any) -> None:
    """What the views say is what was sent."""
    known = name, params.get(name, "")
    match known:
        case "account", id if id.startswith("nobody"):
            right = value is None
        case "account", id:
            right = (value["_id"], value["balance"]) == (id, 1_000 + int(id[1:]))
        case "order", id:
            right = (value["_id"], value["cents"]) == (id, 5_000 + int(id[1:]))
        case _:
            return
    if not right:
        raise CheckFailed(f"the view of {name!r} says {value} of {params}")


def _ask(
    lab: Lab,
    ways: list[Way],
    count: int,
    rng: Random,
    tally: Tally,
    times: HdrHistogram,
    progress: Progress,
) -> list[Alive]:
    """All questions, many at once; those who were killed in the middle."""
    bus = lab.query_bus
    under_way: dict[str, tuple[Question, Way, float]] = {}
    killed: list[Alive] = []
    while under_way or tally.asked < count:
        while tally.asked < count and len(under_way) < WINDOW:
            way = rng.choice(ways)
            question = bus.send(way.name, timeout=TIMEOUT_SECONDS, **way.params)
            under_way[question.id] = question, way, time.monotonic()
            tally.asked += 1
            tally.kinds[way.name] += 1
        for result in bus.hear(0.02):
            question, way, began = under_way.pop(result.id)
            bus.forget(question.id)
            times.record_value(max(1, int((time.monotonic() - began) * 1e6)))
            compare(way, result, tally)
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


def compare(way: Way, result: Result, tally: Tally) -> None:
    """Count an answer, and whether it is the right one."""
    if not result.ok:
        tally.refused += 1
        line = f"{way.name} {way.params}: {result.error}: {result.text}"
    elif encode_value(result.value) == way.expected:
        tally.answered += 1
        return
    else:
        tally.answered += 1
        tally.mismatched += 1
        line = f"{way.name} {way.params} was answered {str(result.value)[:200]}"
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
