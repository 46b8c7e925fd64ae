"""Each checker is green on a healthy run, and turns red on a bug that is planted for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
from msgspec import structs

from labkit.adapters.memory import MemoryLog
from labkit.errors import DecodeError, Fenced, Refused, UsageError
from labkit.experiments.verify.checkers import (
    Evidence,
    History,
    Operation,
    Verdict,
    check_all,
    check_run,
    duplicates,
    gather,
    lost_writes,
    versions,
    views,
)
from labkit.experiments.verify.verdict import NAMED
from labkit.lab import Lab
from labkit.messages import Answer, Command, Commit, Token, encode
from labkit.ports import failpoints
from labkit.ports.broker import Batch, Record
from labkit.ports.failpoints import Failpoint
from labkit.ports.store import Checkpoint, Writes
from labkit.run.worker import Worker
from labkit.services import orders
from labkit.services.orders import CancelOrder, PayOrder, PlaceOrder, ReturnOrder, ShipOrder
from labkit.testing import fold
from labkit.write import decisions
from labkit.write.decisions import Arrival
from labkit.write.handler import Handler
from labkit.write.states import States

DAY = "1997-01-31"
Call = tuple[str, Command, int | None]


def mixed(seed: int, count: int, streams: int = 20, prefix: str = "") -> list[Call]:
    """Calls (command id, command, expected version): most of them sensible, some refused, some
    repeated with the id that they had before."""
    rng = Random(seed)
    calls: list[Call] = []
    for n in range(count):
        if calls and rng.random() < 0.12:
            calls.append(rng.choice(calls[-40:]))
            continue
        number = rng.randrange(streams)
        order, cents = f"{prefix}o{number}", number * 137 % 5_000
        day = f"1997-{number % 12 + 1:02}-05"
        place = PlaceOrder(order, f"c{number % 7}", day, number % 3 + 1, cents)
        choices: list[Command] = [
            place,
            place,
            PayOrder(order, cents),
            PayOrder(order, cents),
            ShipOrder(order),
            CancelOrder(order),
            ReturnOrder(order),
            PayOrder(order, cents + 1),
            PlaceOrder(order, "", day, 1, cents),
        ]
        command = rng.choices(choices, weights=[6, 6, 6, 6, 6, 2, 4, 1, 1])[0]
        expected = rng.choice([0, 1, 2]) if rng.random() < 0.15 else None
        calls.append((f"{prefix}{seed}-{n}", command, expected))
    return calls


def send(history: History, calls: Sequence[Call]) -> None:
    for id, command, expected in calls:
        history.send(command, id=id, expected_version=expected)


def quiet(lab: Lab) -> None:
    """In memory: step until nothing is left to do, and save what is dirty."""
    for _ in range(3):
        lab.handler.step(0)
        lab.projector.step(0)
    lab.handler.flush()


def red(verdicts: dict[str, Verdict]) -> set[str]:
    judged = {name: v for name, v in verdicts.items() if v.ok is not None}
    assert all(v.ok == (v.found == 0) for v in judged.values())
    assert all(v.found == 0 or v.violations for v in judged.values()), "a verdict names what"
    assert all(v.found == 0 and v.why for v in verdicts.values() if v.ok is None)
    return {name for name, verdict in judged.items() if not verdict.ok}


def assert_green(verdicts: dict[str, Verdict]) -> None:
    assert not red(verdicts), {n: v.violations[:5] for n, v in verdicts.items() if not v.ok}
    assert all(v.checked for v in verdicts.values()), "a checker that looked at nothing"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=("orders",)) as made:
        yield made


def run(lab: Lab, calls: Sequence[Call] = (), batch: int = 40) -> History:
    """A client that sends, the parts that work, and the client that hears."""
    history = History(lab.bus)
    calls = calls or mixed(1, 300)
    for start in range(0, len(calls), batch):
        send(history, calls[start : start + batch])
        quiet(lab)
        history.settle(timeout=0.01)
    return history


# --- healthy


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_lab_is_green(lab: Lab, seed: int) -> None:
    history = run(lab, mixed(seed, 300))
    verdicts = check_all(lab, history)
    assert_green(verdicts)
    outcomes = {o.answer.outcome for o in history if o.answer}
    assert outcomes == {"accepted", "refused"}
    assert "repeated" in {c.outcome for c in lab.log().commits()}
    assert verdicts["C9"].checked > len(history)


def test_in_memory_whoever_waits_steps_the_parts(lab: Lab) -> None:
    lab.start()
    history = History(lab.bus)
    for id, command, expected in mixed(2, 60):
        assert history.execute(command, id=id, expected_version=expected).status == "ok"
    lab.stop()
    quiet(lab)
    assert_green(check_all(lab, history))


def test_only_operations_of_the_context_are_judged() -> None:
    from labkit.services.catalog import ListProduct

    with Lab(backend="memory") as lab:
        history = run(lab, mixed(3, 50))
        history.send(ListProduct("cd", "CD", 1))  # nobody handles the catalog here
        assert_green(check_all(lab, history))
        with pytest.raises(UsageError, match="'inventory'"):
            check_all(lab, history, "inventory")


def test_without_a_model_the_views_are_neither_right_nor_wrong() -> None:
    from labkit.services.catalog import ListProduct

    with Lab(backend="memory", services=("catalog", "orders")) as lab:
        history = run(lab, [("p", ListProduct("cd", "CD", 1), None)])
        found = check_all(lab, history)
        assert found["C9"] == Verdict(None, 0, [], 0, "service 'catalog' has no reference model")
        assert red(found) == set()
        evidence = {name: gather(lab, name) for name in lab.services}
        assert check_run(lab, history, evidence)["C9"].ok is None, "never green"
        lab.store._collections["orders.view.orders"]["o1"] = {"_id": "o1", "version": 1}  # type: ignore[attr-defined]
        evidence = {name: gather(lab, name) for name in lab.services}
        assert check_run(lab, history, evidence)["C9"].ok is False, "what is wrong stays wrong"


# --- what may have happened


def test_an_operation_without_an_answer_may_have_happened_or_not(lab: Lab) -> None:
    history = History(lab.bus)
    send(history, [("a", PlaceOrder("o1", "ann", DAY, 1, 5), None)])
    quiet(lab)
    history.settle(0.01)
    assert [o.status for o in history] == ["ok"]
    history.invoke(PayOrder("o1", 5), id="b").unknown("the client lost its link")
    assert_green(check_all(lab, history))  # it has not
    lab.bus.send(PayOrder("o1", 5), id="b")
    quiet(lab)
    assert_green(check_all(lab, history))  # it has
    history.operations.pop()
    assert red(check_all(lab, history)) == {"C9"}  # and nobody ever asked for it


def test_what_no_client_could_have_asked_for_is_found(lab: Lab) -> None:
    history = History(lab.bus)
    lab.bus.send(PlaceOrder("o1", "ann", DAY, 1, 5), id="a")
    lab.bus.send(PayOrder("o1", 5), id="b")
    lab.bus.send(ShipOrder("o1"), id="c")
    quiet(lab)
    for command, id in ((PayOrder("o1", 5), "b"), (PlaceOrder("o1", "ann", DAY, 1, 5), "a")):
        history.invoke(command, id=id).unknown("no answer")
    assert red(check_all(lab, history)) == {"C9"}
    history.invoke(CancelOrder("o1"), id="x").unknown("no answer")
    assert red(check_all(lab, history)) == {"C9"}, "cancelled and shipped are not the same"
    history.invoke(ShipOrder("o1"), id="c").unknown("no answer")
    assert_green(check_all(lab, history))


def test_a_failed_operation_must_not_show(lab: Lab) -> None:
    history = History(lab.bus)
    lab.bus.send(PlaceOrder("o1", "ann", DAY, 1, 5), id="a")
    quiet(lab)
    operation = history.invoke(PlaceOrder("o1", "ann", DAY, 1, 5), id="a")
    operation.unknown("no answer")
    assert_green(check_all(lab, history))
    operation.failed("never sent")
    assert red(check_all(lab, history)) == {"C9"}


def test_no_answer_in_time_is_unknown_and_a_command_nobody_takes_has_failed(lab: Lab) -> None:
    history = History(lab.bus)
    assert history.execute(ShipOrder("o1"), timeout=0.01).status == "unknown"
    with pytest.raises(UsageError):
        history.send(Command())
    assert [o.status for o in history] == ["unknown", "failed"]
    with pytest.raises(UsageError, match="has no bus"):
        History().send(ShipOrder("o1"))


# --- planted bugs

DECIDE: Any = orders.ORDERS.decide
Plant = Callable[[pytest.MonkeyPatch], None]


def plant_handler(patch: pytest.MonkeyPatch, handler: type[Handler]) -> None:
    patch.setattr("labkit.run.wiring.Handler", handler)


def plant_decision(patch: pytest.MonkeyPatch, wrong: Callable[[Any, Arrival], Any]) -> None:
    """``wrong`` is given the right decision, as a function, and what it is about."""
    right = decisions._decide
    patch.setattr(
        decisions,
        "_decide",
        lambda arrival, clock: wrong(lambda arrival: right(arrival, clock), arrival),
    )


def no_duplicate_check(patch: pytest.MonkeyPatch) -> None:
    def forgetful(decide: Any, arrival: Arrival) -> Commit[Any]:
        arrival.stream.seen.clear()
        return decide(arrival)  # type: ignore[no-any-return]

    plant_decision(patch, forgetful)


def repeats_get_another_answer(patch: pytest.MonkeyPatch) -> None:
    def careless(decide: Any, arrival: Arrival) -> Commit[Any]:
        commit: Commit[Any] = decide(arrival)
        if commit.repeats is None:
            return commit
        return structs.replace(commit, repeats=Answer("refused", 0, "seen"))

    plant_decision(patch, careless)


def a_command_is_lost(patch: pytest.MonkeyPatch) -> None:
    """Its offset is moved, its commit is not written."""
    commit = MemoryLog.commit

    def lossy(self: MemoryLog, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        return commit(self, batch, commits[:-1])

    patch.setattr(MemoryLog, "commit", lossy)


def a_version_is_skipped(patch: pytest.MonkeyPatch) -> None:
    def jumpy(decide: Any, arrival: Arrival) -> Commit[Any]:
        commit: Commit[Any] = decide(arrival)
        if commit.outcome == "accepted" and commit.first == 2:
            return structs.replace(commit, first=3, last=3)
        return commit

    plant_decision(patch, jumpy)


def expected_versions_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    def trusting(decide: Any, arrival: Arrival) -> Commit[Any]:
        record = arrival.record
        command = arrival.service.codec.decode_command(record.value)
        value = encode(structs.replace(command, expected_version=None))
        record = Record(record.partition, record.offset, record.key, value)
        return decide(structs.replace(arrival, record=record))  # type: ignore[no-any-return]

    plant_decision(patch, trusting)


def states_are_saved_without_their_streams(patch: pytest.MonkeyPatch) -> None:
    flush = States.flush

    def lazy(self: States) -> None:
        self.dirty.clear()
        flush(self)

    patch.setattr(States, "flush", lazy)


def a_rule_is_broken(patch: pytest.MonkeyPatch) -> None:
    """What is not paid is shipped."""

    def ship(order: orders.OrderState | None, c: ShipOrder) -> tuple[Any, ...]:
        if order is None or order.status != "placed":
            raise Refused("no")
        return (orders.OrderShipped(c.order_id, order.customer_id, order.day, order.cents),)

    patch.setitem(DECIDE, ShipOrder, ship)


def a_rule_refuses_for_no_reason(patch: pytest.MonkeyPatch) -> None:
    def pay(order: orders.OrderState | None, c: PayOrder) -> tuple[Any, ...]:
        raise Refused("not today")

    patch.setitem(DECIDE, PayOrder, pay)


def a_view_adds_twice(patch: pytest.MonkeyPatch) -> None:
    for view in (orders.Customers, orders.Months):
        change = view.change

        def twice(self: Any, *args: Any, change: Any = change) -> None:
            change(self, *args)
            change(self, *args)

        patch.setattr(view, "change", twice)


def a_view_forgets_the_refund(patch: pytest.MonkeyPatch) -> None:
    apply = orders.Orders.apply

    def forgetful(self: orders.Orders, document: Any, event: Any) -> Any:
        order = apply(self, document, event)
        return order | {"payment": ""} if order["payment"] == "refunded" else order

    patch.setattr(orders.Orders, "apply", forgetful)


PLANTED: list[tuple[Plant, set[str]]] = [
    (no_duplicate_check, {"C2", "C9"}),
    (repeats_get_another_answer, {"C2", "C9"}),
    (a_command_is_lost, {"C1", "C6", "C9"}),
    (a_version_is_skipped, {"C1", "C6", "C9"}),
    (expected_versions_are_not_checked, {"C6"}),
    (states_are_saved_without_their_streams, {"C1"}),
    (a_rule_is_broken, {"C9"}),
    (a_rule_refuses_for_no_reason, {"C9"}),
    (a_view_adds_twice, {"C9"}),
    (a_view_forgets_the_refund, {"C9"}),
]


@pytest.mark.parametrize(("plant", "expected"), PLANTED, ids=[p.__name__ for p, _ in PLANTED])
def test_a_planted_bug_turns_its_checkers_red(
    plant: Plant, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with Lab(backend="memory", services=("orders",)) as lab:
        assert red(check_all(lab, run(lab))) == expected


class Skipping(Handler):
    """What is no command of its schema is passed over, as if it had never been sent."""

    def _gather(self, timeout: float) -> Batch:
        batch = super()._gather(timeout)
        batch.records = [record for record in batch.records if self._knows(record)]
        return batch

    def _knows(self, record: Record) -> bool:
        try:
            self.service.codec.decode_command(record.value)
        except DecodeError:
            return False
        return True


@pytest.mark.parametrize(("handler", "expected"), [(Handler, set()), (Skipping, {"C1"})])
def test_what_is_no_command_must_have_its_commit_too(
    handler: type[Handler], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_handler(monkeypatch, handler)
    with Lab(backend="memory", services=("orders",)) as lab:
        history = run(lab, mixed(1, 50))
        topic = lab.topic_name("orders.commands")
        place = lab.log_broker.sender().send(topic, b"own", b"\xff\x00 not JSON").result(0)
        history.raw += [Token("orders", *place), Token("bank", 7, 7)]  # the other is not of here
        quiet(lab)
        verdicts = check_all(lab, history)
        assert red(verdicts) == expected
        assert not expected or f"at {[*place]} and has no commit" in verdicts["C1"].violations[0]


class Stopped(BaseException):
    """The projector died between two writes."""


class Torn:
    """A store whose transactions are torn once: ``first`` is written, then the worker dies."""

    def __init__(self, store: Any, first: str) -> None:
        self._store = store
        self._first = first
        self._torn = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        if self._torn or not writes.inserts:
            self._store.advance(checkpoints, moves, writes)
            return
        self._torn = True
        if self._first == "writes":
            self._store.advance(checkpoints, [], writes)
        else:
            self._store.advance(checkpoints, moves, Writes())
        raise Stopped


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        # The view misses what the checkpoint has passed.
        ("checkpoint", {"C1", "C9"}),
        # The version check keeps the view right, but it must not be needed: it is counted.
        ("writes", {"C1"}),
    ],
)
def test_a_checkpoint_apart_from_its_writes(lab: Lab, first: str, expected: set[str]) -> None:
    history = History(lab.bus)
    send(history, mixed(1, 100))
    lab.handler.step(0)
    lab.projector._store = Torn(lab.store, first)
    with pytest.raises(Stopped):
        lab.projector.step(0)
    lab.projector.close()
    lab._by_hand._parts.pop(("projector", "orders"))
    quiet(lab)
    history.settle(0.01)
    assert red(check_all(lab, history)) == expected


@pytest.mark.parametrize("fenced", [True, False])
def test_a_zombie_that_passes_the_first_fence_is_a_lost_write(
    lab: Lab, fenced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two handlers decide on the same commands; the second fence is the readers'."""
    history = History(lab.bus)
    send(history, mixed(1, 100))
    zombie = lab.parts.make(Worker("handler", "orders", 1))
    zombie.join(lab.partitions)

    def move_on(at: Failpoint) -> None:
        """The zombie has decided and is paused; the group gives its partitions to another."""
        if at is Failpoint.HANDLER_DECIDED:
            monkeypatch.setattr(failpoints, "_action", None)
            zombie._log.close()
            lab.handler.step(0)
            if not fenced:
                bare = lab.broker.group(zombie._log._topic, lab.of.group("handler", "orders"))  # type: ignore[attr-defined]
                zombie._log._group_of = lambda generation: bare

    monkeypatch.setattr(failpoints, "_action", move_on)
    if fenced:
        with pytest.raises(Fenced):
            zombie.step(0)
        lab.broker.expire()  # type: ignore[attr-defined]  # its transaction has timed out
    else:
        zombie.step(0)
    quiet(lab)
    history.settle(0.01)
    verdicts = check_all(lab, history)
    if fenced:
        assert_green(verdicts)
    else:
        # The readers ignored it, so nothing is there twice; but somebody was told 'accepted'.
        assert red(verdicts) == {"C1", "C6"}
        assert lab.ignored_commits() > 0


# --- each rule by itself: what the clients were told, or the log, is changed by hand

Forge = Callable[[list[Operation], Evidence], None]


def another_reason(operations: list[Operation], evidence: Evidence) -> None:
    operations[0].answer = Answer("accepted", 1, "because")


def only_this_client_was_told_so(operations: list[Operation], evidence: Evidence) -> None:
    repeat = structs.replace(operations[0], answer=Answer("refused", 1, "it exists"))
    operations.append(repeat)


def a_repeat_in_the_log(operations: list[Operation], evidence: Evidence) -> None:
    wrong = Answer("refused", 1, "it exists")
    evidence.chain.append(structs.replace(evidence.chain[0], outcome="repeated", repeats=wrong))


def a_repeat_of_nothing(operations: list[Operation], evidence: Evidence) -> None:
    first = Answer("accepted", 1)
    commit = structs.replace(evidence.chain[0], id="new", outcome="repeated", repeats=first)
    evidence.chain.append(commit)


def decided_twice(operations: list[Operation], evidence: Evidence) -> None:
    evidence.chain.append(structs.replace(evidence.chain[0]))


def more_versions_than_events(operations: list[Operation], evidence: Evidence) -> None:
    evidence.commits[0] = structs.replace(evidence.commits[0], events=())


def two_winners(operations: list[Operation], evidence: Evidence) -> None:
    for id in ("x", "y"):
        answer = Answer("accepted", 2)
        operations.append(Operation(id, PayOrder("o1", 5), 1, "ok", None, answer))


def one_version_told_to_two(operations: list[Operation], evidence: Evidence) -> None:
    operations[1].answer = Answer("accepted", 1)


def refused_at_a_version_that_never_was(operations: list[Operation], evidence: Evidence) -> None:
    operations[1].answer = Answer("refused", 7, "too late")
    evidence.views["orders.view.orders"][0] |= {"version": 1, "payment": "unpaid"}


def refused_without_a_reason(operations: list[Operation], evidence: Evidence) -> None:
    operations[1].answer = Answer("refused", 1, "")
    evidence.views["orders.view.orders"][0] |= {"version": 1, "payment": "unpaid"}


def an_ignored_commit(operations: list[Operation], evidence: Evidence) -> None:
    evidence.misfits.append((evidence.commits[0], 3))


def counted_by_a_reader(operations: list[Operation], evidence: Evidence) -> None:
    evidence.checkpoints[0] = structs.replace(evidence.checkpoints[0], ignored=1)


def a_view_that_says_less_than_it_shows(operations: list[Operation], evidence: Evidence) -> None:
    """Whoever waits for a token waits for ever."""
    evidence.checkpoints = [structs.replace(c, command=-1) for c in evidence.checkpoints]


def an_order_that_nobody_placed(operations: list[Operation], evidence: Evidence) -> None:
    documents = evidence.views["orders.view.orders"]
    documents.append({**documents[0], "_id": "o9"})


def a_customer_too_many(operations: list[Operation], evidence: Evidence) -> None:
    documents = evidence.views["orders.view.customers"]
    documents.append({**documents[0], "_id": "x", "customer": "bob"})


def a_cent_too_much(operations: list[Operation], evidence: Evidence) -> None:
    evidence.views["orders.view.months"][0]["cents"] += 1


FORGED: list[tuple[Forge, Any, str]] = [
    (another_reason, lost_writes, "its commit says"),
    (an_ignored_commit, lost_writes, "readers ignore its commit"),
    (counted_by_a_reader, lost_writes, "readers ignored 1 commits, 0 do not fit"),
    (a_view_that_says_less_than_it_shows, lost_writes, "says command -1, it is 1"),
    (only_this_client_was_told_so, duplicates, "was told"),
    (only_this_client_was_told_so, views, "got two answers"),
    (a_repeat_in_the_log, duplicates, "answered unlike the first"),
    (a_repeat_of_nothing, duplicates, "answered unlike the first"),
    (decided_twice, duplicates, "decided twice"),
    (more_versions_than_events, versions, "0 events take the versions 1 to 1"),
    (an_ignored_commit, versions, "starts at version 1, after 3"),
    (two_winners, versions, "made version 2"),
    (one_version_told_to_two, views, "was told to two commands"),
    (refused_at_a_version_that_never_was, views, "which never was"),
    (refused_without_a_reason, views, "refused without a reason"),
    (an_order_that_nobody_placed, views, "order 'o9': the model says None"),
    (a_customer_too_many, views, "customer 'bob': the model says None"),
    (a_cent_too_much, views, "month '1997-01'"),
]


@pytest.mark.parametrize(
    ("forge", "checker", "violation"),
    FORGED,
    ids=[f"{forge.__name__}-{checker.__name__}" for forge, checker, _ in FORGED],
)
def test_each_rule_of_a_checker(lab: Lab, forge: Forge, checker: Any, violation: str) -> None:
    calls: list[Call] = [
        ("a", PlaceOrder("o1", "ann", DAY, 1, 5), None),
        ("b", PayOrder("o1", 5), None),
    ]
    operations = run(lab, calls).operations
    evidence = gather(lab)
    assert checker(operations, evidence).ok
    forge(operations, evidence)
    verdict = checker(operations, evidence)
    assert not verdict.ok
    assert any(violation in line for line in verdict.violations), verdict.violations


def test_an_answer_that_never_was(lab: Lab) -> None:
    history = run(lab)
    operation = next(o for o in history if o.answer and not o.answer.accepted)
    operation.answer = Answer("accepted", 9)
    assert red(check_all(lab, history)) >= {"C1", "C9"}


def test_what_is_still_under_way_is_not_quiet(lab: Lab) -> None:
    history = run(lab)
    send(history, mixed(9, 5))
    assert "C1" in red(check_all(lab, history))
    lab.handler.step(0)
    history.settle(0.01)
    assert "C1" in red(check_all(lab, history))
    quiet(lab)
    assert_green(check_all(lab, history))


def test_a_verdict_names_some_and_counts_all() -> None:
    with Lab(backend="memory", services=("orders",)) as lab:
        history = History(lab.bus)
        send(history, [(f"{n}", PlaceOrder(f"o{n}", "ann", DAY, 1, 5), None) for n in range(150)])
        history.settle(0)
        verdict = check_all(lab, history)["C1"]
        assert len(verdict.violations) == NAMED
        assert verdict.found > 150


# --- the account against the domain: two tellings of the same rules


@pytest.mark.parametrize("seed", range(20))
def test_the_account_and_the_domain_agree(seed: int) -> None:
    service = orders.ORDERS
    account = orders.OrdersModel()
    pasts: dict[str, list[Any]] = {}
    kept: dict[str, Any] = {}
    for _, command, _ in mixed(seed, 200, streams=8):
        past = pasts.setdefault(command.stream, [])
        after = account.apply(kept.get(command.stream), command)
        try:
            command.validate()
            past.extend(service.decide[type(command)](fold(service, *past), command))
        except Refused:
            assert after is None
            continue
        assert after is not None
        kept[command.stream] = after
        state = fold(service, *past)
        assert (after["status"], after["payment"]) == (state.status, state.payment)
        assert after["version"] == len(past)


def test_an_account_takes_no_strange_command() -> None:
    with pytest.raises(TypeError, match="no account is kept"):
        orders.OrdersModel().apply(None, Command())
