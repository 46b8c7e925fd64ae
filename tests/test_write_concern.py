"""The write concern of a run reaches its projectors, and nobody else; and they stay right."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.client_session import ClientSession

from labkit import stack
from labkit.lab import Lab
from labkit.read.freshness import Fresh, Version
from labkit.run.wiring import make_worker
from labkit.run.worker import Worker
from labkit.services.bank import AccountById, Deposit, OpenAccount
from labkit.services.orders import PlaceOrder


@pytest.mark.servers
@pytest.mark.parametrize(("concern", "projectors"), [("1", 1), ("majority", "majority")])
def test_it_is_the_projectors(
    concern: str, projectors: object, servers: stack.Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    start = ClientSession.start_transaction

    def noted(session: ClientSession, *arguments: Any, **options: Any) -> Any:
        asked.append(options["write_concern"].document["w"])
        return start(session, *arguments, **options)

    monkeypatch.setattr(ClientSession, "start_transaction", noted)
    with Lab("lab", services=["orders"], partitions=1, write_concern=concern) as lab:
        lab.bus.send(PlaceOrder("order-1", "ada", "1997-01-31", 1, 1599)).token()
        lab.handler.step(10)
        lab.handler.flush()
        assert set(asked) == {"majority"}
        asked.clear()
        assert lab.projector.step(10) == 1
        assert asked == [projectors]
        worker = Worker("projector", "orders", 0)
        command = lab.of.worker_command(worker)
        assert concern not in command, "a worker reads it where the run keeps it"
        _, joined, _ = make_worker(lab.name, lab.run, "projector", None, 0)
        assert joined.settings.write_concern == concern
        joined.close()
        lab.drop()


@pytest.mark.servers
def test_a_projector_that_does_not_wait_sees_its_own_writes(servers: stack.Servers) -> None:
    """A read of the majority's would be of the batch before, and its stream would be parked."""
    with Lab("lab", services=["bank"], partitions=1, write_concern="1") as lab:
        lab.bus.send(OpenAccount("a", "ada")).token()
        for _ in range(20):
            lab.bus.send(Deposit("a", 1)).token()
            lab.by_hand("handler", "bank").step(10)
        one_at_a_time = lab.by_hand("projector", "bank")
        one_at_a_time._batch_size = 1
        while lab.lag("projector", "bank"):
            one_at_a_time.step(0.2)
        assert lab.parts.held_back() == []
        shown = lab.ask(AccountById("a"), fresh=Fresh("version", (Version("bank", "a", 21),)))
        assert shown is not None
        assert shown["balance"] == 20
        lab.drop()
