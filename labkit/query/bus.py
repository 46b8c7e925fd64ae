"""The query bus: ask through Kafka, and find your own answer among all that come back.

::

    lab.query_bus.ask(OrdersOf("ann", status="PAID", sort="-amount"))
    lab.query_bus.ask(OrderById("o1"), fresh=LINEARIZABLE, timeout=2)

    with closing(lab.query_bus.subscribe(StockOf("cd"))) as updates:
        for update in updates: ...

A requester draws one partition of the results and reads only that, from where it ends; the query
tells it to the handler. So requesters do not read each other's answers, or few of them, and an
answer is known by its query's id. A handler may die after it has answered and before it has noted
that, so an answer can come twice: the first is taken. One that comes too late is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from labkit import errors
from labkit.errors import DecodeError, LabkitError, StackError, TimedOut, UsageError
from labkit.log.tail import Tail
from labkit.messages import MAX_COMMAND_BYTES, encode
from labkit.ports.broker import Sender, Source
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.ids import Ids, new_id
from labkit.query.wire import MAX_LEASE, Purpose, QueryEnvelope, Result, decode_result
from labkit.read.freshness import EVENTUAL, Fresh, checked_fresh
from labkit.read.queries import Queries, answer_type
from labkit.read.subscriptions import Update
from labkit.service import Query

#: A subscription is renewed so many times within its lease.
RENEWALS = 3
#: Questions without an answer, and answers that nobody took; and the results of one subscription.
MOST_OPEN, MOST_RESULTS = 10_000, 100
#: Without a time-out of one's own.
ANSWER_SECONDS = 30.0


class Question(Struct, frozen=True):
    """A query on its way; ``deadline`` is monotonic seconds."""

    id: str
    query: Query
    service: str
    timeout: float
    deadline: float


class QueryBus:
    """Sends queries to their service's topic and takes the answers; belongs to one thread.

    ``queries`` knows the queries and their services; ``tail(service)`` opens a reader of the
    service's results.
    """

    def __init__(
        self,
        queries: Queries,
        topic: Callable[[str], str],
        sender: Sender,
        tail: Callable[[str], Source],
        clock: Clock = SYSTEM,
        ids: Ids = new_id,
        random: Random | None = None,
        drive: Callable[[], None] = lambda: None,
    ) -> None:
        self._queries = queries
        self._topic = topic
        self._sender = sender
        self._tail = tail
        self._clock = clock
        self._ids = ids
        self._random = random or Random()
        self._drive = drive
        self._tails: dict[str, Tail] = {}
        self._replies: dict[str, int] = {}  # service -> the partition drawn
        self._open: dict[str, float] = {}  # question -> its deadline
        self._heard: dict[str, Result] = {}
        self._feeds: dict[str, Feed] = {}
        #: Results that were nobody's: of other requesters, repeated, too late, or no results.
        self.dropped = 0

    def ask(self, query: Query, *, fresh: Fresh = EVENTUAL, timeout: float = ANSWER_SECONDS) -> Any:
        """The answer to a query, as ``Queries.ask`` gives it.

        Raises ``UsageError`` for conditions that cannot be, ``TimedOut`` if no answer came within
        ``timeout`` seconds or the views were not that ``fresh`` in time, and ``StackError`` if the
        handler could not read.
        """
        return self.answer(self.send(query, fresh=fresh, timeout=timeout))

    def send(
        self, query: Query, *, fresh: Fresh = EVENTUAL, timeout: float = ANSWER_SECONDS
    ) -> Question:
        """Queue a query; ``answer`` waits for what it leads to.

        Up to ``MOST_OPEN`` are under way, with the answers that nobody has taken yet. Raises
        ``UsageError`` beyond that, and for what no handler could read.
        """
        self._make_room()
        question = self._question(query, timeout)
        deadline = self._clock.wall() + int(timeout * 1_000)
        self._put(question, "ask", fresh, deadline=deadline)
        self._open[question.id] = question.deadline
        return question

    def _make_room(self) -> None:
        """Give up the questions that are over; nobody has asked for their answers."""
        if len(self._open) + len(self._heard) < MOST_OPEN:
            return
        now = self._clock.seconds()
        self._open = {id: deadline for id, deadline in self._open.items() if deadline > now}
        if len(self._open) + len(self._heard) >= MOST_OPEN:
            raise UsageError(
                f"{len(self._open):,} queries are under way and {len(self._heard):,} answers were "
                f"not taken, at most {MOST_OPEN:,} in all; take them with answer(), or forget()"
            )

    def answer(self, question: Question) -> Any:
        """The answer to a query that was sent; see ``ask``. It can be taken once."""
        while (result := self._heard.pop(question.id, None)) is None:
            left = question.deadline - self._clock.seconds()
            if left <= 0 or question.id not in self._open:
                self._open.pop(question.id, None)
                raise _unanswered(question)
            self.hear(min(left, 0.05), question.service)
        return value_of(result, question.query)

    def hear(self, timeout: float, service: str | None = None) -> list[Result]:
        """The answers that come next, waiting up to ``timeout`` seconds for the first.

        To questions that are open; each is given once, and can still be taken by ``answer``.
        """
        self._drive()
        found = []
        for name in [service] if service else list(self._tails):
            for record in self._tails[name].records(timeout):
                try:
                    result = decode_result(record.value)
                except DecodeError:
                    self.dropped += 1
                    continue
                if feed := self._feeds.get(result.id):
                    feed.take(result)
                elif result.id in self._open:
                    del self._open[result.id]
                    self._heard[result.id] = result
                    found.append(result)
                else:
                    self.dropped += 1
        return found

    def heard(self, question: Question) -> Result | None:
        """Its answer, if that has come; ``answer`` still takes it."""
        self.hear(0.0, question.service)
        return self._heard.get(question.id)

    def forget(self, id: str) -> None:
        """Wait for a question no more; its answer, if it was heard, is dropped."""
        self._open.pop(id, None)
        self._heard.pop(id, None)

    def subscribe(self, query: Query, *, fresh: Fresh = EVENTUAL, lease: float = 10.0) -> Feed:
        """First the answer, then its updates; close it.

        The handler keeps it for ``lease`` seconds after it last heard of it, and whoever polls it
        renews it in time. ``fresh`` holds for the first answer, which all others follow. Raises
        ``UsageError``.
        """
        if not 0 < lease <= MAX_LEASE:
            raise UsageError(f"lease must be above 0 and at most {MAX_LEASE:g} s, got {lease}")
        feed = Feed(self, self._question(query, lease), fresh)
        self._feeds[feed.question.id] = feed
        feed.renew()
        return feed

    def listen(self, service: str) -> None:
        """Draw a partition of the service's results, and read it from its end."""
        if service not in self._tails:
            tail = Tail(
                lambda: self._tail(service),
                lambda ends: dict([self._random.choice(list(ends.items()))]),
            )
            (self._replies[service],) = tail.partitions
            self._tails[service] = tail

    def _question(self, query: Query, timeout: float) -> Question:
        asked = self._queries.asked(query)
        self.listen(asked.service)
        deadline = self._clock.seconds() + timeout
        return Question(self._ids(), asked.query, asked.service, timeout, deadline)

    def _put(
        self,
        question: Question,
        purpose: Purpose,
        fresh: Fresh,
        *,
        deadline: int = 0,
        round: int = 0,
    ) -> None:
        service, name = question.service, type(question.query).__name__
        query = QueryEnvelope(
            id=question.id,
            name=name,
            reply=self._replies[service],
            params=msgspec.to_builtins(question.query),
            fresh=None if fresh == EVENTUAL else checked_fresh(fresh),
            purpose=purpose,
            lease=question.timeout if purpose == "subscribe" else 10.0,
            round=round,
            deadline=deadline,
            sent=self._clock.now(),
        )
        try:
            value = encode(query)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"{question.query}: no JSON: {error}") from error
        if len(value) > MAX_COMMAND_BYTES:
            raise UsageError(f"{name} has {len(value)} bytes, at most {MAX_COMMAND_BYTES} fit")
        # Keyed by id: all that is about one subscription lies in one partition, in order.
        self._sender.send(self._topic(f"{service}.queries"), question.id.encode(), value)

    def flush(self, timeout: float = ANSWER_SECONDS) -> None:
        """Wait until every query sent so far is acknowledged."""
        self._sender.flush(timeout)

    def close(self) -> None:
        """Close the sender and the tails."""
        self._sender.close()
        for tail in self._tails.values():
            tail.close()


class Feed:
    """A subscription over Kafka: the answer, then its updates; an iterator that never ends, unless
    the answer does not come within a lease: then it raises ``TimedOut``.

    Who polls seldom misses updates between; the newest ``MOST_RESULTS`` are kept.

    An answer comes again where another handler takes over; given is what differs. Each renewal has
    a number that answers carry: once the new handler was heard, the old one no longer is.
    """

    def __init__(self, bus: QueryBus, question: Question, fresh: Fresh) -> None:
        self.question = question
        self._bus = bus
        self._fresh = fresh
        self._results: deque[Result] = deque(maxlen=MOST_RESULTS)  # the newest
        self._round = 0
        self._newest = 0
        self._renew_at = 0.0
        self._number = 0
        self._given = b""
        self._closed = False

    def renew(self) -> None:
        """Tell the handler that somebody is still there."""
        lease = self.question.timeout
        self._round += 1
        deadline = self._bus._clock.wall() + int(lease * 1_000)
        self._bus._put(
            self.question, "subscribe", self._fresh, deadline=deadline, round=self._round
        )
        self._renew_at = self._bus._clock.seconds() + lease / RENEWALS

    def take(self, result: Result) -> None:
        """Called by the bus with what came."""
        if result.round >= self._newest:
            self._newest = result.round
            self._results.append(result)

    def poll(self, timeout: float = 0.0) -> Update | None:
        """The next answer that differs, waiting up to ``timeout`` seconds for it.

        Raises what the handler could not do; the subscription goes on.
        """
        deadline = self._bus._clock.seconds() + timeout
        while True:
            while self._results:
                result = self._results.popleft()
                value, seen = value_of(result, self.question.query), encode(result.value)
                if self._number == 0 or seen != self._given:
                    self._number, self._given = self._number + 1, seen
                    return Update(self._number, value)
            if self._bus._clock.seconds() >= self._renew_at:
                self.renew()
            left = deadline - self._bus._clock.seconds()
            self._bus.hear(max(0.0, min(left, 0.05)), self.question.service)
            if left <= 0 and not self._results:
                return None

    def __iter__(self) -> Iterator[Update]:
        while not self._closed:
            if (update := self.poll(1.0)) is not None:
                yield update
            elif not self._number and self._bus._clock.seconds() > self.question.deadline:
                raise _unanswered(self.question)

    def close(self) -> None:
        """Tell the handler that nobody is there any more."""
        if not self._closed:
            self._closed = True
            del self._bus._feeds[self.question.id]
            self._bus._put(self.question, "unsubscribe", EVENTUAL)


def _unanswered(question: Question) -> TimedOut:
    return TimedOut(
        f"no answer to {question.query} within {question.timeout:g} s; is a query handler of "
        f"{question.service!r} running? lab.start(queries=1) or `labkit run query --service "
        f"{question.service} --run RUN` starts one, and `labkit status` shows it"
    )


def value_of(result: Result, query: Query) -> Any:
    """The value of a result, or its error raised as what it was at the handler."""
    if result.ok:
        try:
            return msgspec.convert(result.value, answer_type(type(query)))
        except msgspec.ValidationError as error:
            raise StackError(f"the handler gave an answer of another kind: {error}") from error
    kind = getattr(errors, result.error, None)
    if not (isinstance(kind, type) and issubclass(kind, LabkitError)):
        kind = StackError
    raise kind(result.text)
