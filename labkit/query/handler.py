"""The query handler: a numbered recipe.

It reads MongoDB for each answer. With a cache it holds answers to eventual queries, and drops those
whose documents have changed, as a change stream tells; the same stream tells which subscriptions to
read anew. Offsets are committed after the answers are acknowledged: at least once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec
from msgspec import structs

from labkit.errors import DecodeError, Fenced, LabkitError, Stopped, TimedOut, UsageError
from labkit.log.crash_only import CrashOnly
from labkit.log.partition import join_group
from labkit.messages import encode
from labkit.ports.broker import Acknowledgement, Batch, CommandLog, Record, Sender
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.store import Changes, Store
from labkit.query.answer_cache import AnswerCache, key_of
from labkit.query.followed import Arrived, Subscriptions
from labkit.query.wire import QueryEnvelope, Result, decode_reply_to, failed
from labkit.read.freshness import EVENTUAL, Fresh, Goal
from labkit.read.queries import Answered, Asked, Queries
from labkit.read.subscriptions import of_views

#: What a result may have: below what Kafka takes (``adapters.kafka.MAX_RECORD_BYTES``).
MAX_RESULT_BYTES = 4_000_000
#: Answers that must be acknowledged within this time, or the handler begins anew.
SEND_SECONDS = 20.0
#: Offsets are committed when there is nothing to answer, and under load this often: a commit takes
#: longer than many an answer. Who takes over answers so much again, which harms nobody.
COMMIT_SECONDS = 0.1
#: Between two looks at what others wait for, and at what subscriptions follow.
WAITING_SECONDS = 0.005
FOLLOWING_SECONDS = 0.05
#: Of one handler.
MAX_SUBSCRIPTIONS = 10_000
#: A query that did not end is not tried again for so long: it would hold up all others each time.
REST_SECONDS = 60.0
#: Queries that wait for fresher views, at most, and those of one batch.
MAX_WAITING = 10_000

_queries = msgspec.json.Decoder(QueryEnvelope[Fresh])


class Settled(Queries):
    """Queries that must show ``goals``, whatever else is committed by now."""

    def __init__(self, queries: Queries) -> None:
        super().__init__(queries._store, queries._services, clock=queries._clock)
        self.goals: list[Goal] = []

    def _goals(self, fresh: Fresh, services: Iterable[str]) -> list[Goal]:
        return self.goals


class QueryHandler(CrashOnly):
    """Answers the queries of one service, as a member of a group.

    Args:
        service: whose queries.
        log: queries come in, their offsets go out; ``at_least_once``.
        results: the topic of the answers.
        partitions: of that topic.
        sender: of the answers.
        queries: what the views answer, and how fresh they are.
        store: whose changes are followed.
        cache: how many answers are held; 0: none, and each is read.
        batch_size: how many queries are taken at once.
        close: lets go of what else was opened for it.
    """

    def __init__(
        self,
        service: str,
        log: CommandLog,
        results: str,
        partitions: int,
        sender: Sender,
        queries: Queries,
        store: Store,
        clock: Clock = SYSTEM,
        *,
        cache: int = 0,
        batch_size: int = 500,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._log = log
        self._results = results
        self._sender = sender
        self._queries = queries
        self._settled = Settled(queries)
        self._store = store
        self._clock = clock
        self._answers = AnswerCache(cache) if cache else None
        self._batch_size = batch_size
        self._close = close
        self._changes: Changes | None = None
        self._waiting: list[Arrived] = []
        self._followed = Subscriptions()
        self._stopped: dict[bytes, float] = {}
        self._reached: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._sent: list[Acknowledgement] = []
        self._answered = 0
        self._commit_at = 0.0
        self._partitions = partitions
        #: Queries that told no place for an answer.
        self.ignored = 0

    def step(self, timeout: float = 0.5) -> int:
        """One batch; returns the number of answers.

        Raises ``Fenced`` if an earlier step failed.
        """
        with self.unbroken():
            return self._step(timeout)

    def _step(self, timeout: float) -> int:
        # 1. Poll; what is new is read from where the group has committed.
        batch = self._log.poll(self._batch_size, self._patience(timeout))
        self._hand_over(batch)

        # 2. What has changed meanwhile: before anything is answered.
        self._notice()

        # 3. Understand each query. What nobody understands is answered, too.
        polled = self._clock.now()
        arrived = [a for record in batch.records if (a := self._understand(record, polled))]

        # 4. Answer those whose views are fresh enough; the others wait, and hold up nobody.
        self._waiting += arrived
        self._answer_ready()

        # 5. Subscriptions: where an answer differs from the one before, it is given.
        self._update()

        # 6. Once all answers are acknowledged, their queries are done with.
        answered = self._answered
        self._answered = 0
        if not batch.records or self._clock.seconds() >= self._commit_at:
            self._commit(batch)
        return answered

    def join(self, partitions: int) -> None:
        """Own ``partitions`` before the first step: for those who step by hand."""
        for partition in join_group(self._log, partitions):
            self._log.start(partition)

    def close(self) -> None:
        """Leave the group."""
        self._log.close()
        self._sender.close()
        if self._changes is not None:
            self._changes.close()
        self._close()

    # --- 1. and 2.

    def _patience(self, timeout: float) -> float:
        if self._waiting:
            return min(timeout, WAITING_SECONDS)
        return min(timeout, FOLLOWING_SECONDS) if self._followed else timeout

    def _hand_over(self, batch: Batch) -> None:
        """Who owns a partition next, gets what waits in it again; subscriptions are renewed."""
        for partition in batch.revoked | batch.assigned:
            self._reached.pop(partition, None)
            self._committed.pop(partition, None)
        gone = batch.revoked | batch.assigned
        self._waiting = [a for a in self._waiting if a.partition not in gone]
        self._followed.hand_over(gone)
        for partition in sorted(batch.assigned):
            self._log.start(partition)
        self._reached.update(batch.positions)

    def _follow(self) -> None:
        """From before the first read on."""
        if self._changes is None:
            watched = of_views(self._queries.watched_by(self._service))
            self._changes = self._store.changes(watched, pause=0.001)

    def _notice(self) -> None:
        if self._answers is not None:
            self._follow()
        if self._changes is None:
            return
        if not (noticed := self._changes.poll(0)):
            return
        if self._answers is not None:
            self._answers.notice(noticed)
        self._followed.notice(noticed)

    # --- 3.

    def _understand(self, record: Record, polled: int) -> Arrived | None:
        """A query with its plan; ``None``: it is done with."""
        try:
            query = _queries.decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LabkitError) as error:
            self._refuse(record.value, f"no query of this schema: {error}")
            return None
        if query.reply >= self._partitions:
            self.ignored += 1
            return None
        if query.purpose == "unsubscribe":
            self._followed.drop(query.id)
            return None
        now = self._clock.seconds()
        left = (query.deadline - self._clock.wall()) / 1_000 if query.deadline else query.lease
        until = now + left
        if (followed := self._followed.get(query.id)) is not None:
            followed.arrived.query = query
            followed.until = now + query.lease
            return None
        if left <= 0 and query.purpose == "subscribe":
            return None  # whoever is still there has sent another renewal, or will
        fresh = query.fresh or EVENTUAL
        try:
            if left <= 0:
                raise TimedOut(
                    f"query {query.name!r} came to its handler after its deadline; ask with a "
                    "longer timeout, or start more query handlers"
                )
            made = self._queries.named(query.name, query.params, self._service)
            if made.service != self._service:
                raise UsageError(f"{query.name} is a query of {made.service!r}")
            if query.purpose == "subscribe":
                if len(self._followed) >= MAX_SUBSCRIPTIONS:
                    raise UsageError(f"this handler has {MAX_SUBSCRIPTIONS} subscriptions already")
                self._follow()
            else:
                until = min(until, now + fresh.timeout) if fresh != EVENTUAL else until
            goals = self._goals(fresh, made)
            if goals and len(self._waiting) >= MAX_WAITING:
                raise TimedOut(
                    f"{MAX_WAITING:,} queries wait for fresher views at this handler already; the "
                    "views are behind. Ask again later, or for less fresh answers"
                )
        except Exception as error:
            self._put(query.reply, failed(query, error, polled))
            return None
        return Arrived(query, made, record.partition, record.offset, polled, until, goals)

    def _goals(self, fresh: Fresh, made: Asked) -> list[Goal]:
        goals = self._queries._goals(fresh, made.services)
        for goal in goals:
            self._queries.check_views(goal.service)
        return goals

    def _refuse(self, value: bytes, text: str) -> None:
        """Where a query tells at least its id and its place, it is answered."""
        try:
            known = decode_reply_to(value)
        except DecodeError:
            self.ignored += 1
            return
        if known.reply >= self._partitions:
            self.ignored += 1
            return
        self._put(known.reply, Result(known.id, False, error="UsageError", text=text[:500]))

    # --- 4. and 5.

    def _answer_ready(self) -> None:
        """One look at the views serves all that wait."""
        goals = list({goal for a in self._waiting for goal in a.goals})
        behind = self._queries.behind(goals) if goals else {}
        waiting, self._waiting = self._waiting, []
        for arrived in waiting:
            missing = any(goal in behind for goal in arrived.goals)
            if missing and self._clock.seconds() < arrived.until:
                self._waiting.append(arrived)
            else:
                self._answer(arrived)

    def _answer(self, arrived: Arrived) -> None:
        query = arrived.query
        if query.purpose == "subscribe":
            self._followed.put(arrived, self._clock.seconds() + query.lease)
            return  # given with the updates, right after
        cached = False
        try:
            held = None
            if self._answers is not None and not arrived.goals:
                held = self._answers.get(arrived.asked.query)
            if held is not None:
                value, cached = held, True
            else:
                value = self._read(arrived)
        except Exception as error:  # a query that meets a bug must not stop all others
            self._put(query.reply, failed(query, error, arrived.polled))
            return
        self._give(arrived, value, cached)

    def _read(self, arrived: Arrived) -> msgspec.Raw:
        found = self._ask(arrived)
        value = msgspec.Raw(encode(found.value))
        if len(bytes(value)) > MAX_RESULT_BYTES:
            raise UsageError(
                f"the answer has {len(bytes(value))} bytes, at most {MAX_RESULT_BYTES} fit: "
                "ask for less, or in pages"
            )
        if arrived.query.purpose == "subscribe":
            self._followed.has_read(arrived.query.id, found.places)
        elif self._answers is not None:
            self._answers.put(arrived.asked.query, value, found.places)
        return value

    def _ask(self, arrived: Arrived) -> Answered:
        """Whoever has waited, waits no more; a stream that a view holds back is noticed there."""
        if self._stopped:
            self._check_rest(arrived)
        self._settled.goals = arrived.goals
        try:
            return self._settled.answer(arrived.asked, Fresh(timeout=0.0))
        except Stopped:
            self._stopped[key_of(arrived.asked.query)] = self._clock.seconds() + REST_SECONDS
            raise
        except TimedOut as late:
            seconds = (arrived.query.fresh or EVENTUAL).timeout
            raise TimedOut(str(late).replace("within 0 s", f"within {seconds:g} s")) from None

    def _check_rest(self, arrived: Arrived) -> None:
        """Raises ``Stopped`` for a query that did not end a moment ago."""
        now = self._clock.seconds()
        self._stopped = {k: until for k, until in self._stopped.items() if now < until}
        if (until := self._stopped.get(key_of(arrived.asked.query))) is not None:
            raise Stopped(
                f"{arrived.query.name} did not end a moment ago; it is not tried again for "
                f"{until - now:.0f} s"
            )

    def _give(self, arrived: Arrived, value: msgspec.Raw, cached: bool = False) -> None:
        query = arrived.query
        result = Result(
            query.id,
            True,
            value,
            round=query.round,
            cached=cached,
            sent=query.sent,
            polled=arrived.polled,
            answered=self._clock.now(),
        )
        self._put(query.reply, result)

    def _update(self) -> None:
        for followed in self._followed.due(self._clock.seconds()):
            query = followed.arrived.query
            try:
                value = self._read(followed.arrived)
            except Exception as error:
                self._put(query.reply, failed(query, error, followed.arrived.polled))
                continue
            followed.arrived.goals = []
            if (seen := bytes(value)) != followed.given:
                followed.given = seen
                self._give(followed.arrived, value)

    def _put(self, partition: int, result: Result) -> None:
        sent = self._sender.send(self._results, result.id.encode(), encode(result), partition)
        self._sent.append(sent)
        self._answered += 1

    # --- 6.

    def _commit(self, batch: Batch) -> None:
        sent, self._sent = self._sent, []
        if sent:
            self._sender.flush(SEND_SECONDS)
            for acknowledgement in sent:
                acknowledgement.result(SEND_SECONDS)
        done = dict(self._reached)
        for arrived in self._waiting:  # they would be lost with us
            done[arrived.partition] = min(done[arrived.partition], arrived.offset)
        moved = {p: at for p, at in done.items() if self._committed.get(p) != at}
        if moved:
            # While a group deals out its partitions it takes no offsets (kafka-python joins twice,
            # so that this befalls the first step by hand). They are noted with the next batch, or
            # not at all, and then the next owner answers once more.
            with suppress(Fenced):
                self._log.commit(structs.replace(batch, records=[], positions=moved), [])
                self._committed.update(moved)
        self._commit_at = self._clock.seconds() + COMMIT_SECONDS
