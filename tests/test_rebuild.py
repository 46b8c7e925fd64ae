"""A view is built anew while it serves: nothing is missed, nothing twice, and nobody waits."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from labkit import stack
from labkit.errors import CheckFailed, Fenced, UsageError
from labkit.experiments.verify.checkers import check_all
from labkit.experiments.verify.history import History
from labkit.lab import Lab
from labkit.ports.clock import Clock
from labkit.ports.world import World
from labkit.read.freshness import LINEARIZABLE, Fresh
from labkit.read.projection import ServiceProjection
from labkit.read.rebuild import Rebuild
from labkit.read.sessions import Session
from labkit.services.catalog import ListProduct, Products
from labkit.services.orders import OrderById, OrdersSeen, PayOrder, PlaceOrder
from tests.built_in import ORDER_DOCUMENTS, ORDER_VIEWS, PROJECTIONS
from tests.test_cli import labkit, refused

VIEW = "orders.view"
DAY = "1997-01-31"


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.servers)])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if request.param == "kafka":
        request.getfixturevalue("servers")
    with Lab(backend=request.param) as made:
        yield made
        made.drop()


def place(lab: Lab, *orders: str) -> None:
    for order in orders:
        lab.bus.send(PlaceOrder(order, f"c{order[-1]}", DAY, 1, 100)).token()
    while lab.lag("handler", "orders"):
        lab.handler.step(0.1)


def show(lab: Lab) -> None:
    while lab.lag("projector", "orders"):
        lab.projector.step(0.1)


def shown(lab: Lab) -> dict[str, Any]:
    """All documents of the view that serves, without their instants."""
    found = {
        name: {d["_id"]: d for d in lab.store.find(lab.where(name), {})} for name in ORDER_VIEWS
    }
    for document in found[ORDER_DOCUMENTS].values():
        document.pop("trace", None)
    return found


def built(lab: Lab) -> Rebuild:
    """The next generation, with all that is in the log by now."""
    rebuild = lab.rebuild(VIEW)
    while (progress := rebuild.step()).done < progress.total:
        pass
    return rebuild


def step_on(part: Any) -> None:
    for _ in range(50):
        part.step(0.1)


def test_the_new_generation_equals_the_old_one_and_serves(lab: Lab) -> None:
    place(lab, *(f"o{n}" for n in range(20)))
    show(lab)
    before = shown(lab)
    rebuild = built(lab)
    assert lab.where(ORDER_DOCUMENTS) == "orders.view.orders"
    lab.bus.send(PlaceOrder("late", "ann", DAY, 1, 7)).token()
    lab.handler.step(0.1)
    show(lab)
    rebuild.switch()
    assert lab.where(ORDER_DOCUMENTS) == "orders.view.orders@1"
    assert lab.ask(OrderById("late")) is not None, "the old one showed it already"
    assert lab.ask(OrdersSeen()) == 21
    rebuild.drop_old()
    rebuild.close()
    assert "orders.view.orders" not in lab.store.collections()
    after = shown(lab)
    assert {k: v for k, v in after[ORDER_DOCUMENTS].items() if k != "late"} == before[
        ORDER_DOCUMENTS
    ]
    assert list(lab.collection(ORDER_DOCUMENTS)["_id"]) == sorted(after[ORDER_DOCUMENTS])
    checkpoints = {c.id for c in lab.store.checkpoints("orders.checkpoints")}
    assert "orders.view:0" not in checkpoints
    assert {"orders.view", "orders.view@1:0"} <= checkpoints


def test_a_document_that_was_read_again_has_no_trace_until_its_next_message(lab: Lab) -> None:
    place(lab, "o1", "o2")
    show(lab)
    rebuild = built(lab)
    rebuild.switch()
    for order in ("o1", "o2"):
        with pytest.raises(UsageError, match=f"no '{order}' with a trace.* since the last rebuild"):
            lab.film(order)
    lab.bus.send(PayOrder("o1", lab.ask(OrderById("o1"))["cents"])).token()
    lab.handler.step(0.1)
    rebuild.serve(0.1)
    rebuild.drop_old()
    rebuild.close()
    assert "PayOrder" in lab.film("o1").svg
    assert "trace" not in lab.store.load(lab.where(ORDER_DOCUMENTS), ["o2"])["o2"]


def test_the_owner_of_the_old_one_is_fenced_and_its_next_life_is_of_the_new_one(lab: Lab) -> None:
    place(lab, "o1")
    show(lab)
    old = lab.projector
    rebuild = built(lab)
    rebuild.switch()
    place(lab, "o2")
    with pytest.raises(Fenced):
        step_on(old)
    show(lab)
    with pytest.raises(Fenced):
        step_on(rebuild)
    assert lab.projector.name == "orders.view@1"
    assert set(shown(lab)[ORDER_DOCUMENTS]) == {"o1", "o2"}
    assert lab.ignored_commits() == 0


def test_a_projector_that_was_about_to_claim_the_old_one_is_fenced(lab: Lab) -> None:
    """It read the pointer before the switch and claims after it."""
    place(lab, "o1")
    show(lab)
    late = lab.parts._projector("orders", 0, None)
    rebuild = built(lab)
    rebuild.switch()
    rebuild.close()
    with pytest.raises(Fenced, match="does not serve any more"):
        late.own(range(lab.partitions))
    late.close()


def test_two_views_are_kept_apart(lab: Lab) -> None:
    place(lab, "o1")
    show(lab)
    lab.rebuild_view("catalog.view", keep=0)
    assert lab.where(ORDER_DOCUMENTS) == ORDER_DOCUMENTS
    assert lab.where("catalog.view.entries") == "catalog.view.entries@1"
    lab.rebuild_view(VIEW, keep=0)
    lab.rebuild_view(VIEW, keep=0)
    assert lab.where(ORDER_DOCUMENTS) == "orders.view.orders@2"
    assert lab.ask(OrdersSeen()) == 1


def test_what_was_cancelled_goes_on_where_it_was(lab: Lab) -> None:
    place(lab, *(f"o{n}" for n in range(12)))
    first = lab.rebuild(VIEW)
    while (progress := first.step()).done == 0:
        pass
    first.close()  # Ctrl-C
    assert progress.applied > 0
    show(lab)
    place(lab, "late")
    second = built(lab)
    at_once = second.step()
    assert second.generation == 1
    assert at_once.applied + progress.applied == 13, "nothing was read twice"
    second.switch()
    assert lab.ask(OrdersSeen()) == 13
    second.close()
    third = lab.rebuild(VIEW, anew=True)
    while (progress := third.step()).done < progress.total:
        pass
    assert (third.generation, progress.applied) == (2, 13)
    third.close()
    fourth = lab.rebuild(VIEW, anew=True)
    while (progress := fourth.step()).done < progress.total:
        pass
    assert (fourth.generation, progress.applied) == (2, 13), "begun anew"
    fourth.close()


def test_a_step_takes_so_many_commits_at_most(lab: Lab) -> None:
    place(lab, *(f"o{n}" for n in range(12)))
    rebuild = lab.rebuild(VIEW, batch_size=5)
    applied = [0]
    while (progress := rebuild.step()).done < progress.total:
        applied.append(progress.applied)
    applied.append(progress.applied)
    rebuild.close()
    assert applied[-1] == 12
    assert max(b - a for a, b in itertools.pairwise(applied)) == 5


def test_of_two_rebuilds_the_later_one_goes_on(lab: Lab) -> None:
    place(lab, "o1")
    show(lab)
    first = built(lab)
    second = built(lab)
    with pytest.raises(Fenced, match=r"another rebuild of 'orders.view' was begun"):
        first.switch()
    second.switch()
    assert lab.ask(OrdersSeen()) == 1
    first.close()
    second.close()


def test_the_switch_waits_for_what_the_old_one_has(lab: Lab) -> None:
    """Or a reader that saw it would go back in time."""
    place(lab, "o1")
    rebuild = built(lab)
    place(lab, "o2")
    show(lab)
    session = Session(lab.queries)
    assert session.ask(OrderById("o2")) is not None
    rebuild.switch()
    assert session.ask(OrderById("o2")) is not None
    assert lab.ask(OrderById("o2"), fresh=Fresh(timeout=0)) is not None
    rebuild.close()


def test_a_generation_that_parks_more_does_not_serve(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(lab, "o1", "o2")
    show(lab)
    with monkeypatch.context() as patch:
        apply = ServiceProjection.apply

        def broken(self: Any, commit: Any, docs: Any, fetched: int, now: int) -> None:
            if commit.stream == "o1":
                raise KeyError("a bug in the new fold")
            apply(self, commit, docs, fetched, now)

        patch.setattr(ServiceProjection, "apply", broken)
        rebuild = built(lab)
        with pytest.raises(CheckFailed, match="cannot apply 1 streams that the old"):
            rebuild.switch()
        rebuild.close()
    assert lab.ask(OrderById("o1"), fresh=LINEARIZABLE) is not None
    assert lab.where(ORDER_DOCUMENTS) == ORDER_DOCUMENTS


def test_an_unknown_view_is_refused(lab: Lab) -> None:
    with pytest.raises(UsageError, match=r"must be one of catalog.view, orders.view, got 'x'"):
        lab.rebuild("x")


def test_the_estimate_is_what_is_left_at_the_speed_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of its own: 10 offsets a second of 100, while the log grows by 5 a second."""
    now = [0.0]

    class Told(Clock):
        def now(self) -> int:
            return int(now[0] * 1e9)

    with Lab(backend="memory", world=World(clock=Told())) as lab:
        rebuild = lab.rebuild(VIEW)
        projector: Any = rebuild._projector

        def at(second: float) -> float | None:
            now[0] = second
            first = projector._owned.checkpoints[0]
            place_ = structs.replace(first, position=int(10 * second))
            projector._owned.checkpoints[0] = place_
            projector._source.ends = lambda: {0: 100 + int(5 * second)}
            monkeypatch.setattr(projector, "step", lambda timeout: 0)
            return rebuild.step().remaining

        assert at(0) is None, "nothing is known yet"
        assert at(2) == pytest.approx(90 / 5)
        assert at(4) == pytest.approx(80 / 5)
        assert at(20) == 0.0
        projector._owned.checkpoints[0] = structs.replace(
            projector._owned.checkpoints[0], position=0
        )


@pytest.mark.servers
@pytest.mark.usefixtures("servers")
def test_a_rebuild_beside_workers_and_writers_loses_nothing() -> None:
    """Writers write, a reader with a session reads, workers work; then the checkers look."""
    with Lab() as lab:
        lab.start()
        session, stop, trouble = Session(lab.queries), threading.Event(), []
        reads = 0

        def read() -> None:
            nonlocal reads
            most = 0
            while not stop.is_set():
                seen = session.ask(OrdersSeen())
                if seen < most:
                    trouble.append((seen, most))
                most, reads = seen, reads + 1

        reader = threading.Thread(target=read)
        reader.start()
        history = History(lab.bus)
        for n in range(300):
            history.send(PlaceOrder(f"o{n}", f"c{n % 7}", DAY, 1, 100))
            if n == 150:
                rebuild = lab.rebuild(VIEW)
            if 150 < n < 225:
                rebuild.step(0.01)
            if n == 225:
                rebuild.switch()
        rebuild.serve(2)
        rebuild.drop_old()
        rebuild.close()
        for n in range(100):
            history.send(PayOrder(f"o{n}", 100))
        history.settle()
        stop.set()
        reader.join()
        lab.ask(OrderById("o1"), fresh=Fresh("linearizable", timeout=30))
        assert trouble == []
        assert reads > 100
        verdicts = check_all(lab, history)
        assert {name: v.violations for name, v in verdicts.items() if not v.ok} == {}
        assert lab.ask(OrdersSeen()) == 300
        lab.drop()


def test_the_view_names_are_those_of_the_projections() -> None:
    assert [view.name for view in PROJECTIONS.values()] == [f"{c}.view" for c in PROJECTIONS]


@pytest.mark.servers
@pytest.mark.parametrize(
    "cancel", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_rebuild_by_the_command_line_is_cancelled_and_goes_on(
    servers: stack.Servers, tmp_path: Path, cancel: signal.Signals
) -> None:
    file = tmp_path / "rebuild.json"
    count = 20_000
    with Lab(services=["catalog"], start=False, client="confluent") as lab:
        lab.start()
        for n in range(count):
            lab.bus.send(ListProduct(f"p{n}", "a pen", 5))
        lab.bus.flush()
        lab.ask(Products(), fresh=Fresh("linearizable", timeout=90))
        command = ["rebuild", "catalog.view", "--run", lab.run, "--json", str(file)]
        begun = subprocess.Popen(
            [sys.executable, "-m", "labkit", *command], stderr=subprocess.PIPE, text=True
        )
        built = "catalog.view.entries@1"
        while begun.poll() is None and not lab.store.find(built, {}, limit=1):
            time.sleep(0.01)
        begun.send_signal(cancel)
        _, said = begun.communicate(timeout=60)
        if cancel == signal.SIGINT:
            assert begun.returncode == 130
            assert "interrupted" in said
        assert "Traceback" not in said
        assert not file.exists()
        there = lab.store.count(built)
        assert 0 < there < count
        assert lab.where("catalog.view.entries") == "catalog.view.entries"
        done = labkit(*command)
        assert done.returncode == 0, done.stderr
        assert "resumed after" in done.stdout
        assert "catalog.view serves from generation 1" in done.stdout
        found = json.loads(file.read_bytes())
        assert found["generation"] == 1
        assert found["applied"] <= count - there
        assert lab.store.count(built) == count
        assert lab.where("catalog.view.entries") == built
        lab.bus.execute(ListProduct("late", "a pen", 5))
        assert len(lab.ask(Products(), fresh=Fresh("linearizable", timeout=60))) == count + 1
        assert lab.ignored_commits() == 0
        again = labkit(*command)
        assert "resumed" not in again.stdout
        assert "generation 2" in again.stdout
        refused(labkit("rebuild", "owl", "--run", lab.run), "catalog.view", "'owl'")
        refused(labkit("rebuild", "catalog.view", "--run", "r0000000"), "has no run 'r0000000'")
        lab.drop()
