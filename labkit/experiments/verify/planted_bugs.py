"""Planted bugs: each must turn a checker red, which shows that the checker can turn red.

A worker plants the bugs that ``LABKIT_PLANT`` names (``planting.py``). Most of them take away one
guarantee of the design:

==================  ========================================================================
no-dedupe           a stream forgets the command ids that it has seen
early-offsets       the command's offset is committed before its commit is written
no-fence            offsets are sent under a bare group id, so that a zombie may commit
checkpoint-apart    a view's checkpoint is written in a separate transaction, before the view
random-saga-ids     a process sends the outbox of its dead predecessor again, with other ids
no-wait             a query does not wait until the view is as fresh as requested
old-watermark       linearizable reads reuse the watermarks of the first read
swapped-answers     a query handler answers each query with the answer to the previous one
deaf-cache          a query handler never invalidates its cached answers
lost-answers        a query handler drops one query in twenty
passed-over         a handler skips one command in a hundred
false-refusals      the API turns one command in three away after it has sent it
death               a handler dies once, between the offsets of a batch and the end of its commit
held                no bug: workers report what they own, and handlers wait for the file ``go``
brittle             a rule raises until the file ``repaired`` exists: what poison is made of
==================  ========================================================================
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from labkit.errors import UsageError
from labkit.experiments.verify.planting import (
    GO,
    HELD_SECONDS,
    REPAIRED,
    marks,
    planted,
    planted_here,
    replace,
)
from labkit.messages import Commit
from labkit.ports.broker import Batch
from labkit.ports.clock import Clock
from labkit.ports.failpoints import Failpoint, arm_from_environment
from labkit.ports.ids import new_id
from labkit.ports.store import Checkpoint, Writes

#: A process dies with this many commands in its outbox: one of them takes effect again.
IN_ITS_HANDS = 5
#: So begins the name of a bug of the simulator.
SIMULATED = "simulated:"


def no_dedupe() -> None:
    from labkit.write.stream_state import StreamState

    take = StreamState.take

    def forgetful(self: StreamState, *args: Any) -> None:
        take(self, *args)
        self.seen.clear()

    replace(StreamState, "take", forgetful)


def early_offsets() -> None:
    """Nothing to patch: the delivery level ``at_most_once`` does it."""


def no_fence() -> None:
    """kafka-python sends neither its generation nor its member id."""
    from labkit.adapters.kafka_python import KafkaPythonLog

    def bare(self: KafkaPythonLog, batch: Any) -> Any:
        return batch.fence._replace(generation_id=-1, member_id="")

    replace(KafkaPythonLog, "_fence", bare)


def checkpoint_apart() -> None:
    """The worker dies once between the two transactions."""
    from labkit.adapters.mongo import MongoStore

    advance = MongoStore.advance
    mark = marks() / "torn"

    def torn(
        self: MongoStore,
        checkpoints: str,
        moves: Sequence[tuple[Checkpoint, Checkpoint]],
        writes: Writes,
    ) -> None:
        views = any(".view" in name for name in [*writes.inserts, *writes.replaces])
        if not views:
            advance(self, checkpoints, moves, writes)
            return
        advance(self, checkpoints, moves, Writes())
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        advance(self, checkpoints, [], writes)

    replace(MongoStore, "advance", torn)


def random_process_ids() -> None:
    """The first sending keeps its ids, so it is answered; the second takes effect again."""
    from labkit.process.outbox import Outbox

    leftovers = Outbox.leftovers

    def renamed(self: Outbox, partition: int) -> list[dict[str, Any]]:
        if letters := leftovers(self, partition):
            self.send([{**letter, "value": _renamed(letter["value"])} for letter in letters])
        return []

    replace(Outbox, "leftovers", renamed)


def random_process_ids_and_a_death() -> None:
    """Each process dies once with several commands in its outbox, so that a renamed one takes
    effect again; those of the process that a faulty worker kills may have no second effect."""
    from labkit.process.outbox import Outbox

    random_process_ids()
    send = Outbox.send

    def last(self: Outbox, letters: list[dict[str, Any]]) -> None:
        # A worker whose failpoint is armed already dies in another way.
        if "LABKIT_FAILPOINT" not in os.environ and len(letters) >= IN_ITS_HANDS:
            mark = {"LABKIT_FAILPOINT_MARK": str(marks() / f"{self.collection}.died")}
            arm_from_environment({"LABKIT_FAILPOINT": Failpoint.PROCESS_SENT} | mark)
        send(self, letters)

    replace(Outbox, "send", last)


def _renamed(value: str) -> str:
    envelope = msgspec.json.decode(value)
    return msgspec.json.encode({**envelope, "id": new_id()}).decode()


def no_wait() -> None:
    """For the processes that query."""
    from labkit.read.queries import Queries

    replace(Queries, "_behind", lambda *_: [])


def old_watermark() -> None:
    """An attempt to save a round trip to Kafka."""
    from labkit.lab import Lab

    watermarks = Lab._watermarks
    told: dict[tuple[str, str], dict[int, int]] = {}

    def kept(self: Lab, service: str) -> dict[int, int]:
        key = (self.run, service)
        if key not in told:
            told[key] = watermarks(self, service)
        return told[key]

    replace(Lab, "_watermarks", kept)


def swapped_answers() -> None:
    from labkit.query.followed import Arrived
    from labkit.query.handler import QueryHandler

    give = QueryHandler._give
    before: list[msgspec.Raw] = []

    def swap(
        self: QueryHandler, arrived: Arrived, value: msgspec.Raw, cached: bool = False
    ) -> None:
        before.append(value)
        give(self, arrived, before[-2:][0], cached)

    replace(QueryHandler, "_give", swap)


def deaf_cache() -> None:
    from labkit.query.answer_cache import AnswerCache

    replace(AnswerCache, "notice", lambda *_: None)


def lost_answers() -> None:
    """As if it committed their offsets and died."""
    from labkit.query.followed import Arrived
    from labkit.query.handler import QueryHandler

    answer = QueryHandler._answer

    def forget(self: QueryHandler, arrived: Arrived) -> None:
        if arrived.offset % 20:
            answer(self, arrived)

    replace(QueryHandler, "_answer", forget)


def false_refusals() -> None:
    """Its client is told that nothing was done."""
    from labkit.api.backend import Backend
    from labkit.api.problems import Problem

    submit, count = Backend.submit, itertools.count(1)

    def lying(self: Backend, *args: Any, **options: Any) -> Any:
        answer = submit(self, *args, **options)
        if next(count) % 3 == 0:
            raise Problem("overloaded", "not sent, it says", {"Retry-After": "1"})
        return answer

    replace(Backend, "submit", lying)


def death() -> None:
    """At the third batch; the delivery level decides what is lost."""
    died = {"LABKIT_FAILPOINT_MARK": str(marks() / "died"), "LABKIT_FAILPOINT_PASSES": "2"}
    arm_from_environment({"LABKIT_FAILPOINT": Failpoint.HANDLER_OFFSETS} | died)


def passed_over() -> None:
    """The offset is committed nevertheless."""
    from labkit.write.handler import Handler

    gather = Handler._gather

    def some(self: Handler, timeout: float) -> Batch:
        batch = gather(self, timeout)
        batch.records = [record for record in batch.records if record.offset % 100 != 50]
        return batch

    replace(Handler, "_gather", some)


def held() -> None:
    """A measurement begins when all workers own their partitions: see ``bench/drain.py``."""
    from labkit.read.projector import Projector
    from labkit.write.handler import Handler

    poll, step, go = Handler._poll, Projector.step, marks() / GO

    def say(role: str, owned: int) -> None:
        (marks() / f"{role}.{os.getpid()}").write_text(str(owned))

    def patient_poll(self: Handler, limit: int, timeout: float) -> Any:
        batch = poll(self, limit, min(timeout, HELD_SECONDS))
        for partition in batch.assigned:
            self._log.stop(partition)
        say("handler", len(self._states.saved))
        if go.exists():
            replace(Handler, "_poll", poll)
            for partition in self._states.saved:
                self._log.start(partition)
        return batch

    def telling_step(self: Projector, timeout: float = 0.5) -> int:
        done = step(self, min(timeout, HELD_SECONDS))
        say("projector", len(self._owned.checkpoints))
        if go.exists():
            replace(Projector, "step", step)
        return done

    replace(Handler, "_poll", patient_poll)
    replace(Projector, "step", telling_step)


def brittle() -> None:
    """A command with a cursed id, which would be accepted, raises instead."""
    from labkit.experiments.verify.mixture import CURSED
    from labkit.write import decisions

    right, repaired = decisions._decide, marks() / REPAIRED

    def stumble(arrival: decisions.Arrival, clock: Clock) -> Commit[Any]:
        commit = right(arrival, clock)
        cursed = commit.id.startswith(CURSED) and commit.outcome == "accepted"
        if not cursed or repaired.exists():
            return commit
        command = arrival.service.codec.decode_command(arrival.record.value)
        bug = ZeroDivisionError("nobody thought of this")
        return decisions._stuck(arrival, command, bug)

    replace(decisions, "_decide", stumble)


PLANTS: dict[str, Callable[[], None]] = {
    "no-dedupe": no_dedupe,
    "early-offsets": early_offsets,
    "no-fence": no_fence,
    "checkpoint-apart": checkpoint_apart,
    "random-saga-ids": random_process_ids_and_a_death,
    "no-wait": no_wait,
    "old-watermark": old_watermark,
    "swapped-answers": swapped_answers,
    "deaf-cache": deaf_cache,
    "lost-answers": lost_answers,
    "false-refusals": false_refusals,
    "death": death,
    "held": held,
    "passed-over": passed_over,
    "brittle": brittle,
}


def plant_from_environment() -> None:
    """Plant the bugs that ``LABKIT_PLANT`` names; raises ``UsageError`` for an unknown name.

    Those of the simulator begin with ``simulated:``.
    """
    for name in filter(None, os.environ.get("LABKIT_PLANT", "").split(",")):
        if name.startswith(SIMULATED):
            from labkit.simulation.ladder import in_worker

            in_worker(name.removeprefix(SIMULATED))()
            continue
        if name not in PLANTS:
            raise UsageError(f"LABKIT_PLANT must be of {', '.join(PLANTS)}, got {name!r}")
        PLANTS[name]()


__all__ = [
    "GO",
    "HELD_SECONDS",
    "PLANTS",
    "REPAIRED",
    "SIMULATED",
    "deaf_cache",
    "marks",
    "no_wait",
    "plant_from_environment",
    "planted",
    "planted_here",
    "random_process_ids",
    "replace",
]
