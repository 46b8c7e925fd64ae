"""Two streams that must agree: how soon they do, and what a reader sees in between.

``crud`` decides both in one transaction, which takes one database. ``outbox`` is CRUD without such
a transaction: a relay tells the process. labkit has a process manager, which sends the second
command when it has read the first commit. An observer reads the documents of both
streams in one snapshot, again and again. What they must be in the end comes from an arm in memory.

``agreed`` runs from the call until the first look that shows the end; ``apart`` from the first look
that shows neither the beginning nor the end, until then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from statistics import median

import msgspec
from msgspec import Struct

from labkit.adapters.memory_store import MemoryStore
from labkit.errors import Conflict, TimedOut
from labkit.experiments.cost import subject
from labkit.experiments.cost.clients import relay
from labkit.experiments.cost.connected import connected
from labkit.experiments.cost.crud import Crud
from labkit.experiments.cost.judging import judged
from labkit.experiments.cost.row import ROWS, document
from labkit.experiments.cost.subject import SERVICE
from labkit.experiments.cost.told import operations
from labkit.experiments.cost.under_load import Figures, times
from labkit.experiments.cost.writers import Seen, Told, Writers
from labkit.experiments.intervals import quotient
from labkit.experiments.processes import hear, settings_of
from labkit.experiments.processes import process as child
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.checkers import History, check_run, gather
from labkit.experiments.verify.evidence import adopt_commands
from labkit.experiments.verify.verdict import Verdict
from labkit.lab import Lab
from labkit.messages import Command, Document
from labkit.ports.ids import new_id
from labkit.read.generations import Serving
from labkit.run import references
from labkit.services import AGREEING

AGREE = ("crud", "outbox", "labkit")
AGREED_SECONDS = 20.0
#: Transfers before those that are measured.
WARM_UP = 3


class Watched(Struct):
    """What the observer saw of one command, in monotonic ns; ``apart`` is 0 where it saw none."""

    looks: int = 0
    apart_looks: int = 0
    apart: int = 0
    agreed: int = 0


class Observer:
    """Looks at the documents of some streams until they are as they must be in the end."""

    def __init__(
        self, lab: Lab, arm: str, before: Sequence[Document], after: Sequence[Document]
    ) -> None:
        self._lab, self._arm = lab, arm
        self._before, self._after = before, after
        self.watched = Watched()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> Watched:
        """Raises ``TimedOut``."""
        self._thread.join(AGREED_SECONDS)
        if not self.watched.agreed:
            raise TimedOut(
                f"the documents were not {self._after} within {AGREED_SECONDS:g} s; see the logs "
                "of the workers, and run it again"
            )
        return self.watched

    def _run(self) -> None:
        deadline = time.monotonic() + AGREED_SECONDS
        while time.monotonic() < deadline:
            with suppress(Conflict):
                shown = seen(self._lab, self._arm, [d["_id"] for d in self._after])
                now = time.monotonic_ns()
                self.watched.looks += 1
                if _as(self._after, shown):
                    self.watched.agreed = now
                    return
                if not _as(self._before, shown):
                    self.watched.apart_looks += 1
                    self.watched.apart = self.watched.apart or now


def seen(lab: Lab, arm: str, streams: Sequence[str]) -> dict[str, Document]:
    """The documents of these streams at one instant."""
    with lab.store.snapshot() as reads:
        if arm != "labkit":
            return {stream: document(row) for stream, row in reads.load(ROWS, streams).items()}
        return Serving(reads).load(SERVICE.collection(subject.VIEW), streams)


def _as(wanted: Sequence[Document], shown: dict[str, Document]) -> bool:
    return all(
        (found := shown.get(d["_id"])) is not None and all(found[k] == v for k, v in d.items())
        for d in wanted
    )


def agreement(
    name: str, client: str, arm: str, seconds: float, seed: int
) -> tuple[Figures, dict[str, Verdict]]:
    """One command after the other for so many seconds; the figures and the verdicts."""
    process = references.process(AGREEING)
    processes = [AGREEING] if arm == "labkit" else []
    parts = {"services": [SERVICE], "processes": processes}
    with scratch_run(name, client=client, start=False, **parts) as lab, ExitStack() as opened:
        if arm == "labkit":
            lab.start()
        made = connected(arm, lab, seed, process)
        if arm == "outbox":
            relaying = opened.enter_context(child(relay, settings_of(lab), seed))
            hear(lab, relaying)
        try:
            oracle = Crud(SERVICE, MemoryStore(), process=process)
            told, figures = _transfers(
                lab, arm, Writers(made, "a", seed, 0.0), oracle, seconds, seed
            )
            documents, states = made.documents(), made.states()
        finally:
            made.close()
        if arm == "outbox":
            relaying.send_bytes(b"stop")
            told.told += msgspec.json.decode(hear(lab, relaying), type=list[Told])
        if arm != "labkit":
            return figures, judged(SERVICE, operations(SERVICE, told.told), documents, states)
        history = History()
        history.operations = operations(SERVICE, told.told)
        adopt_commands(lab, history)
        evidence = {lab.first: gather(lab)}
        history.read(lab.first, evidence[lab.first].commits)
        return figures, check_run(lab, history, evidence)


def _transfers(
    lab: Lab, arm: str, clients: Writers, oracle: Crud, seconds: float, seed: int
) -> tuple[Seen, Figures]:
    of, told = subject.of("agreement"), Seen()
    for command in of.opening(seed):
        _send(clients, oracle, command, told)
    every: list[tuple[int, int, Watched]] = []
    deadline = time.monotonic() + seconds
    for number, command in enumerate(of.commands(seed)):
        if number > WARM_UP and time.monotonic() >= deadline:
            break
        states = {d["_id"]: d for d in oracle.documents()}
        followed = oracle.send(command, new_id()).followed
        streams = list(dict.fromkeys([command.stream, *(f.command.stream for f in followed)]))
        after = [d for stream in streams if (d := oracle.read(stream)) is not None]
        observer = Observer(lab, arm, [states[stream] for stream in streams], after)
        began = time.monotonic_ns()
        clients.send(command, new_id(), told)
        replied = time.monotonic_ns()
        if number >= WARM_UP:
            every.append((began, replied, observer.wait()))
        else:
            observer.wait()
    return told, {
        **times("agree_reply", [(replied - began) // 1_000 for began, replied, _ in every]),
        **times("agreed", [(w.agreed - began) // 1_000 for began, _, w in every]),
        "apart_ms": median((w.agreed - w.apart) / 1e6 if w.apart else 0.0 for _, _, w in every),
        "apart_share": quotient(sum(bool(w.apart) for _, _, w in every), len(every)),
        "agreements": len(every),
    }


def _send(clients: Writers, oracle: Crud, command: Command, told: Seen) -> None:
    oracle.send(command, new_id())
    clients.send(command, new_id(), told)
