"""The clients of a burst: a process that keeps its timetable, however slowly it is answered.

There is a thread for each call that may be under way at once: an open loop, as in
``load/generator.py``, with answers.
"""

from __future__ import annotations

import itertools
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection

import msgspec
from msgspec import Struct

from labkit.errors import UsageError
from labkit.experiments.burst.arm import Call, Client, Told
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.generator import SHORTEST_TICK
from labkit.messages import Command
from labkit.run.worker import calm_gc

#: More threads are of no use on two cores.
MOST_THREADS = 800
STACK_BYTES, MOST_FILES = 256 << 10, 8_192
#: Calls of the dry run.
DRY_CALLS, DRY_THREADS = 3_000, 64


class Order(Struct, frozen=True):
    """What the process of clients does: the calls, and whether they say how urgent they are."""

    plan: Plan
    calls: list[Call]
    key: str
    urgencies: bool
    threads: int

    @property
    def commands(self) -> dict[int, Command]:
        """The commands by their numbers."""
        wanted = [call.command for call in self.calls]
        first, last = min(wanted), max(wanted) + 1
        found = itertools.islice(arrivals.commands(self.plan, last), first, None)
        return dict(enumerate(found, first))

    def key_of(self, call: Call) -> str:
        """The idempotency key of a call."""
        return f"{self.key}-{call.command}"


def threads_for(calls: Sequence[Call], begins: float, ends: float) -> int:
    """A thread for each call of the peak, and some."""
    peak = sum(begins <= call.intended / 1e9 < ends for call in calls)
    return min(peak + 50, MOST_THREADS)


def clients(pipe: Connection) -> None:
    """For each order that comes: say "ready", hear the beginning (monotonic nanoseconds), make all
    calls, and send what was told, a list of ``Told``. Ends with its parent."""
    may_open_files()
    threading.stack_size(STACK_BYTES)
    sys.setswitchinterval(0.0005)
    calm_gc()
    while True:
        connect, order = pipe.recv()
        pipe.send_bytes(msgspec.msgpack.encode(_made(pipe, connect, order)))


def _made(pipe: Connection, connect: Callable[[int], Client], order: Order) -> list[Told]:
    commands = order.commands
    gate, found = threading.Barrier(order.threads + 1), [Told("unknown")] * len(order.calls)
    beginning, places = list[int](), iter(range(len(order.calls)))
    newest: dict[int, tuple[Command, Told]] = {}

    def work() -> None:
        clients: dict[int, Client] = {}
        try:
            gate.wait()
            for place in places:  # a list's iterator is safe in CPython: one thread has each place
                call = order.calls[place]
                _wait_until(beginning[0] + call.intended)
                if call.client not in clients:
                    clients[call.client] = connect(call.client)
                found[place] = _ask(clients[call.client], order, call, commands, newest)
        finally:
            for client in clients.values():
                client.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(order.threads)]
    for thread in threads:
        thread.start()
    pipe.send_bytes(b"ready")
    beginning.append(int(pipe.recv_bytes()))
    gate.wait()
    for thread in threads:
        thread.join()
    return found


def may_open_files() -> None:
    """Each client is a connection: raise the soft limit of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _ask(
    client: Client,
    order: Order,
    call: Call,
    commands: dict[int, Command],
    newest: dict[int, tuple[Command, Told]],
) -> Told:
    sent = time.monotonic_ns()
    if not call.read:
        urgency = call.urgency if order.urgencies else 3
        told = client.send(commands[call.command], order.key_of(call), urgency)
        if told.outcome == "taken":
            newest[call.client] = commands[call.command], told
    elif (before := newest.get(call.client)) is not None:
        told = client.read(*before)
    else:
        told = Told("taken", why="there was nothing to read yet")
    told.sent, told.told = sent, time.monotonic_ns()
    return told


def _wait_until(instant: int) -> None:
    while (ahead := instant - time.monotonic_ns()) > 0:
        time.sleep(max(ahead / 1e9, SHORTEST_TICK))


# --- what the clients can do at most


class _Void:
    """A client that sends nothing and is answered at once."""

    def send(self, command: Command, id: str, urgency: int) -> Told:
        return Told("taken")

    def read(self, command: Command, told: Told) -> Told:
        return Told("taken")

    def close(self) -> None: ...


def ability(plan: Plan) -> float:
    """How many calls a second the threads make that send nothing."""
    calls = queue.SimpleQueue[Call]()
    made = [Call(0, number) for number in range(DRY_CALLS)]
    order = Order(plan, made, "dry", True, DRY_THREADS)
    commands, newest = order.commands, dict[int, tuple[Command, Told]]()
    for call in made:
        calls.put(call)

    def work() -> None:
        client = _Void()
        try:
            while True:
                _ask(client, order, calls.get_nowait(), commands, newest)
        except queue.Empty:
            pass

    threads = [threading.Thread(target=work) for _ in range(DRY_THREADS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return DRY_CALLS / (time.monotonic() - began)


def check_offer(plan: Plan, rate: float, peaks: Iterable[float], seconds: float) -> float:
    """What the clients are able to do; raises ``UsageError`` for a peak that they cannot offer."""
    most = max(peaks)
    calls = most * rate * seconds
    if calls > MOST_THREADS:
        raise UsageError(
            f"a peak of {most:g} times {rate:g} calls a second has {calls:,.0f} calls in "
            f"{seconds:g} s, and at most {MOST_THREADS} can wait for their answers at once here; "
            "give a lower --rate, smaller --peaks or fewer --seconds"
        )
    able = ability(plan)
    if most * rate > able:
        raise UsageError(
            f"a peak of {most:g} times {rate:g} calls a second cannot be offered: the clients make "
            f"at most {able:,.0f} a second here, without sending them; give a lower --rate or "
            "smaller --peaks"
        )
    return able


__all__ = ["Order", "check_offer", "clients", "may_open_files", "threads_for"]
