"""The threads of a client: the same for every arm.

A command is sent again, with the same id, where its sender does not know what became of it; and
``RESENT`` of those that were answered are sent again too, as if the answer had been lost on its
way. What each call was told is kept for the checkers.

In the closed loop a writer sends its next command when it has the answer to the one before. In the
open loop each command has an intended instant, from which its latency runs, and any free thread
takes the next one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

import msgspec
from msgspec import Struct

from labkit.errors import LabkitError, said
from labkit.experiments.cost.arm import Arm, Followed
from labkit.messages import Answer, Command, Envelope, Token, encode

#: The share of the commands that are sent again though they were answered.
RESENT = 0.05
#: A command without an answer is sent so often in all.
SENDINGS = 5
#: After every so many commands of the open loop, their thread reads until it sees its own write.
LOOKED = 4
#: A read that does not show the write by then is given up.
FRESH_SECONDS = 10.0


class Told(Struct, frozen=True):
    """One call: the command in its wire form, and what the client was told; ``None``: nothing.

    ``own`` is ``False`` of what a process sent.
    """

    envelope: msgspec.Raw
    answer: Answer | None = None
    token: Token | None = None
    why: str = ""
    own: bool = True


class Seen(Struct):
    """What the threads of a client did. All times in microseconds; ``seconds`` is the whole.

    ``fresh`` runs from the answer to a write to the end of the first read that showed it; ``stale``
    counts those whose first read did not.
    """

    seconds: float = 0.0
    told: list[Told] = msgspec.field(default_factory=list)
    writes: list[int] = msgspec.field(default_factory=list)
    reads: list[int] = msgspec.field(default_factory=list)
    fresh: list[int] = msgspec.field(default_factory=list)
    stale: int = 0
    never: int = 0
    resent: int = 0
    conflicts: int = 0


class Writers:
    """``prefix`` tells the command ids of this client from those of others."""

    def __init__(self, arm: Arm, prefix: str, seed: int, resent: float = RESENT) -> None:
        self._arm = arm
        self._prefix, self._seed, self._resent = prefix, seed, resent
        self._numbers = itertools.count()

    # --- loops

    def closed(
        self,
        commands: Callable[[int], Iterator[Command]],
        writers: int,
        seconds: float,
        count: int = 0,
    ) -> Seen:
        """``writers`` threads, for ``seconds``, or until each has sent ``count`` commands or all
        that it has; ``commands`` gives what each thread sends."""
        until = time.monotonic() + seconds

        def work(number: int, seen: Seen) -> None:
            random = Random(f"{self._seed} {self._prefix} {number}")
            for done, command in enumerate(commands(number)):
                if (count and done >= count) or time.monotonic() >= until:
                    return
                self._write(command, time.monotonic_ns(), random, seen)

        return self._together(work, writers)

    def reading(
        self, streams: Callable[[int], Iterator[str]], readers: int, seconds: float
    ) -> Seen:
        """``readers`` threads that read without a pause, for ``seconds``."""
        until = time.monotonic() + seconds

        def work(number: int, seen: Seen) -> None:
            for stream in streams(number):
                if time.monotonic() >= until:
                    return
                self._read(stream, seen)

        return self._together(work, readers)

    def open(
        self,
        commands: Iterator[Command],
        rate: float,
        seconds: float,
        threads: int,
        looked: int = LOOKED,
    ) -> Seen:
        """``rate`` commands a second, whatever the arm does; ``looked`` 0: nothing is read."""
        began = time.monotonic_ns()
        places = iter(range(max(1, int(rate * seconds))))
        lock = threading.Lock()

        def work(number: int, seen: Seen) -> None:
            random = Random(f"{self._seed} {self._prefix} {number}")
            while True:
                with lock:
                    if (place := next(places, None)) is None:
                        return
                    command = next(commands)
                intended = began + int(place / rate * 1e9)
                time.sleep(max(0, intended - time.monotonic_ns()) / 1e9)
                answer = self._write(command, intended, random, seen)
                if looked and place % looked == 0 and answer is not None and answer.accepted:
                    self._look(command.stream, answer.version, seen)

        return self._together(work, threads)

    def _together(self, work: Callable[[int, Seen], None], threads: int) -> Seen:
        """All threads do ``work``; the first error of one is raised here."""
        seen = [Seen() for _ in range(threads)]
        errors: list[BaseException] = []
        conflicts, began = self._arm.conflicts, time.monotonic()

        def run(number: int) -> None:
            try:
                work(number, seen[number])
            except BaseException as error:
                errors.append(error)

        several = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(threads)]
        for thread in several:
            thread.start()
        for thread in several:
            thread.join()
        if errors:
            raise errors[0]
        found = merged(seen)
        found.seconds = time.monotonic() - began
        found.conflicts = self._arm.conflicts - conflicts
        return found

    # --- one call

    def _write(self, command: Command, since: int, random: Random, seen: Seen) -> Answer | None:
        id = f"{self._prefix}-{next(self._numbers)}"
        answer = self.send(command, id, seen)
        seen.writes.append((time.monotonic_ns() - since) // 1_000)
        if random.random() < self._resent:
            seen.resent += 1
            self.send(command, id, seen)
        return answer

    def send(self, command: Command, id: str, seen: Seen) -> Answer | None:
        """One command until it is answered; ``None`` after ``SENDINGS`` tries."""
        envelope = msgspec.Raw(encode(Envelope(id, command)))
        for _ in range(SENDINGS):
            try:
                reply = self._arm.send(command, id)
            except LabkitError as error:
                seen.told.append(Told(envelope, why=said(error)))
                continue
            seen.told.append(Told(envelope, reply.answer, reply.token))
            seen.told += map(told_to_a_process, reply.followed)
            return reply.answer
        return None

    def _read(self, stream: str, seen: Seen) -> int:
        """The version that a read shows."""
        began = time.monotonic_ns()
        found = self._arm.read(stream)
        seen.reads.append((time.monotonic_ns() - began) // 1_000)
        return found["version"] if found else 0

    def _look(self, stream: str, version: int, seen: Seen) -> None:
        began = time.monotonic_ns()
        first = True
        while self._read(stream, seen) < version:
            seen.stale += first
            first = False
            if time.monotonic_ns() - began > FRESH_SECONDS * 1e9:
                seen.never += 1
                break
            time.sleep(0.001)
        seen.fresh.append((time.monotonic_ns() - began) // 1_000)


def told_to_a_process(followed: Followed) -> Told:
    """The call of a process, for the checkers."""
    envelope = msgspec.Raw(encode(Envelope(followed.id, followed.command)))
    return Told(envelope, followed.answer, own=False)


def merged(every: list[Seen]) -> Seen:
    """Several clients or threads as one; ``seconds`` is the longest."""
    found = Seen(max((each.seconds for each in every), default=0.0))
    for each in every:
        found.told += each.told
        found.writes += each.writes
        found.reads += each.reads
        found.fresh += each.fresh
        found.stale += each.stale
        found.never += each.never
        found.resent += each.resent
        found.conflicts += each.conflicts
    return found
