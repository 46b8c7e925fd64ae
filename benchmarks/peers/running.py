"""One contestant in one round: its two processes, the clock, and a look at what it has written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import msgspec
import psutil
from msgspec import Struct
from pymongo.collection import Collection

from benchmarks.peers.contestants import Contestant
from benchmarks.peers.job import Job
from benchmarks.peers.own import FULL, LEAN
from labkit import stack
from labkit.adapters.kafka import partition_of
from labkit.adapters.mongo import connect
from labkit.errors import LabkitError
from labkit.experiments.bench.job import event_of, play
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process
from labkit.lab import Lab
from labkit.messages import Envelope, encode
from labkit.ports.store import Document
from labkit.run.settings import DEFAULTS
from labkit.services.orders import PlaceOrder

CONTEXT = "orders"
#: Who has begun, and then written nothing for so long, is not going to.
QUIET_SECONDS = 20.0
LOOK_SECONDS = 0.01


class Preloaded(Struct):
    """A topic with commands, what their orders come to, and the last order of each partition."""

    topic: str
    commands: int
    cents: int
    last: dict[int, str]


class Ran(Struct, kw_only=True):
    """One contestant in one round.

    ``commands`` and ``seconds`` are those of the clock, and ``cpu_seconds`` what each process used
    meanwhile; ``ahead`` is how many offsets the events were ahead of the documents when it started:
    work of the command side that did not count. Where ``wrong`` says something, there is no
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


@contextmanager
def passing(name: str) -> Iterator[Lab]:
    """A run that is gone afterwards, topics and database."""
    with Lab(name, client="confluent", services=[CONTEXT]) as lab:
        try:
            yield lab
        finally:
            lab.drop()


def preload(lab: Lab, count: int) -> Preloaded:
    """So many commands, each a new order, in the commands topic of a run."""
    topic, cents = lab.topic_name(f"{CONTEXT}.commands"), 0
    last: dict[int, str] = {}
    sender = lab.broker.sender()
    try:
        for number in range(count):
            command = order(number)
            now = time.monotonic_ns()
            value = encode(Envelope(f"{number:032x}", command, intended=now, sent=now))
            key = command.order_id.encode()
            sender.send(topic, key, value)
            last[partition_of(key, lab.partitions)] = command.order_id
            cents += event_of(command).cents
        sender.flush(PATIENCE_SECONDS)
    finally:
        sender.close()
    return Preloaded(topic, count, cents, last)


def order(number: int) -> PlaceOrder:
    """One of 5,000 customers, of 1997 or 1998: some fall under each rule."""
    return PlaceOrder(
        f"order-{number:07d}",
        f"customer-{number * 7919 % 5_000:04d}",
        f"{1997 + number % 2}-{1 + number % 12:02d}-{1 + number % 28:02d}",
        quantity=1 + number % 12,
        cents=100 + number * 104_729 % 10_000,
        product_id=f"product-{number % 100:02d}",
    )


def run(name: str, contestant: Contestant, full: bool, load: Preloaded, number: int) -> Ran:
    """Its two processes on servers ``name``; what is wrong with it ends in ``Ran.wrong``."""
    ran = Ran(round=number, name=contestant.name, full_view=full)
    view = contestant.full_view if full else contestant.view
    with passing(name) as lab:
        assert lab.servers is not None
        lab.prepare(LEAN)
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
    """From the first documents to the last one, then whether they are right.

    The number that a collection keeps beside it costs nothing to read, but counts what is not
    committed; so it only tells that there is something, or that nothing moves. What is there is
    read from a majority: the last order of each partition, and when these are there, all.
    """
    client, db = connect(job.mongo_uri, job.database)
    orders, last = db[job.orders], list(load.last.values())
    lab.ends(f"{CONTEXT}.events")  # its reader is there when the clock starts
    known, moved = 0, time.monotonic()
    started, there = (0, moved, _cpu(pids)), 0
    try:
        while True:
            now, cpu = time.monotonic(), _cpu(pids)
            count = orders.estimated_document_count()
            if not there:  # where all come at once, the clock starts at the look before
                there = orders.count_documents({}) if count else 0
                started = (there, now, cpu) if there < load.commands else started
                if there:  # the next look is the first that can be the last
                    ran.ahead = sum(lab.ends(f"{CONTEXT}.events").values()) - there
                    continue
            near = orders.count_documents({"_id": {"$in": last}}) == len(last)
            if near and not _wrong(orders, load):
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
    ran.rate = round(ran.commands / (now - began), 1)
    ran.cpu_seconds = {name: round(cpu[name] - spent[name], 3) for name in pids}


def _wrong(orders: Collection[Document], load: Preloaded) -> str:
    """What differs from a document an order, right to the cent; empty: nothing."""
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
