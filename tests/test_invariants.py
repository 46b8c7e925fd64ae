"""C3, C7, C8 and C11: green on a healthy run, red on the bug that is planted for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from labkit.experiments.verify.checkers import check_run, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.verdict import Verdict
from labkit.experiments.verify.write import adopt_commands
from labkit.lab import Lab
from labkit.ports.failpoints import Failpoint
from labkit.ports.ids import new_id
from labkit.process import process_manager
from labkit.services import bank, inventory
from labkit.services.bank import Deposit, OpenAccount, SendMoney, Withdraw
from labkit.services.inventory import ReceiveStock, ReserveStock
from labkit.services.orders import CancelOrder, PayOrder, PlaceOrder
from labkit.services.transfer import Transfer

SERVICES = ("orders", "inventory", "bank")
DAY = "1997-01-31"
COMMANDS: list[Any] = [
    ReceiveStock("cd", 10),
    *(PlaceOrder(f"o{n}", "ann", DAY, 3, 100, "cd") for n in range(4)),  # the fourth gets nothing
    *(PayOrder(f"o{n}", 100) for n in range(2)),
    CancelOrder("o2"),
    *(OpenAccount(account, "ann") for account in ("a", "b")),
    Deposit("a", 100),
    *(SendMoney("a", 10, to, f"t{n}") for n, to in enumerate(("b", "b", "nobody"))),
    Withdraw("a", 5),
    Withdraw("a", 5_000),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    settings = {"services": SERVICES, "processes": ("fulfilment", "transfer")}
    with Lab(backend="memory", **settings) as made:  # type: ignore[arg-type]
        yield made


def run(lab: Lab) -> History:
    """Send everything and let everybody work until nobody has anything to do."""
    history = History(lab.bus)
    history.listen(*SERVICES)
    for command in COMMANDS:
        history.send(command)
        settle(lab, history)
    for service in SERVICES:
        lab.by_hand("handler", service).flush()
    adopt_commands(lab, history, SERVICES)
    return history


def settle(lab: Lab, history: History) -> None:
    for _ in range(12):
        for role in ("handler", "projector", "process"):
            for host in lab.instances_of(role):
                lab.by_hand(role, host).step(0)
    history.settle(0.01)


def verdicts(lab: Lab, history: History) -> dict[str, Verdict]:
    return check_run(lab, history, {service: gather(lab, service) for service in SERVICES})


def decisions(service: Any) -> dict[Any, Any]:
    return service.decide  # type: ignore[no-any-return]


def red(lab: Lab, history: History) -> set[str]:
    return {name for name, verdict in verdicts(lab, history).items() if not verdict.ok}


def test_a_healthy_run_is_green(lab: Lab) -> None:
    history = run(lab)
    found = verdicts(lab, history)
    assert not {n: v.violations for n, v in found.items() if not v.ok}
    assert set(found) == {
        *("C1", "C2", "C3", "C6", "C7", "C8", "C9", "C11"),
        "invariants",
    }
    assert all(verdict.checked for verdict in found.values())
    stock = lab.store.find("inventory.view.stock", {"_id": "cd"})[0]
    assert (stock["on_hand"], stock["reserved"], stock["shipped"]) == (4, 0, 6)
    status = {d["_id"]: d["status"] for d in lab.store.find("orders.view.orders", {})}
    assert status == {"o0": "shipped", "o1": "shipped", "o2": "cancelled", "o3": "cancelled"} or (
        status["o3"] == "placed"  # the cancelled goods came back in time for it
    )
    balances = {d["_id"]: d["balance"] for d in lab.store.find("bank.view.accounts", {})}
    assert balances == {"a": 75, "b": 20}


# --- C3


def test_c3_sees_a_client_that_reads_what_was_aborted(lab: Lab) -> None:
    """A tail that is not ``read_committed``."""
    lab.bus._tail = lambda service: lab.broker.source(
        lab.topic_name(f"{service}.events"), uncommitted=True
    )
    history = History(lab.bus)
    history.listen(*SERVICES)
    history.send(ReceiveStock("cd", 10))
    lab.crash("handler", Failpoint.HANDLER_OFFSETS, "inventory")
    history.settle(0.01)
    settle(lab, history)
    for service in SERVICES:
        lab.by_hand("handler", service).flush()
    found = verdicts(lab, history)["C3"]
    assert found.found == 1
    assert "which no committed record says" in found.violations[0]


def test_c3_sees_a_view_of_what_was_never_committed(lab: Lab) -> None:
    history = run(lab)
    lab.store._collections["orders.view.orders"]["o1"]["trace"]["polled"] += 1  # type: ignore[attr-defined]
    assert red(lab, history) == {"C3"}


# --- C7


def test_c7_sees_negative_stock(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(stock: inventory.StockState | None, c: ReserveStock) -> tuple[Any, ...]:
        on_hand = stock.on_hand if stock else 0
        return (
            inventory.StockReserved(c.product_id, c.quantity, on_hand - c.quantity, c.order_id),
        )

    monkeypatch.setitem(decisions(inventory.INVENTORY), ReserveStock, greedy)
    found = verdicts(lab, run(lab))
    assert not found["C7"].ok
    assert any("on hand" in line for line in found["C7"].violations)
    assert any("'nothing is negative'" in line for line in found["invariants"].violations)


def test_c7_sees_goods_that_come_from_nowhere(lab: Lab) -> None:
    history = run(lab)
    lab.store._collections["inventory.view.stock"]["cd"]["shipped"] += 1  # type: ignore[attr-defined]
    assert {"C7", "C9"} == red(lab, history)


# --- C8


def test_c8_sees_money_that_is_made(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def generous(account: bank.AccountState | None, c: Deposit) -> tuple[Any, ...]:
        assert account is not None
        return (bank.Deposited(c.account_id, c.cents, account.balance + c.cents + 1),)

    monkeypatch.setitem(decisions(bank.BANK), Deposit, generous)
    found = verdicts(lab, run(lab))["C8"]
    assert "took the balance from 0 to 101" in found.violations[0]


def test_c8_sees_money_that_arrives_twice(lab: Lab) -> None:
    history = run(lab)
    transfer = bank.ReceiveMoney("b", 10, "a", "t0")
    history.send(transfer, id=new_id())  # as a process would that makes its ids anew
    settle(lab, history)
    for service in SERVICES:
        lab.by_hand("handler", service).flush()
    found = verdicts(lab, history)
    assert "-10 cents are under way" in found["C8"].violations[0]
    assert not found["C11"].ok


# --- C11


def test_c11_sees_a_process_that_never_ends(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transfer, "ended", lambda *_: False)
    found = verdicts(lab, run(lab))
    assert found["C11"].found == 3
    assert found["C8"].ok, "the money is where it should be"


def test_c11_sees_a_step_that_is_forgotten(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    letter = process_manager.ProcessProjection._letter

    def forgetful(self: Any, instance: str, send: Any, commit: Any) -> Any:
        if send.step == "release":
            send = structs.replace(send, command=inventory.ReleaseStock("cd", "another"))
        return letter(self, instance, send, commit)

    monkeypatch.setattr(process_manager.ProcessProjection, "_letter", forgetful)
    found = verdicts(lab, run(lab))["C11"]
    assert any("order 'o2': reserved 1, shipped 0, released 0" in v for v in found.violations)


def test_c11_sees_a_process_that_was_never_begun(lab: Lab) -> None:
    history = run(lab)
    del lab.store._collections["transfer.instances"]["t1"]  # type: ignore[attr-defined]
    found = verdicts(lab, history)["C11"]
    assert found.violations == ["transfer 't1' was never begun"]
