"""The one thread that owns a lab's bus and readers, and serves the request threads.

A Kafka consumer belongs to one thread, and so does the bus. The threads of the requests hand their
work in and wait for it; commands of many requests are on their way at once, and each request waits
for its own answer alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from labkit.errors import LabkitError, Unreachable
from labkit.lab import Lab
from labkit.messages import Answer, Command, Token

#: While somebody waits for an answer, each reader is asked so long; otherwise now and then.
POLL_SECONDS = 0.005
IDLE_SECONDS = 0.25
#: What is handed in is done in this time, or the servers do not answer.
CALL_SECONDS = 20.0
#: A broker that has not acknowledged a command by then does not answer.
ACKNOWLEDGE_SECONDS = 10.0
CLOSE_SECONDS = 5.0

T = TypeVar("T")


class LabThread:
    """Serves one lab, from ``start`` to ``close``; all other methods are for any thread.

    ``told(service, partition, offset)`` is called for each commit that is heard, with the place of
    its command. Those of the services that ``owing`` names are heard without a pause.
    """

    def __init__(
        self,
        lab: Lab,
        told: Callable[[str, int, int], None] = lambda *_: None,
        owing: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._lab = lab
        self._told = told
        self._owing = owing
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._waiting: dict[Token, list[Future[Answer | None]]] = {}
        self._listening: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lab", daemon=True)

    def start(self) -> None:
        """Begin; the answers to all commands sent from now on are heard."""
        self._thread.start()
        self.call(self._listen)

    def call(self, work: Callable[[], T], seconds: float = CALL_SECONDS) -> T:
        """Let the thread do something; raises what it raises, or ``Unreachable``."""
        done: Future[T] = Future()
        if threading.current_thread() is self._thread:
            return work()
        self._work.put((work, done))
        if not self._thread.is_alive():
            raise Unreachable("the API is being shut down; try again in a moment")
        try:
            return done.result(seconds)
        except TimeoutError:
            raise Unreachable(f"the servers did not answer within {seconds:g} s") from None

    def send(self, command: Command, id: str, expected_version: int | None) -> Token:
        """Send a command; returns once the broker has acknowledged it, or raises."""
        sent = self.call(
            lambda: self._lab.bus.send(command, id=id, expected_version=expected_version)
        )
        return sent.token(ACKNOWLEDGE_SECONDS)

    def answer(self, token: Token, timeout: float) -> Answer | None:
        """The final answer to a command; ``None`` if there is none in time (or the API ends)."""
        found: Future[Answer | None] = Future()
        self.call(lambda: self._await(token, found))
        with suppress(TimeoutError):
            return found.result(timeout)
        self.call(lambda: self._forget(token, found))
        return None

    def heard(self, token: Token) -> Answer | None:
        """The last answer to a command that there is to be heard by now, as far as it has come."""

        def look() -> Answer | None:
            if (answer := self._lab.bus.heard(token)) is None:
                with suppress(LabkitError):  # not heard is not gone
                    self._hear(token.service, 0.0)
                answer = self._lab.bus.heard(token)
            return answer

        return self.call(look)

    def release(self) -> None:
        """Let all who wait for an answer go on without it."""

        def let_go() -> None:
            for waiters in self._waiting.values():
                for found in waiters:
                    found.set_result(None)
            self._waiting.clear()

        with suppress(Unreachable):
            self.call(let_go)

    def close(self) -> None:
        """End the thread, bounded in time; the lab is the caller's again."""
        self.release()
        self._stopping.set()
        self._thread.join(CLOSE_SECONDS)

    # --- in the thread

    def _listen(self) -> None:
        for service in self._lab.services:
            self._lab.bus.listen(service)
            self._listening.append(service)

    def _run(self) -> None:
        log = structlog.get_logger().bind(part="lab thread")
        swept = 0.0
        while not self._stopping.is_set():
            self._serve()
            idle = time.monotonic() - swept > IDLE_SECONDS
            services = {token.service for token in self._waiting} | {*self._owing()}
            if idle:
                services, swept = set(self._listening), time.monotonic()
            for service in services:
                try:
                    self._hear(service)
                except LabkitError as error:  # those who wait are answered when their time is over
                    log.warning("no answers", service=service, why=str(error))
                    self._stopping.wait(IDLE_SECONDS)

    def _serve(self) -> None:
        """What was handed in by now; without anything, and nobody waiting, wait a little for it.

        What comes meanwhile has its turn later: those who wait for answers must have theirs.
        """
        patience = 0.0 if self._waiting or self._owing() else IDLE_SECONDS / 5
        for _ in range(self._work.qsize() or 1):
            try:
                work, done = self._work.get(block=patience > 0, timeout=patience or None)
            except queue.Empty:
                return
            patience = 0.0
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

    def _hear(self, service: str, seconds: float = POLL_SECONDS) -> None:
        for commit in self._lab.bus.hear(service, seconds):
            token = Token(service, commit.partition, commit.offset)
            self._told(service, commit.partition, commit.offset)
            if commit.answer.final:
                for found in self._waiting.pop(token, []):
                    found.set_result(commit.answer)

    def _await(self, token: Token, found: Future[Answer | None]) -> None:
        answer = self._lab.bus.heard(token)
        if answer is not None and answer.final:
            found.set_result(answer)
        else:
            self._waiting.setdefault(token, []).append(found)

    def _forget(self, token: Token, found: Future[Answer | None]) -> None:
        waiters = self._waiting.get(token, [])
        if found in waiters:
            waiters.remove(found)
        if not waiters:
            self._waiting.pop(token, None)
