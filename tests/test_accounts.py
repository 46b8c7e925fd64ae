"""The accounts against the domain: two tellings of the same rules, on any sequence of commands."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as any_of
from hypothesis import settings
from hypothesis import strategies as st

from labkit.errors import Refused
from labkit.experiments.verify.checkers import check_all
from labkit.experiments.verify.history import History
from labkit.lab import Lab
from labkit.messages import Command, Commit
from labkit.ports.store import Document
from labkit.read.projection import ServiceProjection
from labkit.read.unit_of_work import UnitOfWork
from labkit.service import Service
from labkit.services import bank, inventory, orders

SERVICES = {s.name: s for s in (orders.ORDERS, inventory.INVENTORY, bank.BANK)}


def model_of(service: Service) -> Any:
    assert service.model is not None
    return service.model


S = st.sampled_from
ID = S(["x", "y", "", "z" * 65, "x\0"])
NUMBER = S([1, 2, 3, 9, 10, 100, 0, -1, -2, 10**6, 10**6 + 1, 10**12, 10**12 + 1, 2**63])
DAY = S(["1998-06-30", "1998-07-01", "1998-07-31", "1998-08-01", "9999-12-31", "", "1998-7-1"])
OTHERS = st.one_of(S(["x", "y"]), ID)
STREAM = st.just("s")
ORDERS = st.one_of(
    st.builds(orders.PlaceOrder, STREAM, ID, DAY, NUMBER, NUMBER, S(["cd", ""])),
    st.builds(
        orders.PlaceOrder, STREAM, st.just("ann"), DAY, S([9, 10]), S([0, 100, 109]), st.just("cd")
    ),
    st.builds(orders.PayOrder, STREAM, S([0, 90, 98, 99, 100, 109])),
    st.builds(orders.ShipOrder, STREAM),
    st.builds(orders.CancelOrder, STREAM),
    st.builds(orders.CancelUnpaid, STREAM),
    st.builds(orders.ReturnOrder, STREAM, st.just(""), DAY),
)
INVENTORY = st.one_of(
    st.builds(inventory.ReceiveStock, STREAM, NUMBER),
    st.builds(inventory.ReserveStock, STREAM, OTHERS, NUMBER),
    st.builds(inventory.ReleaseStock, STREAM, OTHERS),
    st.builds(inventory.ShipStock, STREAM, OTHERS),
    st.builds(inventory.AdjustStock, STREAM, NUMBER, S(["count", ""])),
)
BANK = st.one_of(
    st.builds(bank.OpenAccount, STREAM, ID),
    st.builds(bank.Deposit, STREAM, NUMBER),
    st.builds(bank.Withdraw, STREAM, NUMBER),
    st.builds(bank.SendMoney, STREAM, NUMBER, S(["a", "s", ""]), OTHERS),
    st.builds(bank.ReceiveMoney, STREAM, NUMBER, S(["a", "s", ""]), OTHERS),
    st.builds(bank.ConfirmSent, STREAM, OTHERS),
    st.builds(bank.TakeBack, STREAM, NUMBER, OTHERS),
)
#: So that most sequences get somewhere.
BEGIN: dict[str, list[Command]] = {
    "orders": [],
    "inventory": [inventory.ReceiveStock("s", 10)],
    "bank": [bank.OpenAccount("s", "ann"), bank.Deposit("s", 100)],
}


class Side:
    """One stream as the domain decides, as the account tells it, and as the view shows it."""

    def __init__(self, service: str) -> None:
        self.service = SERVICES[service]
        self.account = model_of(self.service)
        self.projection = ServiceProjection(self.service)
        self.docs = UnitOfWork(None)  # type: ignore[arg-type]  # nothing is loaded
        self.state: Any = None
        self.books: Document | None = None
        self.version = 0

    def send(self, command: Command) -> bool:
        """Whether it was accepted; both sides must say the same."""
        before, told = self.books, repr(self.books)
        after = self.account.apply(before, command)
        assert repr(before) == told, "an account changes no old state"
        try:
            command.validate()
            events = self.service.decide[type(command)](self.state, command)
        except Refused:
            assert after is None
            return False
        assert after is not None, f"the account refuses {command}"
        first = self.version + 1
        for event in events:
            self.state = self.service.evolve(self.state, event)
            self.version += 1
        commit: Commit[Any] = Commit("s", f"{first}", 0, 0, "accepted", first, self.version, events)
        self.projection.apply(commit, self.docs, 0, 0)
        document = self.docs[self.projection.streams].get("s")
        assert document is not None
        document["version"] = self.version
        self.books = after
        assert self.account.shown(document) == after
        return True

    def differences(self) -> list[str]:
        """What the account finds wrong in the view."""
        views: dict[str, list[Document]] = {name: [] for name in self.projection.indexes}
        views |= self.docs.writes().inserts
        found: list[str] = self.account.compare({"s": self.books} if self.books else {}, views)
        return found


@pytest.mark.parametrize(
    ("service", "command"), [("orders", ORDERS), ("inventory", INVENTORY), ("bank", BANK)]
)
@settings(deadline=None, max_examples=300)
@any_of(data=st.data())
def test_account_domain_and_view_agree(
    service: str, command: st.SearchStrategy[Command], data: st.DataObject
) -> None:
    side = Side(service)
    for each in [*BEGIN[service], *data.draw(st.lists(command, max_size=30))]:
        side.send(each)
    assert side.differences() == []


def test_the_new_rules_of_orders_agree() -> None:
    for day, back in (("1998-06-30", ""), ("1998-07-01", "1998-07-31")):
        for cents in (109, 99, 98, 9, 0):
            side = Side("orders")
            assert side.send(orders.PlaceOrder("s", "ann", day, 10, cents))
            assert side.send(orders.PayOrder("s", side.state.cents))
            assert side.send(orders.ShipOrder("s"))
            assert not side.send(orders.ReturnOrder("s", day="1998")), "no day"
            assert side.send(orders.ReturnOrder("s", day=back))
            assert side.differences() == []


def test_an_account_sees_what_is_wrong_in_a_view() -> None:
    side = Side("bank")
    for command in (*BEGIN["bank"], bank.Withdraw("s", 40)):
        assert side.send(command)
    entry = side.docs["bank.view.transactions"].get("s:3")
    assert entry is not None
    entry["cents"] = 41
    assert side.differences() == [
        "transaction 's:3' shows 60, not 59",
        "the transactions of account 's': the model says 60, the view 59",
    ]
    side = Side("inventory")
    assert side.send(BEGIN["inventory"][0])
    stock = side.docs["inventory.view.stock"].get("s")
    assert stock is not None
    stock["on_hand"] = 9
    (difference,) = side.differences()
    assert difference.startswith("product 's': the model says {'on_hand': 10")
    side = Side("inventory")
    assert side.send(BEGIN["inventory"][0])
    assert side.send(inventory.ReserveStock("s", "o1", 3))
    held = side.docs["inventory.view.held"].get("o1\0s")
    assert held is not None
    held["status"] = "shipped"
    assert side.differences() == ["what orders hold of product 's': the model says 3, the view 0"]


@pytest.mark.parametrize("service", SERVICES)
def test_an_account_takes_no_strange_command(service: str) -> None:
    with pytest.raises(TypeError, match="no account is kept"):
        model_of(SERVICES[service]).apply(None, Command())


def test_a_long_stream_may_have_many_open_amounts() -> None:
    account = model_of(bank.BANK)
    state = account.apply(None, bank.OpenAccount("s", "ann"))
    state = account.apply(state, bank.Deposit("s", 10**6))
    for n in range(10_000):
        state = account.apply(state, bank.SendMoney("s", 1, "b", f"t{n}"))
        assert state is not None
    assert account.apply(state, bank.SendMoney("s", 1, "b", "t")) is None, "no more fit"
    for n in range(10_000):
        state = account.apply(state, bank.ConfirmSent("s", f"t{n}"))
        assert state is not None
    assert state == {"owner": "ann", "balance": 990_000, "open": 0, "version": 20_002}


@pytest.mark.parametrize("service", ["inventory", "bank"])
def test_a_run_is_judged_by_its_account(service: str) -> None:
    held = [f"{n}.$" for n in range(20)]  # what MongoDB minds as the key of a document
    commands: dict[str, list[Command]] = {
        "inventory": [
            inventory.ReceiveStock("cd", 50),
            *(inventory.ReserveStock("cd", order, 3) for order in held),
            *(inventory.ShipStock("cd", order) for order in held[:9]),
            inventory.ReleaseStock("cd", held[9]),
            inventory.AdjustStock("cd", -1, "lost"),
        ],
        "bank": [
            bank.OpenAccount("a", "ann"),
            bank.Deposit("a", 100),
            *(bank.SendMoney("a", 7, "b", transfer) for transfer in held),
            *(bank.ConfirmSent("a", transfer) for transfer in held[:9]),
            bank.TakeBack("a", 7, held[9]),
            bank.Withdraw("a", 1),
        ],
    }
    with Lab(backend="memory", services=(service,)) as lab:
        lab.start()
        history = History(lab.bus)
        for command in commands[service]:
            assert history.execute(command).status == "ok"
        lab.stop()
        while lab.by_hand("projector", service).step(0):
            pass
        lab.by_hand("handler", service).flush()
        verdicts = check_all(lab, history, service)
        if service == "bank":  # whoever confirms what never arrived has lost it
            assert verdicts.pop("C8").found == 10  # and the sum
        assert not {n: v.violations for n, v in verdicts.items() if not v.ok}
        answers = [o.answer.outcome for o in history if o.answer]
        assert set(answers) == {"accepted", "refused"}
