"""A query that does not end is stopped, whichever way it came, and holds up nobody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from labkit.api import create_app
from labkit.errors import Stopped, UsageError
from labkit.lab import Lab
from labkit.service import Document, Query, Service, Views, guard
from tests.desk_for_api import DESK, OpenTicket, TicketById, Tickets
from tests.test_api import problem

ENDLESS = r"Chain\.read was stopped: it had not ended after 1 s; is there a loop"


class Chain(Query, frozen=True):
    """Goes round and round where there is a ticket."""

    ticket: str
    path = "/desk/{ticket}/chain"

    def read(self, views: Views) -> Document | None:
        found = views.get(Tickets, self.ticket)
        while found is not None:
            try:  # allocates nothing: Hypothesis listens to the garbage collector
                found["closed"]
            except Exception:  # does not catch its end
                continue
        return None


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(guard, "LOOKS", 1)
    service = Service(
        "desk",
        decide=dict(DESK.decide),
        events=DESK.events,
        evolve=DESK.evolve,
        state=DESK.state,
        views=DESK.views,
        queries=[TicketById, Chain],
    )
    with Lab(backend="memory", services=[service]) as made:
        made.start(queries=1)
        made.bus.execute(OpenTicket("t1", "ann"))
        made.drive()
        yield made


def test_in_python(lab: Lab) -> None:
    with pytest.raises(Stopped, match=ENDLESS):
        lab.ask(Chain("t1"))
    assert lab.ask(Chain("t2")) is None
    assert lab.ask(TicketById("t1"))["customer"] == "ann"


def test_over_kafka_it_is_not_tried_again_at_once(lab: Lab) -> None:
    with pytest.raises(Stopped, match=ENDLESS):
        lab.query_bus.ask(Chain("t1"))
    with pytest.raises(Stopped, match="did not end a moment ago; it is not tried again for"):
        lab.query_bus.ask(Chain("t1"))
    assert lab.query_bus.ask(Chain("t2")) is None
    assert lab.query_bus.ask(TicketById("t1"))["customer"] == "ann"


def test_over_http(lab: Lab) -> None:
    with TestClient(create_app(lab)) as api:
        found = problem(api.get("/desk/t1/chain"), 504, "timed-out")
        assert "Chain.read was stopped" in found["detail"]
        problem(api.get("/desk/t2/chain"), 404, "not-found")
        problem(api.get("/desk/t1/chain/updates"), 504, "timed-out")


def test_one_that_never_ends_is_refused_with_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop(Query, frozen=True):
        def read(self, views: Views) -> int:
            while True:
                pass

    monkeypatch.setattr(guard, "LOOKS", 1)
    with pytest.raises(UsageError, match=r"Loop\.read was stopped: .* where its views hold noth"):
        Service(
            "desk",
            decide=dict(DESK.decide),
            events=DESK.events,
            evolve=DESK.evolve,
            state=DESK.state,
            views=DESK.views,
            queries=[Loop],
        )
