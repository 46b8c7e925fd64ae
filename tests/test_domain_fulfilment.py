"""The process managers, in a tiny world: streams, commands under way, and a process that reads.

Hypothesis draws the interleaving: which stream handles its next command, which commit the process
reads next (each stream's in order), when a deadline comes, what the customer does in between.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given as any_of
from hypothesis import settings
from hypothesis import strategies as st
from msgspec import Struct

from labkit.errors import Refused, UsageError
from labkit.messages import MAX_ID, Command, Commit
from labkit.service import MAX_WAIT, Process, Send, command_id
from labkit.services import inventory
from labkit.services.bank import (
    AccountState,
    ConfirmSent,
    Deposit,
    MoneyReceived,
    MoneySent,
    MoneyTakenBack,
    OpenAccount,
    ReceiveMoney,
    SendMoney,
    TakeBack,
    TransferConfirmed,
)
from labkit.services.bounds import MAX_KEY
from labkit.services.fulfilment import Fulfilling, Fulfilment
from labkit.services.inventory import (
    AdjustStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    ShipStock,
)
from labkit.services.orders import (
    CancelOrder,
    CancelUnpaid,
    OrderCancelled,
    OrderPaid,
    OrderPlaced,
    PayOrder,
    PlaceOrder,
    ReturnOrder,
    ShipOrder,
)
from labkit.services.transfer import Transfer
from tests.built_in import PROCESSES, SERVICES


class Letter(Struct, frozen=True):
    """A command under way."""

    service: str
    id: str
    command: Command
    correlation: str = ""
    waits: bool = False


class World:
    """Handlers, a log and one process; every command takes effect once, as the shell sees to."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.ids = itertools.count()
        self.states: dict[tuple[str, str], Any] = {}
        self.versions: Counter[tuple[str, str]] = Counter()
        self.seen: set[tuple[str, str, str]] = set()
        self.queues: dict[tuple[str, str], list[Letter]] = {}
        self.scheduled: list[Letter] = []
        self.log: dict[tuple[str, str], list[Commit[Any]]] = {}
        self.unread: dict[tuple[str, str], list[Commit[Any]]] = {}
        self.instances: dict[str, Any] = {}
        self.sent: list[tuple[str, Send]] = []

    def send(self, service: str, command: Command, correlation: str = "") -> None:
        """A command of somebody else, with an id of its own."""
        letter = Letter(service, f"mine-{next(self.ids)}", command, correlation)
        self.queues.setdefault((service, command.stream), []).append(letter)

    def handle(self, place: tuple[str, str]) -> None:
        """The next command of a stream."""
        letter = self.queues[place].pop(0)
        if not self.queues[place]:
            del self.queues[place]
        self.decide(letter)

    def decide(self, letter: Letter) -> None:
        """As the handler does; a repeat and a scheduled command leave their commits too."""
        service = SERVICES[letter.service]
        place = (letter.service, letter.command.stream)
        version = self.versions[place]
        facts: dict[str, Any] = {
            "stream": place[1],
            "id": letter.id,
            "partition": 0,
            "offset": 0,
            "correlation": letter.correlation,
            "first": version + 1,
        }
        if letter.waits:
            self.scheduled.append(msgspec.structs.replace(letter, waits=False))
            self.note(place, Commit(outcome="scheduled", last=version, **facts))
            return
        if (*place, letter.id) in self.seen:
            self.note(place, Commit(outcome="repeated", last=version, **facts))
            return
        self.seen.add((*place, letter.id))
        try:
            letter.command.validate()
            events = service.decide[type(letter.command)](self.states.get(place), letter.command)
        except Refused as no:
            refused: Commit[Any] = Commit(outcome="refused", last=version, reason=str(no), **facts)
            self.note(place, refused)
            return
        for event in events:
            self.states[place] = service.evolve(self.states.get(place), event)
        self.versions[place] += len(events)
        self.note(
            place, Commit(outcome="accepted", last=version + len(events), events=events, **facts)
        )

    def note(self, place: tuple[str, str], commit: Commit[Any]) -> None:
        """On the wire and back, as everybody else reads it."""
        codec = SERVICES[place[0]].codec
        commit = codec.decode_commit(msgspec.json.encode(commit))
        self.log.setdefault(place, []).append(commit)
        if place[0] in self.process.sources:
            self.unread.setdefault(place, []).append(commit)

    def read(self, place: tuple[str, str]) -> None:
        """The process reads the next commit of a stream; what it keeps goes through the store."""
        commit = self.unread[place].pop(0)
        if not self.unread[place]:
            del self.unread[place]
        instance = self.process.instance(place[0], commit)
        if instance is None:
            return
        kept = self.instances.get(instance)
        before = None if kept is None else msgspec.convert(kept, self.process.state)
        state, sends = self.process.react(before, place[0], commit)
        if state is None:
            assert not sends
            return
        self.instances[instance] = msgspec.to_builtins(state)
        for send in sends:
            self.sent.append((instance, send))
            id = command_id(self.process.name, instance, send.step)
            assert len(id) <= MAX_ID
            letter = Letter(send.service, id, send.command, instance, send.after is not None)
            self.queues.setdefault((send.service, send.command.stream), []).append(letter)

    def moves(self) -> list[Callable[[], None]]:
        """All that may happen next."""
        return [
            *((lambda p=p: self.handle(p)) for p in self.queues),
            *((lambda p=p: self.read(p)) for p in self.unread),
            *((lambda n=n: self.decide(self.scheduled.pop(n))) for n in range(len(self.scheduled))),
        ]

    def run(self, data: st.DataObject, todo: list[tuple[str, Command]]) -> None:
        """Until nothing is left to do; ``todo`` is sent in its order, whenever it comes."""
        rest = list(todo)
        for _ in range(5_000):
            moves = self.moves()
            if rest:
                moves.append(lambda: self.send(*rest.pop(0)))
            if not moves:
                return
            data.draw(st.sampled_from(range(len(moves))).map(moves.__getitem__))()
        raise AssertionError("it never comes to an end")

    def state(self, instance: str) -> Any:
        return msgspec.convert(self.instances[instance], self.process.state)

    def events(self, *kinds: type) -> Iterator[Any]:
        for commits in self.log.values():
            for commit in commits:
                yield from (event for event in commit.events if isinstance(event, kinds))


# --- an order and its goods


def customer(order: str) -> st.SearchStrategy[list[tuple[str, Command]]]:
    """What may come in for one order, in any sequence after it is placed."""
    later: list[Command] = [
        PayOrder(order, 10),
        PayOrder(order, 9),
        CancelOrder(order, "changed my mind"),
        ShipOrder(order),
        ReturnOrder(order),
        CancelUnpaid(order),
    ]
    quantity = st.integers(1, 4)
    place = quantity.map(lambda q: PlaceOrder(order, "ann", "1997-01-31", q, 10))
    rest = st.lists(st.sampled_from(later), max_size=4)
    return st.tuples(place, rest).map(lambda t: [("orders", c) for c in (t[0], *t[1])])


STOCK: list[Command] = [ReceiveStock("cd", 3), AdjustStock("cd", -2, "lost")]


@settings(deadline=None, max_examples=400)
@any_of(st.data())
def test_every_order_ends_and_nothing_is_left_behind(data: st.DataObject) -> None:
    world = World(Fulfilment(60))
    names = [f"o{n}" for n in range(data.draw(st.integers(1, 3)))]
    todo = [call for name in names for call in data.draw(customer(name))]
    todo += [("inventory", c) for c in data.draw(st.lists(st.sampled_from(STOCK), max_size=3))]
    world.run(data, data.draw(st.permutations(todo)) if data.draw(st.booleans()) else todo)

    placed = {event.order_id for event in world.events(OrderPlaced)}
    assert world.instances.keys() == placed
    stock = world.states.get(("inventory", "cd")) or inventory.StockState()
    assert stock.reserved == {}, "what is set aside is shipped or given back"
    assert stock.on_hand + stock.shipped == stock.received + stock.adjusted
    assert stock.on_hand >= 0
    steps = Counter((instance, send.step) for instance, send in world.sent)
    assert set(steps.values()) <= {1}, "each step once"
    for order in placed:
        state = world.state(order)
        assert world.process.ended(state), f"{order} stands at {state}"
        real = world.states["orders", order]
        assert state.order == ("cancelled" if real.status == "cancelled" else "shipped")
        shipped = [e for e in world.events(inventory.StockShipped) if e.order_id == order]
        released = [e for e in world.events(inventory.StockReleased) if e.order_id == order]
        reserved = [e for e in world.events(inventory.StockReserved) if e.order_id == order]
        assert len(reserved) <= 1
        assert len(shipped) + len(released) == len(reserved), "one of both, once"
        assert bool(released) <= (state.order == "cancelled")
        assert bool(shipped) <= (state.order == "shipped")
        refunds = [e for e in world.events(OrderCancelled) if e.order_id == order]
        assert len(refunds) == (state.order == "cancelled")


def test_a_paid_order_with_stock_is_shipped() -> None:
    """The plain way, read as a story."""
    world = World(Fulfilment(60))
    world.send("inventory", ReceiveStock("cd", 3))
    world.send("orders", PlaceOrder("o1", "ann", "1997-01-31", 2, 10))
    drain(world)
    assert [send for _, send in world.sent] == [
        Send("inventory", ReserveStock("cd", "o1", 2), "reserve"),
        Send("orders", CancelUnpaid("o1"), "expire", after=60),
    ]
    world.send("orders", PayOrder("o1", 10))
    drain(world)
    assert [send for _, send in world.sent[2:]] == [
        Send("orders", ShipOrder("o1"), "ship"),
        Send("inventory", ShipStock("cd", "o1"), "ship-stock"),
    ]
    assert world.state("o1") == Fulfilling("cd", 2, "shipped", "gone")
    world.decide(world.scheduled.pop())
    assert "o1' is shipped" in world.log["orders", "o1"][-1].reason
    world.send("orders", ReturnOrder("o1"))
    drain(world)
    assert len(world.sent) == 4, "what comes back is for a person to look at"


def test_an_order_that_nobody_pays_is_cancelled_and_its_goods_come_back() -> None:
    world = World(Fulfilment(60))
    world.send("inventory", ReceiveStock("cd", 3))
    world.send("orders", PlaceOrder("o1", "ann", "1997-01-31", 2, 10))
    drain(world)
    world.decide(world.scheduled.pop())
    drain(world)
    assert world.states["inventory", "cd"] == inventory.StockState(3, 0, 3, 0)
    assert world.sent[-1][1] == Send("inventory", ReleaseStock("cd", "o1"), "release")
    assert [e.reason for e in world.events(OrderCancelled)] == ["not paid in time"]
    assert world.state("o1") == Fulfilling("cd", 2, "cancelled", "gone")


def test_without_stock_a_paid_order_is_cancelled_and_refunded() -> None:
    world = World(Fulfilment(60))
    world.send("orders", PlaceOrder("o1", "ann", "1997-01-31", 2, 10))
    world.send("orders", PayOrder("o1", 10))
    drain(world)
    assert [(e.reason, e.refund) for e in world.events(OrderCancelled)] == [("no stock", 10)]
    assert [send.step for _, send in world.sent] == ["reserve", "cancel"]


def test_a_cancellation_that_comes_before_the_reservation_releases_it() -> None:
    world = World(Fulfilment(60))
    world.send("inventory", ReceiveStock("cd", 3))
    world.handle(("inventory", "cd"))
    world.send("orders", PlaceOrder("o1", "ann", "1997-01-31", 2, 10))
    world.send("orders", CancelOrder("o1"))
    world.handle(("orders", "o1"))
    world.handle(("orders", "o1"))
    world.read(("orders", "o1"))
    world.read(("orders", "o1"))
    drain(world)
    assert [send.step for _, send in world.sent] == ["reserve", "release"]
    assert world.states["inventory", "cd"].reserved == {}


def test_somebody_else_releases_the_goods_of_an_order() -> None:
    """Then they cannot be shipped out of the books; the order ends all the same."""
    world = World(Fulfilment(60))
    world.send("inventory", ReceiveStock("cd", 3))
    world.send("orders", PlaceOrder("o1", "ann", "1997-01-31", 2, 10))
    drain(world)
    world.send("inventory", ReleaseStock("cd", "o1"), correlation="o1")
    world.send("orders", PayOrder("o1", 10))
    drain(world)
    assert world.state("o1") == Fulfilling("cd", 2, "shipped", "gone")


def test_what_is_put_off_or_foreign_says_nothing() -> None:
    process = Fulfilment(60)
    state = Fulfilling("cd", 2)
    id = command_id("fulfilment", "o1", "reserve")
    for outcome in ("scheduled", "parked", "repeated"):
        commit: Commit[Any] = Commit("cd", id, 0, 0, outcome, 1, 0, correlation="o1")
        assert process.react(state, "inventory", commit) == (state, ())
    foreign: Commit[Any] = Commit("cd", "x", 0, 0, "refused", 1, 0, correlation="o1")
    assert process.react(state, "inventory", foreign) == (state, ())
    assert process.react(None, "inventory", foreign) == (None, ())
    assert process.instance("inventory", Commit("cd", "x", 0, 0, "refused", 1, 0)) is None
    paid: Commit[Any] = Commit(
        "o1", "x", 0, 0, "accepted", 2, 2, (OrderPaid("o1", "ann", "1997-01-31", 10),)
    )
    assert process.react(None, "orders", paid) == (None, ()), "placed before we listened"


def test_a_dropped_first_step_is_as_good_as_refused_and_a_dropped_last_one_is_not() -> None:
    process = Fulfilment(60)

    def dropped(step: str) -> Commit[Any]:
        id = command_id("fulfilment", "o1", step)
        return Commit("cd", id, 0, 0, "dropped", 1, 0, correlation="o1")

    after, sends = process.react(Fulfilling("cd", 2), "inventory", dropped("reserve"))
    assert after == Fulfilling("cd", 2, stock="gone")
    assert [send.step for send in sends] == ["cancel"]
    held = Fulfilling("cd", 2, "cancelled", "reserved")
    assert process.react(held, "inventory", dropped("release")) == (held, ())
    assert not process.ended(held), "the goods are still set aside, and somebody has to see that"


@pytest.mark.parametrize("seconds", [-1, MAX_WAIT + 1, float("nan")])
def test_a_deadline_that_cannot_be_kept(seconds: float) -> None:
    with pytest.raises(UsageError, match=f"got {seconds}"):
        Fulfilment(seconds)


def drain(world: World) -> None:
    """Until only deadlines are left."""
    while moves := world.moves()[: len(world.queues) + len(world.unread)]:
        moves[0]()


# --- a transfer


@settings(deadline=None, max_examples=400)
@any_of(st.data())
def test_every_transfer_ends_and_the_money_stays_the_same(data: st.DataObject) -> None:
    world = World(Transfer())
    for name in "ab":
        world.send("bank", OpenAccount(name, name))
        world.send("bank", Deposit(name, 100))
    drain(world)
    account, cents = st.sampled_from("abc"), st.integers(1, 60)  # there is no account c
    # Ids are used again, by the same account and by the other one.
    ids = st.sampled_from(["t1", "t2", "t3"])
    transfers = st.lists(st.builds(SendMoney, st.sampled_from("ab"), cents, account, ids))
    world.run(data, [("bank", c) for c in data.draw(transfers)])

    accounts: list[AccountState] = list(world.states.values())
    assert sum(a.balance for a in accounts) == 200
    assert all(a.balance >= 0 and a.open == {} and a.under_way == 0 for a in accounts)
    begun = list(world.events(MoneySent))
    assert world.instances.keys() == {event.transfer_id for event in begun}
    assert all(world.process.ended(world.state(id)) for id in world.instances)
    arrived = sum(e.cents for e in world.events(MoneyReceived))
    back = sum(e.cents for e in world.events(MoneyTakenBack))
    confirmed = sum(e.cents for e in world.events(TransferConfirmed))
    assert (arrived, arrived + back) == (confirmed, sum(e.cents for e in begun))
    ends = list(world.events(MoneyTakenBack, TransferConfirmed))
    assert len(ends) == len(begun), "each is closed once"
    for id in world.instances:
        assert len([e for e in world.events(MoneyReceived) if e.transfer_id == id]) <= 1
    steps = Counter((instance, send.step) for instance, send in world.sent)
    assert set(steps.values()) <= {1}, "each step once"


@settings(deadline=None, max_examples=200)
@any_of(st.data())
def test_at_any_moment_no_money_is_missing(data: st.DataObject) -> None:
    """With what is under way: open at its source, and not counted again where it has arrived."""
    world = World(Transfer())
    for name in "ab":
        world.send("bank", OpenAccount(name, name))
        world.send("bank", Deposit(name, 100))
    drain(world)
    for n in range(4):
        world.send("bank", SendMoney("ab"[n % 2], 30, "bac"[n % 3], f"t{n}"))
    while moves := world.moves():
        data.draw(st.sampled_from(range(len(moves))).map(moves.__getitem__))()
        accounts = list(world.states.values())
        closed = {e.transfer_id for e in world.events(TransferConfirmed)}
        twice = sum(e.cents for e in world.events(MoneyReceived) if e.transfer_id not in closed)
        assert sum(a.balance + a.under_way for a in accounts) - twice == 200


def test_a_transfer_to_an_account_that_is_not_there_comes_back() -> None:
    world = World(Transfer())
    for command in (OpenAccount("a", "ann"), Deposit("a", 100), SendMoney("a", 30, "c", "t1")):
        world.send("bank", command)
    drain(world)
    assert [send for _, send in world.sent] == [
        Send("bank", ReceiveMoney("c", 30, "a", "t1"), "receive"),
        Send("bank", TakeBack("a", 30, "t1"), "take-back"),
    ]
    assert world.states["bank", "a"] == AccountState("ann", 100)
    assert world.state("t1").status == "taken back"


def test_a_transfer_id_is_used_once_in_the_whole_bank() -> None:
    world = World(Transfer())
    for name in "ab":
        world.send("bank", OpenAccount(name, name))
        world.send("bank", Deposit(name, 100))
    world.send("bank", SendMoney("a", 30, "b", "t1"))
    drain(world)
    world.send("bank", SendMoney("b", 5, "a", "t1"))
    world.send("bank", SendMoney("a", 6, "b", "t1"))
    drain(world)
    sent = [send for _, send in world.sent]
    assert sent[:2] == [
        Send("bank", ReceiveMoney("b", 30, "a", "t1"), "receive"),
        Send("bank", ConfirmSent("a", "t1"), "confirm"),
    ]
    assert {send.step: send.command for send in sent[2:]} == {
        "again-a-5": TakeBack("a", 6, "t1"),
        "again-b-4": TakeBack("b", 5, "t1"),
    }
    assert world.states["bank", "a"].balance == 70
    assert world.states["bank", "b"].balance == 130


def test_the_longest_ids_make_a_command_id_that_fits() -> None:
    long = "x" * MAX_KEY
    again = command_id("transfer", long, f"again-{long}-{2**63}")
    expire = command_id("fulfilment", long, "ship-stock")
    assert max(len(again), len(expire)) <= MAX_ID


def test_the_table_of_processes() -> None:
    assert {name: process.sources for name, process in PROCESSES.items()} == {
        "fulfilment": ("orders", "inventory"),
        "transfer": ("bank",),
    }
    for process in PROCESSES.values():
        assert set(process.sources) <= SERVICES.keys()
