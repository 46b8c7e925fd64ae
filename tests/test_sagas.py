"""Processes as they run, on the twin: what crashes, waits, comes late or is dropped."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from labkit.lab import Lab
from labkit.messages import Commit, encode
from labkit.ports.clock import Clock
from labkit.ports.failpoints import Failpoint
from labkit.process.process_manager import ProcessManager
from labkit.services import bank, inventory, orders
from labkit.services.bank import Deposit, OpenAccount, ReceiveMoney, SendMoney
from labkit.teaching import settle
from labkit.write import stream_state

OPENED = (OpenAccount("ada", "ada"), Deposit("ada", 100), OpenAccount("grace", "grace"))


def lab_with(process: str, **settings: Any) -> Lab:
    return Lab(backend="memory", services=[], processes=[process], **settings)


def send(lab: Lab, *commands: Any) -> None:
    for command in commands:
        lab.bus.send(command)


def handled(lab: Lab, service: str = "bank") -> list[Commit[Any]]:
    found: list[Commit[Any]] = []
    while some := lab.by_hand("handler", service).step(0):
        found += some
    return found


def balances(lab: Lab) -> dict[str, tuple[int, int]]:
    """By account: its balance, and what is under way from it."""
    settle(lab, 0)
    found = lab.store.find("bank.view.accounts", {})
    return {d["_id"]: (d["balance"], d["open"]) for d in found}


def outbox(lab: Lab) -> list[str]:
    return sorted(d["_id"] for d in lab.store.find("transfer.outbox", {}))


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("at", [Failpoint.PROJECTOR_ADVANCED, Failpoint.PROCESS_SENT])
def test_what_a_dead_saga_left_is_sent_by_its_next_life(at: Failpoint, partitions: int) -> None:
    with lab_with("transfer", partitions=partitions) as lab:
        send(lab, *OPENED, SendMoney("ada", 40, "grace", "t1"))
        handled(lab)
        lab.crash("process", at, "transfer")
        assert outbox(lab) == ["transfer:t1:receive"]
        assert balances(lab) == {"ada": (60, 0), "grace": (40, 0)}
        assert outbox(lab) == []


def test_what_was_answered_meanwhile_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream remembers so many ids; a process may be away for longer than that."""
    monkeypatch.setattr(stream_state, "SEEN_WINDOW", 10)
    with lab_with("transfer") as lab:
        send(lab, *OPENED, SendMoney("ada", 40, "grace", "t1"))
        handled(lab)
        lab.crash("process", Failpoint.PROCESS_SENT, "transfer")
        send(lab, *(Deposit("grace", 1) for _ in range(20)))
        handled(lab)
        assert balances(lab) == {"ada": (60, 0), "grace": (60, 0)}
        sent = lab.topic("bank.commands")["value"].map(lambda value: value["id"])
        assert list(sent).count("transfer:t1:receive") == 1


def test_nothing_is_sent_again_before_all_workers_have_read_what_is_there() -> None:
    with lab_with("transfer") as lab:
        send(lab, *OPENED, SendMoney("ada", 40, "grace", "t1"))
        handled(lab)
        lab.crash("process", Failpoint.PROJECTOR_ADVANCED, "transfer")
        process: ProcessManager = lab.by_hand("process", "transfer")
        real = process._checkpoints
        behind = {c.id: structs.replace(c, position=0) for c in real()}
        process._checkpoints = behind.values
        for _ in range(5):
            process.step(0)
        assert handled(lab) == []
        process._checkpoints = real
        process.step(0)
        assert [c.id for c in handled(lab)] == ["transfer:t1:receive"]


def test_a_first_step_that_somebody_drops_is_called_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    with lab_with("transfer") as lab:
        monkeypatch.setitem(bank.BANK.decide, ReceiveMoney, stumble)  # type: ignore[arg-type]
        send(lab, *OPENED, SendMoney("ada", 40, "grace", "t1"))
        assert balances(lab)["ada"] == (60, 40)
        lab.by_hand("handler", "bank").flush()
        assert lab.dead_letters()["stream"].to_list() == ["grace"]
        lab.drop_dead_letter("grace", "bank")
        assert balances(lab) == {"ada": (100, 0), "grace": (0, 0)}


def test_the_refusal_of_a_zombie_moves_nobody() -> None:
    """It knows nothing of the account, and refuses what its successor will accept."""
    with lab_with("transfer") as lab:
        send(lab, *OPENED, SendMoney("ada", 40, "grace", "t1"))
        handled(lab)
        process = lab.by_hand("process", "transfer")
        process.step(0)
        source = lab.broker.source(lab.topic_name("bank.events"))
        partition = source.partitions_for([b"grace"])[0]
        stale: Commit[Any] = Commit(
            stream="grace",
            id="transfer:t1:receive",
            partition=partition,
            offset=2,
            outcome="refused",
            first=1,
            last=0,
            reason="account 'grace' does not exist",
            correlation="t1",
        )
        sender = lab.broker.sender()
        sender.send(lab.topic_name("bank.events"), b"grace", encode(stale), partition)
        process.step(0)
        assert balances(lab) == {"ada": (60, 0), "grace": (40, 0)}
        assert lab.ignored_commits() > 0


def test_a_deadline_survives_days_without_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    days = 0
    wall = Clock.wall
    monkeypatch.setattr(Clock, "wall", lambda clock: wall(clock) + days * 86_400_000)
    with lab_with("fulfilment") as lab:
        order = orders.PlaceOrder("o1", "ada", "1997-01-31", 3, 100, "cd")
        send(lab, inventory.ReceiveStock("cd", 10), order)
        handled(lab, "orders")
        lab.by_hand("process", "fulfilment").step(0)
        handled(lab, "inventory")  # reserved; the process has not heard of it
        days = 3
        settle(lab, 0)
        (stock,) = lab.store.find("inventory.view.stock", {})
        assert (stock["on_hand"], stock["reserved"]) == (10, 0)
        (instance,) = lab.store.find("fulfilment.instances", {})
        assert instance["ended"]
