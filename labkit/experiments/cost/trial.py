"""One arm in one run: its clients, what they were told so far, and the wait for quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from msgspec import Struct

from labkit.experiments.backlog import behind
from labkit.experiments.cost.arm import Arm
from labkit.experiments.cost.clients import CLIENTS, Clients, Task, clients
from labkit.experiments.cost.connected import connected
from labkit.experiments.cost.judging import judged, judged_by_the_log
from labkit.experiments.cost.subject import SERVICE
from labkit.experiments.cost.told import operations
from labkit.experiments.cost.writers import RESENT, Seen, Told
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.verdict import Verdict
from labkit.lab import Lab
from labkit.messages import Document

#: Accounts of the workload; one of them is the hot one.
ACCOUNTS = 200
#: The accounts are opened in this time, or the run is red.
OPENING_SECONDS = 45.0
#: An arm that does not come to rest in this time is judged as it is.
QUIET_SECONDS = 60.0
#: Their readers read what was written; what they do not show will never be there.
AT_ONCE = ("crud", "naive")
#: Before the first measurement: connections, caches, the compiler of the broker's JVM.
WARM_SECONDS = 1.0


class Sizes(Struct, frozen=True):
    """``rate`` in commands a second; ``seconds`` of each measurement with a load."""

    rate: float = 100.0
    writers: int = 16
    seconds: float = 5.0


class Trial:
    """``told`` is what all clients were told so far; ``noted`` an answer for the audit question."""

    def __init__(
        self, name: str, lab: Lab, arm: Arm, clients: Clients, sizes: Sizes, seed: int
    ) -> None:
        self.name, self.lab, self.arm, self.sizes = name, lab, arm, sizes
        self._clients, self._seed = clients, seed
        self.told: list[Told] = []
        self.resent = 0
        self.noted: tuple[datetime, list[Document]] | None = None
        self._tasks = 0
        self._newest: dict[str, int] = {}

    def open_accounts(self) -> None:
        """Make the streams, and warm up."""
        self._tasks += 1
        opening = Task(
            "opening", "open", self._seed, ACCOUNTS, self.sizes.writers, seconds=OPENING_SECONDS
        )
        self._take(self._clients.do([opening]))
        self.closed(self.sizes.writers, WARM_SECONDS)

    def closed(
        self,
        writers: int,
        seconds: float,
        *,
        accounts: int = ACCOUNTS,
        count: int = 0,
        resent: float = RESENT,
    ) -> Seen:
        """Writers without a pause, spread over the clients."""
        tasks = [
            Task(
                "closed",
                *self._named(number),
                accounts,
                threads=_share(writers, number),
                seconds=seconds,
                count=count,
                resent=resent,
            )
            for number in range(CLIENTS)
        ]
        self._tasks += 1
        return self._take(self._clients.do([task for task in tasks if task.threads]))

    def open(self, rate: float, seconds: float) -> Seen:
        """Commands at a rate, whatever the arm does."""
        tasks = [
            Task(
                "open",
                *self._named(number),
                ACCOUNTS,
                threads=self.sizes.writers,
                seconds=seconds,
                rate=rate / CLIENTS,
            )
            for number in range(CLIENTS)
        ]
        self._tasks += 1
        return self._take(self._clients.do(tasks))

    def beside(self, rate: float, seconds: float, readers: int) -> Seen:
        """One client writes at a rate, the other one reads without a pause."""
        writers = self.sizes.writers
        tasks = [
            Task("open", *self._named(0), ACCOUNTS, writers, seconds, rate=rate, looked=0),
            Task("reading", *self._named(1), ACCOUNTS, readers, seconds),
        ]
        self._tasks += 1
        return self._take(self._clients.do(tasks))

    def _named(self, client: int) -> tuple[str, int]:
        """The prefix of the command ids of a client's task, and its seed."""
        return f"t{self._tasks}-{client}", (self._seed * 1_000 + self._tasks) * CLIENTS + client

    def _take(self, seen: Seen) -> Seen:
        self.told += seen.told
        self.resent += seen.resent
        for operation in operations(SERVICE, seen.told):
            if operation.answer is not None and operation.answer.accepted:
                stream, version = operation.command.stream, operation.answer.version
                self._newest[stream] = max(self._newest.get(stream, 0), version)
        return seen

    # --- at quiet

    def quiet(self) -> bool:
        """Wait until readers see all that clients were told; ``False``: not in time."""
        if self.name in AT_ONCE:
            return True
        deadline = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < deadline:
            shown = {d["_id"]: d["version"] for d in self.arm.documents()}
            late = any(shown.get(stream, 0) < version for stream, version in self._newest.items())
            if not late and not (self.name == "labkit" and behind(self.lab)):
                return True
            self.lab.check()
            time.sleep(0.05)
        return False

    def note(self) -> None:
        """Keep what readers see at quiet, and when that is."""
        self.quiet()
        self.noted = datetime.now(UTC), self.arm.documents()
        time.sleep(0.01)  # what comes later has a later instant, in whole milliseconds

    def verdicts(self) -> dict[str, Verdict]:
        """Of all that was done so far."""
        self.quiet()
        told = operations(SERVICE, self.told)
        if self.name == "labkit":
            return judged_by_the_log(self.lab, told)
        return judged(SERVICE, told, self.arm.documents(), self.arm.states())


def _share(number: int, client: int) -> int:
    return number // CLIENTS + (client < number % CLIENTS)


@contextmanager
def trial(name: str, client: str, arm: str, sizes: Sizes, seed: int) -> Iterator[Trial]:
    """An arm with a database and topics of its own, which are dropped afterwards."""
    with scratch_run(name, client=client, services=[SERVICE], start=False) as lab:
        if arm == "labkit":
            lab.start()
        made = connected(arm, lab, seed)
        try:
            with clients(lab, arm, seed) as several:
                yield Trial(arm, lab, made, several, sizes, seed)
        finally:
            made.close()
