"""What the live page shows: messages on their way, as one thread sees them in the topics.

::

    commands topic ──tail──> "command"      events topic ──tail──> "commit"
                                            checkpoint of the view ──> "view"

One thread tails the topics of all services while somebody looks, and ends when nobody does. Every
listener is given the same server-sent events: ``run`` once, then ``tick`` with what has moved,
counts, and how far handlers and projectors are behind. Instants are milliseconds of the server's
monotonic clock, the one that commands, commits and views carry; they are shown, and nothing is
ordered by them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from fastapi.sse import format_sse_event

from labkit.api.schema import written
from labkit.errors import DecodeError, LabkitError
from labkit.messages import Commit, Document, Token
from labkit.ports.broker import Source
from labkit.read.generations import Serving
from labkit.read.projection import streams_of

if TYPE_CHECKING:
    from labkit.api.backend import Backend
    from labkit.lab import Lab

POLL_SECONDS = 0.02
TICK_SECONDS = 0.1
#: A tick without anything new is sent so seldom; it says how far behind everybody is.
QUIET_SECONDS = 0.5
#: The thread ends when nobody has looked for so long.
ALONE_SECONDS = 5.0
#: So many new commands of a tick are shown one by one, through all their stages; all are counted.
MOST_SHOWN = 300
#: Of so many it is known whether they are shown; so many commits may wait for their view.
MOST_KNOWN = 20_000

Stage = dict[str, Any]


class _Tail:
    """One service: its two topics, and which of its commits no view has applied yet."""

    def __init__(self, backend: Backend, service: str, opened: ExitStack) -> None:
        self.name = service
        lab = backend.lab
        self._service = lab.services[service]
        self._codec = self._service.codec
        self._queries, self._store = backend.queries, lab.store
        self._commands, self._events = (
            _source(lab, f"{service}.{kind}", opened) for kind in ("commands", "events")
        )
        view = backend.queries.checkpoints(service)
        self._sent = self._commands.ends()  # the next command, by partition
        self._decided = {p: view[p].command if p in view else -1 for p in self._sent}
        self._applied = dict(self._decided)
        self._unseen: dict[Token, Commit[Any]] = {}
        for partition, end in self._sent.items():
            self._commands.start(partition, end)
            self._events.start(partition, view[partition].position if partition in view else 0)

    def look(self) -> list[Stage]:
        """What has come to its next stage since the last look."""
        return [*self._look_at_commands(), *self._look_at_events(), *self._look_at_view()]

    def lags(self) -> tuple[int, int]:
        """Commands that are not decided, and decided ones that no view shows."""
        handler = sum(max(0, end - 1 - self._decided[p]) for p, end in self._sent.items())
        return handler, sum(max(0, at - self._applied[p]) for p, at in self._decided.items())

    def _look_at_commands(self) -> list[Stage]:
        found = []
        for record in self._commands.poll(1_000, POLL_SECONDS).records:
            self._sent[record.partition] = record.offset + 1
            token = Token(self.name, record.partition, record.offset)
            try:
                command = self._codec.decode_command(record.value)
            except DecodeError:
                found.append(
                    {"stage": "command", **_of(token, record.key.decode(errors="replace"))}
                )
                continue
            found.append(
                {
                    "stage": "command",
                    **_of(token, command.body.stream),
                    "what": type(command.body).__name__,
                    "about": command.correlation,
                    "sent": _ms(command.sent),
                }
            )
        return found

    def _look_at_events(self) -> list[Stage]:
        found = []
        for record in self._events.poll(1_000, POLL_SECONDS).records:
            try:
                commit = self._codec.decode_commit(record.value)
            except DecodeError:
                continue
            at = record.partition
            self._decided[at] = max(self._decided[at], commit.offset)
            self._sent[at] = max(self._sent[at], commit.offset + 1)
            token = Token(self.name, at, commit.offset)
            if self._service.views:
                self._unseen[token] = commit
                while len(self._unseen) > MOST_KNOWN:  # no view applies them
                    del self._unseen[next(iter(self._unseen))]
            else:
                self._applied[at] = self._decided[at]
            found.append(
                {
                    "stage": "commit",
                    **_of(token, commit.stream),
                    "what": ", ".join(type(event).__name__ for event in commit.events),
                    "about": commit.correlation,
                    "outcome": commit.outcome,
                    "reason": commit.reason,
                    "version": commit.last,
                    "sent": _ms(commit.sent),
                    "polled": _ms(commit.polled),
                    "decided": _ms(commit.decided),
                    "seen": _ms(time.monotonic_ns()),
                }
            )
        return found

    def _look_at_view(self) -> list[Stage]:
        """By its checkpoint; the document of a stream says itself when it was applied."""
        if not self._unseen:
            return []
        reached = {p: c.command for p, c in self._queries.checkpoints(self.name).items()}
        self._applied.update(reached)
        shown = {
            token: commit
            for token, commit in self._unseen.items()
            if reached.get(token.partition, -1) >= token.offset
        }
        traces = self._traces({commit.stream for commit in shown.values()})
        found = []
        for token, commit in shown.items():
            del self._unseen[token]
            trace = traces.get(commit.id, {})
            found.append(
                {
                    "stage": "view",
                    **_of(token, commit.stream),
                    "fetched": _ms(trace.get("fetched", 0)),
                    "applied": _ms(trace.get("applied", 0)),
                    "seen": _ms(time.monotonic_ns()),
                }
            )
        return found

    def _traces(self, streams: set[str]) -> dict[str, Document]:
        """By command id, the instants of the newest message of each stream."""
        if not streams:
            return {}
        found = Serving(self._store).load(streams_of(self._service), streams)
        return {d["trace"]["id"]: d["trace"] for d in found.values() if "trace" in d}


def _source(lab: Lab, topic: str, opened: ExitStack) -> Source:
    """A reader of a topic, closed with ``opened``: also where the next one cannot be opened."""
    source = lab.of.broker_of(topic).source(lab.topic_name(topic))
    opened.callback(_close, source)
    return source


def _of(token: Token, stream: str) -> Stage:
    return {
        "token": written(token),
        "service": token.service,
        "partition": token.partition,
        "stream": stream,
    }


def _ms(nanoseconds: int) -> float | None:
    return round(nanoseconds / 1e6, 3) if nanoseconds else None


def _close(source: Source) -> None:
    with suppress(LabkitError):
        source.close()


class Live:
    """The thread that looks, and those who listen to it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._listeners: dict[asyncio.Queue[bytes], asyncio.AbstractEventLoop] = {}
        self._thread: threading.Thread | None = None
        self._shown: dict[str, bool] = {}

    def listen(self) -> asyncio.Queue[bytes]:
        """A queue that gets every event from now on; called in an event loop."""
        mine: asyncio.Queue[bytes] = asyncio.Queue(maxsize=100)
        with self._lock:
            self._listeners[mine] = asyncio.get_running_loop()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="live", daemon=True)
                self._thread.start()
        return mine

    def leave(self, mine: asyncio.Queue[bytes]) -> None:
        """No more."""
        with self._lock:
            self._listeners.pop(mine, None)

    def _run(self) -> None:
        log = structlog.get_logger().bind(part="live")
        try:
            while self._wanted():
                try:
                    self._follow()
                except LabkitError as error:  # a server is away: begin again
                    log.warning("live", why=str(error))
                    self._backend.closing.wait(1.0)
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _wanted(self) -> bool:
        """Whether somebody looks. If nobody does, this thread ends; who looks next starts one."""
        with self._lock:
            if self._listeners and not self._backend.closing.is_set():
                return True
            self._thread = None
            return False

    def _follow(self) -> None:
        """Until nobody has looked for a while: a page that is loaded again goes on at once."""
        lab = self._backend.lab
        self._shown.clear()
        with ExitStack() as opened:
            tails = [_Tail(self._backend, service, opened) for service in lab.services]
            told, looked = 0.0, time.monotonic()
            moved: list[Stage] = []
            while time.monotonic() - looked <= ALONE_SECONDS and not self._backend.closing.is_set():
                if self._listeners:
                    looked = time.monotonic()
                for tail in tails:
                    moved += tail.look()
                since = time.monotonic() - told
                if since > (TICK_SECONDS if moved else QUIET_SECONDS):
                    self._tell(moved, tails)
                    moved, told = [], time.monotonic()

    def _tell(self, moved: list[Stage], tails: list[_Tail]) -> None:
        lags = [tail.lags() for tail in tails]
        tick = {
            "now": _ms(time.monotonic_ns()),
            "counts": {
                stage: sum(m["stage"] == stage for m in moved)
                for stage in ("command", "commit", "view")
            },
            "lag": {"handler": sum(h for h, _ in lags), "projector": sum(p for _, p in lags)},
            "moved": self._to_show(moved),
        }
        event = format_sse_event(event="tick", data_str=msgspec.json.encode(tick).decode())
        with self._lock:
            for listener, loop in self._listeners.items():
                with suppress(RuntimeError):  # its loop has ended
                    loop.call_soon_threadsafe(_put, listener, event)

    def _to_show(self, moved: list[Stage]) -> list[Stage]:
        """Who is shown is shown to its end, whichever topic was the first to tell of it."""
        new = 0
        for message in moved:
            if message["token"] not in self._shown:
                self._shown[message["token"]] = new < MOST_SHOWN
                new += 1
        shown = [message for message in moved if self._shown[message["token"]]]
        while len(self._shown) > MOST_KNOWN:
            del self._shown[next(iter(self._shown))]
        return shown


def _put(listener: asyncio.Queue[bytes], event: bytes) -> None:
    """Who does not keep up misses ticks, and holds nobody up."""
    with suppress(asyncio.QueueFull):
        listener.put_nowait(event)
