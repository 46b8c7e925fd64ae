"""The arms of ``labkit bench cost``: those that claim to be right are, and the naive one is not."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from labkit.adapters.memory_store import MemoryStore
from labkit.errors import Conflict, Unreachable
from labkit.experiments.cost import subject
from labkit.experiments.cost.agreement import Observer
from labkit.experiments.cost.arm import Arm, Reply
from labkit.experiments.cost.clients import Task, done
from labkit.experiments.cost.crud import IDS, OUTBOX, TRIES, Crud
from labkit.experiments.cost.fed_view import FED, FedView, Feeder
from labkit.experiments.cost.judging import judged, judged_by_the_log
from labkit.experiments.cost.naive import Naive
from labkit.experiments.cost.product import Product
from labkit.experiments.cost.relay import Relay
from labkit.experiments.cost.row import ROWS
from labkit.experiments.cost.told import operations
from labkit.experiments.cost.writers import Seen, Writers, told_to_a_process
from labkit.experiments.verify.verdict import Verdict, red
from labkit.lab import Lab
from labkit.messages import Command, Document
from labkit.ports.store import Writes
from labkit.run import references
from labkit.services import AGREEING
from labkit.services.bank import AccountOpened, Deposit, OpenAccount, SendMoney, Withdraw

SERVICE = subject.SERVICE
HOT = 2


class SharedStore(MemoryStore):
    """A store in memory that threads share: each call is alone, and after a read all others have
    their turn, so that writers do meet."""

    def __init__(self) -> None:
        super().__init__()
        self.one = threading.RLock()

    def load(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        with self.one:
            found = super().load(collection, ids)
        time.sleep(0.0005)
        return found

    def advance(self, checkpoints: str, moves: Any, writes: Writes) -> None:
        with self.one:
            super().advance(checkpoints, moves, writes)

    def save(self, collection: str, document: Document) -> None:
        """What the naive arm asks for: neither a transaction nor a version."""
        with self.one:
            self._collections.setdefault(collection, {})[document["_id"]] = document


def driven(arm: Arm, writers: int = 8, count: int = 20, resent: float = 0.2) -> Seen:
    """Open two accounts, then let writers meet on them."""
    of, clients = subject.of("cost"), Writers(arm, "c", 1, resent)
    seen = Seen()
    for number, command in enumerate(of.opening(1, accounts=HOT)):
        clients.send(command, f"open-{number}", seen)
    loop = clients.closed(lambda n: of.commands(n, accounts=HOT), writers, 60.0, count)
    loop.told[:0] = seen.told
    return loop


def verdicts(arm: Arm, seen: Seen) -> dict[str, Verdict]:
    return judged(SERVICE, operations(SERVICE, seen.told), arm.documents(), arm.states())


def assert_green(found: dict[str, Verdict]) -> None:
    assert not red(found), {n: v.violations[:3] for n, v in found.items() if v.ok is False}
    assert all(v.checked for v in found.values()), "a checker that looked at nothing"


# --- crud


def test_crud_is_right_under_eight_writers_and_resends() -> None:
    arm = Crud(SERVICE, SharedStore())
    seen = driven(arm)
    assert_green(verdicts(arm, seen))
    assert seen.conflicts > 0, "writers met"
    assert seen.resent > 0, "commands were sent again"
    outcomes = {o.answer.outcome for o in operations(SERVICE, seen.told) if o.answer}
    assert outcomes == {"accepted", "refused"}


class Apart(Crud):
    """Planted: the answer is kept in a second transaction."""

    def _commit(self, writes: Writes) -> None:
        kept = Writes({IDS: writes.inserts.pop(IDS)})
        super()._commit(writes)
        super()._commit(kept)


class Unversioned(Crud):
    """Planted: a row is replaced whatever its revision is."""

    def _commit(self, writes: Writes) -> None:
        assert isinstance(self._store, SharedStore)
        with self._store.one:
            for row in writes.replaces[ROWS]:
                row["rev"] = self._store.load(ROWS, [row["_id"]])[row["_id"]]["rev"] + 1
            super()._commit(writes)


@pytest.mark.parametrize(("planted", "seen_by"), [(Apart, "C9"), (Unversioned, "C6")])
def test_a_planted_bug_in_crud_is_seen(planted: type[Crud], seen_by: str) -> None:
    arm = planted(SERVICE, SharedStore())
    assert seen_by in red(verdicts(arm, driven(arm)))


def test_what_was_accepted_and_is_not_shown_is_a_lost_write() -> None:
    arm = Crud(SERVICE, SharedStore())
    seen = driven(arm, writers=1)
    shown = [{**d, "version": d["version"] - 1} for d in arm.documents()]
    found = judged(SERVICE, operations(SERVICE, seen.told), shown, arm.states())
    assert {"C1", "C9"} <= set(red(found))


def test_a_state_that_breaks_an_invariant_is_seen() -> None:
    arm = Crud(SERVICE, SharedStore())
    seen = driven(arm, writers=1)
    states = [{**state, "balance": -1} for state in arm.states()]
    found = judged(SERVICE, operations(SERVICE, seen.told), arm.documents(), states)
    assert red(found) == ["invariants"]


def test_another_command_under_a_used_id_is_refused() -> None:
    arm = Crud(SERVICE, SharedStore())
    assert arm.send(OpenAccount("a", "ann"), "1").answer.accepted
    assert arm.send(OpenAccount("a", "ann"), "1").answer.version == 1, "a repeat"
    other = arm.send(Deposit("a", 5), "1").answer
    assert other.outcome == "refused"
    assert "was used for another command" in other.reason
    assert arm.read("a") == {"_id": "a", "version": 1, "owner": "ann", "balance": 0, "open": 0}


def test_crud_gives_up_after_some_tries_and_waits_longer_each_time() -> None:
    class Beaten(SharedStore):
        def advance(self, checkpoints: str, moves: Any, writes: Writes) -> None:
            raise Conflict("another writer was first")

    pauses: list[float] = []
    arm = Crud(SERVICE, Beaten(), pause=pauses.append)
    with pytest.raises(Conflict, match=f"command '1' met other writers of 'a' {TRIES} times"):
        arm.send(OpenAccount("a", "ann"), "1")
    assert len(pauses) == arm.conflicts == TRIES
    assert max(pauses[:3]) <= 0.004 < max(pauses) <= 0.064


def test_others_are_told_in_the_same_transaction() -> None:
    store = SharedStore()
    arm = Crud(SERVICE, store, tells=True)
    arm.send(OpenAccount("a", "ann"), "1")
    arm.send(OpenAccount("a", "ann"), "1")
    arm.send(Withdraw("a", 5), "2", "case")
    opened, refused = store.find(OUTBOX, {}, sort=[("_id", 1)])
    commit = SERVICE.codec.decode_commit(opened["commit"].encode())
    assert commit.events == (AccountOpened("a", "ann"),)
    commit = SERVICE.codec.decode_commit(refused["commit"].encode())
    assert (commit.id, commit.outcome, commit.correlation) == ("2", "refused", "case")


# --- two streams that agree


def test_a_process_is_followed_in_one_transaction() -> None:
    store = SharedStore()
    arm = Crud(SERVICE, store, process=references.process(AGREEING))
    seen, clients = Seen(), Writers(arm, "c", 1, 0.2)
    of = subject.of("agreement")
    for number, command in enumerate(of.opening(1, accounts=3)):
        clients.send(command, f"open-{number}", seen)
    before = store.count(IDS)
    found = clients.closed(lambda n: of.commands(n, accounts=3), 4, 60.0, 10)
    found.told[:0] = seen.told
    assert_green(verdicts(arm, found))
    assert store.count(IDS) == before + 3 * 40, "sent, received, confirmed"
    assert all(d["open"] == 0 for d in arm.documents())
    to_nobody = arm.send(SendMoney("a1", 5, "nobody", "t"), "to-nobody")
    kinds = Counter(type(each.command).__name__ for each in to_nobody.followed)
    assert kinds == {"ReceiveMoney": 1, "TakeBack": 1}
    assert sum(d["balance"] for d in arm.documents()) == 3 * 10_000_000


class Dying(Relay):
    """Dies when it has sent the commands of a process, and has not yet saved that."""

    def _finish(self, writes: Writes) -> None:
        if self.followed:
            raise Unreachable("it died")
        super()._finish(writes)


def test_an_outbox_tells_the_process_and_they_agree_in_the_end() -> None:
    store = SharedStore()
    arm = Crud(SERVICE, store, tells=True)
    relay = Relay(SERVICE, store, arm, references.process(AGREEING))
    seen, clients = Seen(), Writers(arm, "c", 1, 0.2)
    of = subject.of("agreement")
    for number, command in enumerate(of.opening(1, accounts=3)):
        clients.send(command, f"open-{number}", seen)
    found = clients.closed(lambda n: of.commands(n, accounts=3), 4, 60.0, 10)
    clients.send(SendMoney("a1", 5, "nobody", "t"), "to-nobody", found)
    assert sum(d["open"] for d in arm.documents()) > 0, "sent, and not yet there"
    found.told[:0] = seen.told
    dying = Dying(SERVICE, store, arm, references.process(AGREEING))
    with pytest.raises(Unreachable):
        dying.step()
    while relay.step():
        pass
    found.told += map(told_to_a_process, dying.followed + relay.followed)
    assert_green(verdicts(arm, found))
    assert all(d["open"] == 0 for d in arm.documents())
    assert sum(d["balance"] for d in arm.documents()) == 3 * 10_000_000
    assert store.count(OUTBOX) == 0


def moved(store: MemoryStore, *streams: str) -> None:
    """One more version of the rows of these streams, in one transaction."""
    rows = list(store.load(ROWS, streams).values())
    after = [{**row, "rev": row["rev"] + 1, "version": row["version"] + 1} for row in rows]
    store.advance("", [], Writes(replaces={ROWS: after}))


def looked(observer: Observer, what: str) -> None:
    """Wait until the observer has looked once more."""
    before, deadline = getattr(observer.watched, what), time.monotonic() + 30
    while getattr(observer.watched, what) == before:
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def test_an_observer_sees_whether_two_streams_are_apart() -> None:
    with Lab(backend="memory", services=[SERVICE]) as lab:
        assert isinstance(lab.store, MemoryStore)
        arm = Crud(SERVICE, lab.store)
        for name in ("a", "b"):
            arm.send(OpenAccount(name, "ann"), name)
        before = [{"_id": "a", "version": 1}, {"_id": "b", "version": 1}]
        between = [{"_id": "a", "version": 2}, {"_id": "b", "version": 2}]
        after = [{"_id": "a", "version": 3}, {"_id": "b", "version": 3}]
        at_once = Observer(lab, "crud", before, between)
        looked(at_once, "looks")
        moved(lab.store, "a", "b")
        found = at_once.wait()
        assert found.agreed
        assert found.apart == found.apart_looks == 0
        one_by_one = Observer(lab, "crud", between, after)
        looked(one_by_one, "looks")
        moved(lab.store, "a")
        looked(one_by_one, "apart_looks")
        moved(lab.store, "b")
        found = one_by_one.wait()
        assert 0 < found.apart < found.agreed


# --- the others


def test_the_naive_arm_loses_writes_and_repeats_them() -> None:
    alone = Naive(SERVICE, store := SharedStore(), store)
    assert_green(verdicts(alone, driven(alone, writers=1, resent=0.0)))
    resent = Naive(SERVICE, store := SharedStore(), store)
    assert {"C2", "C9"} <= set(red(verdicts(resent, driven(resent, writers=1, resent=0.3))))
    shared = Naive(SERVICE, store := SharedStore(), store)
    assert {"C6", "C9"} <= set(red(verdicts(shared, driven(shared, resent=0.0))))


def test_a_view_fed_by_a_change_stream_is_stale_and_then_right() -> None:
    store = SharedStore()
    before = FedView(SERVICE, store)
    before.send(OpenAccount("before", "ann"), "0")
    feeder = Feeder(store)
    assert before.read("before") is not None, "a feeder that starts copies what is there"
    arm = FedView(SERVICE, store)
    seen = driven(arm)
    assert arm.read("a1") is None, "stale"
    while feeder.step(0):
        pass
    documents = [d for d in arm.documents() if d["_id"] != "before"]
    told = operations(SERVICE, seen.told)
    assert_green(judged(SERVICE, told, documents, arm.states()))
    arm.send(Deposit("before", 5), "1")
    store._listeners[0].forget()
    feeder.step(0)
    found = arm.read("before")
    assert found is not None
    assert found["balance"] == 5, "what the change stream lost is copied"
    assert store.count(FED) == HOT + 1


def test_labkit_is_right_by_the_same_checkers() -> None:
    with Lab(backend="memory", services=[SERVICE]) as lab:
        lab.start()
        arm = Product(SERVICE, lab)
        try:
            seen = driven(arm, writers=1, count=40)
        finally:
            arm.close()
        lab.handler.flush()
        lab.projector.step(0)
        assert_green(verdicts(arm, seen))
        by_the_log = judged_by_the_log(lab, operations(SERVICE, seen.told))
        assert {"C1", "C2", "C3", "C6", "C8", "C9", "invariants"} == set(by_the_log)
        assert_green(by_the_log)
    assert all(o.token for o in operations(SERVICE, seen.told))


# --- the clients


def test_a_task_of_a_client_opens_writes_and_reads() -> None:
    arm = Crud(SERVICE, SharedStore())
    opening = Task("opening", "open", 1, accounts=20, threads=4, seconds=60.0)
    assert len(done(Writers(arm, "open", 1, 0.0), opening).writes) == 20
    assert {d["_id"] for d in arm.documents()} == {f"a{n + 1}" for n in range(20)}
    closed = Task("closed", "c", 1, accounts=1, threads=2, seconds=60.0, count=10)
    seen = done(Writers(arm, "c", 1, 0.0), closed)
    assert len(seen.writes) == 20, "ten of each writer"
    assert {o.command.stream for o in operations(SERVICE, seen.told)} == {"a1"}, "the hot one"
    opened = Task("open", "o", 1, accounts=20, threads=2, seconds=0.1, rate=100)
    seen = done(Writers(arm, "o", 1, 0.0), opened)
    assert len(seen.writes) == 10
    assert seen.reads, "some writes are read"
    alone = Task("open", "p", 1, accounts=20, threads=2, seconds=0.1, rate=100, looked=0)
    assert not done(Writers(arm, "p", 1, 0.0), alone).reads
    reading = Task("reading", "r", 1, accounts=20, threads=2, seconds=0.05)
    seen = done(Writers(arm, "r", 1, 0.0), reading)
    assert seen.reads
    assert not seen.told


class Deaf:
    """Answers every second try only; nobody knows what became of the others."""

    conflicts = 0

    def __init__(self, arm: Arm) -> None:
        self._arm, self._tries = arm, Counter[str]()

    def send(self, command: Command, id: str) -> Reply:
        self._tries[id] += 1
        reply = self._arm.send(command, id)
        if self._tries[id] == 1:
            raise Unreachable("the answer was lost")
        return reply

    def read(self, stream: str) -> Document | None:
        return self._arm.read(stream)

    def documents(self) -> list[Document]:
        return self._arm.documents()

    def states(self) -> list[Document]:
        return self._arm.states()

    def close(self) -> None: ...


def test_a_lost_answer_is_asked_for_again_with_the_same_id() -> None:
    right = Deaf(Crud(SERVICE, SharedStore()))
    seen = driven(right, writers=2, resent=0.0)
    assert_green(verdicts(right, seen))
    assert sum(told.answer is None for told in seen.told) == HOT + 2 * 20
    wrong = Deaf(Naive(SERVICE, store := SharedStore(), store))
    assert "C9" in red(verdicts(wrong, driven(wrong, writers=1, resent=0.0))), (
        "each took effect twice"
    )


def test_a_latency_of_the_open_loop_runs_from_the_intended_instant() -> None:
    class Slow(Crud):
        def send(self, command: Command, id: str) -> Reply:
            time.sleep(0.02)
            return super().send(command, id)

    arm = Slow(SERVICE, SharedStore())
    of, clients = subject.of("cost"), Writers(arm, "c", 1, 0.0)
    opened = [clients.send(c, f"open-{n}", Seen()) for n, c in enumerate(of.opening(1, accounts=2))]
    assert all(opened)
    seen = clients.open(of.commands(1, accounts=2), rate=200, seconds=0.1, threads=1)
    assert len(seen.writes) == 20
    assert sorted(seen.writes) == seen.writes, "one thread falls behind, and each waits longer"
    assert seen.writes[-1] > 5 * seen.writes[0]
    assert seen.fresh, "some were read until they were seen"
    assert seen.stale == seen.never == 0
