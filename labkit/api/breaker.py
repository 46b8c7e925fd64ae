"""A circuit breaker around one server: after failures in a row nobody waits for it any more.

``pybreaker`` counts and holds the state. Its own ``call`` holds a lock for as long as the call
takes, so that all requests would wait for one; and it reads the wall clock. Here the call itself is
outside the lock, and the clock is handed in.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

import pybreaker

from labkit.api.problems import Problem
from labkit.errors import Unreachable
from labkit.ports.clock import Clock

#: pybreaker's own timer never ends: ``Breaker`` opens the way again.
_NEVER = 1e9

T = TypeVar("T")


class Breaker:
    """Closed: all may call. Open: nobody may. Half-open: one may, and what comes of it decides.

    ``refused`` is called for each call that is turned away. For any thread.
    """

    def __init__(
        self, server: str, failures: int, reset: float, clock: Clock, refused: Callable[[], None]
    ) -> None:
        self.server = server
        self._reset = reset
        self._clock = clock
        self._refused = refused
        self._lock = threading.Lock()
        self._opened = -math.inf
        #: Results of calls that began before the state changed say nothing of the new state.
        self._turn = 0
        self._tried = -math.inf
        self._state = pybreaker.CircuitBreaker(fail_max=failures, reset_timeout=_NEVER)

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        return self._state.current_state

    def check(self) -> None:
        """Raises a problem if a call would be turned away now."""
        with self._lock:
            if self.state != pybreaker.STATE_CLOSED and (left := self._left()) > 0:
                self._refuse(left)

    def call(self, work: Callable[[], T]) -> T:
        """Do it and take note of what comes of it; raises a problem if it is turned away."""
        turn = self._enter()
        try:
            found = work()
        except Unreachable as error:
            if error.server in ("", self.server):
                error.server = self.server
                self._note(turn, error)
            raise
        except Exception as error:
            if not isinstance(error, Problem) or error.kind != "unreachable":  # of another server
                self._note(turn)  # it answered, whatever it was
            raise
        self._note(turn)
        return found

    def _enter(self) -> int:
        with self._lock:
            if self.state != pybreaker.STATE_CLOSED:
                if (left := self._left()) > 0:
                    self._refuse(left)
                self._state.half_open()
                self._turn += 1
                self._tried = self._clock.seconds()
            return self._turn

    def _left(self) -> float:
        """Seconds until a call may try; one whose try says nothing for so long has a successor."""
        began = self._opened if self.state == pybreaker.STATE_OPEN else self._tried
        return began + self._reset - self._clock.seconds()

    def _refuse(self, left: float) -> NoReturn:
        self._refused()
        again = max(1, math.ceil(left))
        raise Problem(
            "unreachable",
            f"{self.server} did not answer the last requests; it is asked again in {again} s",
            {"Retry-After": str(again)},
        )

    def _note(self, turn: int, error: Unreachable | None = None) -> None:
        def result() -> None:
            if error is not None:
                raise error

        with self._lock:
            if turn != self._turn:
                return
            before = self.state
            with suppress(Unreachable, pybreaker.CircuitBreakerError):
                self._state.call(result)
            if self.state != before:
                self._turn += 1
                self._opened = self._clock.seconds()
