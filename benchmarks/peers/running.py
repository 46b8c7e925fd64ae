"""One contestant in one round: its two processes, the clock, and a check of its documents."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection

import msgspec
import psutil
from msgspec import Struct
from pymongo.collection import Collection

from benchmarks.peers.contestants import Contestant
from benchmarks.peers.job import Job
from benchmarks.peers.own import FULL, LEAN
from labkit import stack
from labkit.adapters.mongo import connect
from labkit.errors import LabkitError
from labkit.experiments.bench.job import event_of, play
from labkit.experiments.bench.preload import preload
from labkit.experiments.intervals import quotient
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.ports.store import Document
from labkit.run.settings import DEFAULTS
from labkit.services.orders import PlaceOrder

CONTEXT = "orders"
#: A contestant that has started and then writes nothing for this time is given up.
QUIET_SECONDS = 20.0
LOOK_SECONDS = 0.01


class Preloaded(Struct):
    """A topic with commands: the total of their orders, and the last order of each partition."""

    topic: str
    commands: int
    cents: int
    last: dict[int, str]


class Ran(Struct, kw_only=True):
    """One contestant in one round.

    ``commands`` and ``seconds`` are those of the measured window, and ``cpu_seconds`` the CPU time
    of each process in it. ``ahead`` is how many offsets the events were ahead of the documents at
    its start: work of the command side that does not count. If ``wrong`` is not empty, there is no
    ``rate``.
    """

    round: int
    name: str
    full_view: bool
    commands: int = 0
    seconds: float = 0.0
    ahead: int = 0
    rate: float | None = None
    cpu_seconds: dict[str, float] = msgspec.field(default_factory=dict)
    wrong: str = ""


def scratch(name: str) -> AbstractContextManager[Lab]:
    """A run of the orders service; the fastest client prepares it."""
    return scratch_run(name, client="confluent", services=[CONTEXT])


def preload_orders(lab: Lab, count: int) -> Preloaded:
    """Send ``count`` commands, each a new order, to the commands topic of a run."""
    cents, last = 0, dict[int, str]()
    for sent in preload(lab, CONTEXT, ((f"{n:032x}", order(n)) for n in range(count))):
        assert isinstance(sent.command, PlaceOrder)
        last[sent.token.partition] = sent.command.order_id
        cents += event_of(sent.command).cents
    return Preloaded(lab.topic_name(f"{CONTEXT}.commands"), count, cents, last)


def order(number: int) -> PlaceOrder:
    """An order of one of 5,000 customers, of 1997 or 1998: both discount rules apply to some."""
    return PlaceOrder(
        f"order-{number:07d}",
        f"customer-{number * 7919 % 5_000:04d}",
        f"{1997 + number % 2}-{1 + number % 12:02d}-{1 + number % 28:02d}",
        quantity=1 + number % 12,
        cents=100 + number * 104_729 % 10_000,
        product_id=f"product-{number % 100:02d}",
    )


def run(name: str, contestant: Contestant, full: bool, load: Preloaded, number: int) -> Ran:
    """Run both processes of a contestant on the servers ``name``; failures go to ``Ran.wrong``."""
    ran = Ran(round=number, name=contestant.name, full_view=full)
    view = contestant.full_view if full else contestant.view
    with scratch(name) as lab:
        assert lab.servers is not None
        lab.of.prepare(LEAN)
        job = Job(
            bootstrap=lab.servers.bootstrap,
            mongo_uri=lab.servers.mongo_uri,
            database=f"{lab.name}_{lab.run}",
            commands=load.topic,
            events=lab.topic_name(f"{CONTEXT}.events"),
            orders=FULL.streams if full else LEAN.streams,
            group=lab.topic_name("peers"),
            partitions=DEFAULTS.partitions,
            batch=DEFAULTS.batch_size,
        )
        with process(play, view, job) as viewing:
            pids = {"view": _heard(lab, viewing, ran)}
            with process(play, contestant.commands, job) as deciding:
                pids["commands"] = _heard(lab, deciding, ran)
                if not ran.wrong:
                    _time(ran, lab, job, load, pids | _servers(name), [viewing, deciding])
    return ran


def _heard(lab: Lab, pipe: Connection, ran: Ran) -> int:
    """The pid of a process that is ready."""
    try:
        return int(hear(lab, pipe))
    except LabkitError as error:
        ran.wrong = ran.wrong or str(error)
        return 0


def _servers(name: str) -> dict[str, int]:
    """The pids of the servers that are processes of this machine."""
    servers = stack.status(name)["servers"]
    return {one["name"]: one["pid"] for one in servers if one.get("pid")}


def _time(
    ran: Ran,
    lab: Lab,
    job: Job,
    load: Preloaded,
    pids: dict[str, int],
    pipes: list[Connection],
) -> None:
    """Measure from the first documents to the last one, then check them.

    The estimated count of a collection is cheap but includes uncommitted documents, so it only says
    that there are some, or that nothing moves. The documents themselves are read from a majority:
    first the last order of each partition, and then all of them.
    """
    client, db = connect(job.mongo_uri, job.database)
    orders, last = db[job.orders], list(load.last.values())
    lab.ends(f"{CONTEXT}.events")  # opens its reader before the clock starts
    known, moved = 0, time.monotonic()
    started, there = (0, moved, _cpu(pids)), 0
    try:
        while True:
            now, cpu = time.monotonic(), _cpu(pids)
            count = orders.estimated_document_count()
            if not there:  # if all come at once, the clock starts at the previous look
                there = orders.count_documents({}) if count else 0
                started = (there, now, cpu) if there < load.commands else started
                if there:  # only a later look can be the last one
                    ran.ahead = sum(lab.ends(f"{CONTEXT}.events").values()) - there
                    continue
            near = orders.count_documents({"_id": {"$in": last}}) == len(last)
            if there and near and not _wrong(orders, load):
                break
            if count > known:
                known, moved = count, now
            elif now - moved > (QUIET_SECONDS if there else PATIENCE_SECONDS):
                ran.wrong = f"nothing came for {now - moved:.0f} s; {_wrong(orders, load)}"
                return
            if any(pipe.poll() for pipe in pipes):
                ran.wrong = f"one of its processes died; {_wrong(orders, load)}"
                return
            time.sleep(LOOK_SECONDS)
    finally:
        client.close()
    before, began, spent = started
    ran.commands, ran.seconds = load.commands - before, round(now - began, 4)
    ran.rate = round(quotient(ran.commands, now - began), 1)
    ran.cpu_seconds = {name: round(cpu[name] - spent[name], 3) for name in pids}


def _wrong(orders: Collection[Document], load: Preloaded) -> str:
    """How the documents differ from one for each order, right to the cent; empty if they agree."""
    every = {"_id": None, "documents": {"$sum": 1}, "cents": {"$sum": "$cents"}}
    found = next(orders.aggregate([{"$group": every}]), {"documents": 0, "cents": 0})
    if (found["documents"], found["cents"]) == (load.commands, load.cents):
        return ""
    return (
        f"{found['documents']:,} documents with {found['cents']:,} cents, not "
        f"{load.commands:,} with {load.cents:,}"
    )


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: at.user + at.system for name, at in times.items()}
