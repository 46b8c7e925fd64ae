"""Services and processes by name: in memory, in worker processes, and in a run that is joined."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from labkit import LINEARIZABLE, Lab, Service, State, stack
from labkit.adapters.memory_store import MemoryStore
from labkit.errors import StackError, UsageError
from labkit.ports.failpoints import Failpoint
from labkit.read.standard import All, ById
from labkit.run import folds, references
from labkit.run.references import Reference
from labkit.services.bank import AccountById, Deposit, OpenAccount
from labkit.services.fulfilment import Fulfilment
from labkit.services.orders import ORDERS
from tests.test_cli import labkit, refused, traps
from tests.test_service import Loan, library

SHELF = """
from labkit import Command, Event, KeyedView, Process, Query, Service, State, View

class Put(Command):
    place: str
    thing: str

class Took(Command, frozen=True, tag="Take"):
    place: str

class ThingPut(Event):
    thing: str

class ThingTaken(Event):
    thing: str

class Place(State):
    thing: str = ""

def put(place, command):
    return ThingPut(command.thing)

def take(place, command):
    return place and ThingTaken(place.thing)

def evolve(place, event):
    return Place(event.thing if isinstance(event, ThingPut) else "")

class Things(KeyedView):
    def keys(self, event, at):
        yield event.thing
    def change(self, documents, event, at):
        documents.remove(event.thing)
        if isinstance(event, ThingPut):
            documents.add({"_id": event.thing, "place": at.stream})

class WhereIs(Query):
    thing: str
    def read(self, views) -> str | None:
        found = views.get(Things, self.thing)
        return found and found["place"]

class Tidy(Process, frozen=True):
    name = "tidy"
    sources = ("shelf",)
    state = Place
    often: int = 1

SHELF = Service("shelf", decide={Put: put, Took: take}, events=[ThingPut, ThingTaken],
                evolve=evolve, state=Place, views=[Things], queries=[WhereIs])

class Cupboard:
    SHELF = SHELF

NUMBER = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules of somebody's own; nothing is left of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "shelf_module.py").write_text(SHELF)
    (tmp_path / "shelf_package" / "inner").mkdir(parents=True)
    for part in ("", "inner"):
        (tmp_path / "shelf_package" / part / "__init__.py").write_text(SHELF)
    (tmp_path / "shelf_package" / "inner" / "deep.py").write_text(SHELF)
    (tmp_path / "shelf_broken.py").write_text("SHELF = (\n")
    (tmp_path / "shelf_needs.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "shelf_ends.py").write_text("raise SystemExit(3)\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("shelf_"):
            del sys.modules[name]


# --- names


def test_a_built_in_one_has_a_name() -> None:
    assert references.service("orders") is ORDERS
    assert references.process("fulfilment") == Fulfilment()
    assert references.to_service(ORDERS) == Reference("labkit.services.orders:ORDERS")
    again = Reference("labkit.services.fulfilment.process:Fulfilment", "", {"pay_within": 60.0})
    assert references.to_process(Fulfilment(pay_within=60)) == again
    assert references.process(again) == Fulfilment(pay_within=60)
    for known in (references.to_service(ORDERS), ORDERS):
        assert references.service(known) is ORDERS


@pytest.mark.parametrize(
    "name", ["shelf_module", "shelf_package", "shelf_package.inner", "shelf_package.inner.deep"]
)
def test_one_of_your_own_is_a_module_and_an_attribute(folder: Path, name: str) -> None:
    with Lab(backend="memory", services=[f"{name}:SHELF", "bank"]) as lab:
        lab.start()
        module: Any = sys.modules[name]
        assert lab.services["shelf"] is module.SHELF
        assert lab.bus.execute(module.Put("left", "cup")).accepted
        assert lab.ask(module.WhereIs("cup"), fresh=LINEARIZABLE) == "left"
        assert lab.bus.execute(OpenAccount("a", "ann")).accepted
    found = references.to_service(module.SHELF)
    assert found == Reference(f"{name}:SHELF", str(folder))
    assert references.service(found) is module.SHELF
    assert references.service(f"{name}:Cupboard.SHELF") is module.SHELF
    tidy = references.process(f"{name}:Tidy")
    assert references.to_process(tidy) == Reference(f"{name}:Tidy", str(folder), {"often": 1})


def test_it_is_found_in_its_folder_from_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    found = references.service(Reference("shelf_module:SHELF", str(folder)))
    assert found.name == "shelf"


def test_what_lies_beside_it_hides_no_other_module(folder: Path) -> None:
    traps(folder)
    sys.modules.pop("colorsys", None)
    assert references.service("shelf_module:SHELF").name == "shelf"
    import colorsys

    assert colorsys.rgb_to_hsv
    (folder / "colorsys.py").write_text(SHELF)  # and the error names the file that was taken
    with pytest.raises(UsageError, match=rf"has no 'SHELF'; .* it is {colorsys.__file__}"):
        references.service("colorsys:SHELF")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "typo",
            "unknown service or process 'typo'; built in are bank, catalog, .*module:ATTR",
        ),
        ("shelf_module.SHELF", "unknown service or process 'shelf_module.SHELF'; built in are"),
        ("", "unknown service or process ''"),
        ("bounds", "unknown service or process 'bounds'"),
        ("no_such_module_at_all:X", r"cannot import 'no_such_module_at_all' \(ModuleNotFoundErr"),
        (":X", "cannot import ''"),
        (".shelf_module:X", "cannot import '.shelf_module'"),
        ("shelf_broken:SHELF", r"cannot import 'shelf_broken' \(SyntaxError: .*was never closed"),
        ("shelf_needs:SHELF", "No module named 'no_such_module_at_all'"),
        ("shelf_ends:SHELF", r"cannot import 'shelf_ends' \(SystemExit: 3\)"),
        ("shelf_module:DESK", "has no 'DESK'; its services and processes: SHELF"),
        ("shelf_module:", "has no ''; its services and processes: SHELF"),
        ("shelf_module:SHELF.x", "has no 'SHELF.x'"),
        ("shelf_module:NUMBER", "'shelf_module:NUMBER' is no Service, but 7"),
        ("shelf_module:Put", "is no Service, but <class 'shelf_module.Put'>"),
        ("fulfilment", "'fulfilment' is no Service, but Fulfilment"),
    ],
)
def test_what_is_no_service_is_named(folder: Path, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Lab(backend="memory", services=[name])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("orders", "'orders' is no Process, but Service"),
        ("shelf_module:Put", "is no Process, but <class 'shelf_module.Put'>"),
        ("typo", "unknown service or process 'typo'"),
    ],
)
def test_what_is_no_process_is_named(folder: Path, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Lab(backend="memory", processes=[name])


def test_settings_of_a_process_that_cannot_be_are_named() -> None:
    at = "labkit.services.fulfilment:Fulfilment"
    with pytest.raises(UsageError, match=r"Fulfilment': Expected `float`, got `str`.*pay_within"):
        references.process(Reference(at, fields={"pay_within": "soon"}))
    with pytest.raises(UsageError, match=r"pay_within must be 0 to .* seconds, got -1"):
        references.process(Reference(at, fields={"pay_within": -1}))


def test_two_processes_of_one_name_are_refused() -> None:
    twice = [Fulfilment(pay_within=1), "fulfilment"]
    with pytest.raises(UsageError, match="two processes of this run are named 'fulfilment'"):
        Lab(backend="memory", processes=twice)
    with Lab(backend="memory", processes=["fulfilment", Fulfilment()]) as lab:
        assert lab.processes == {"fulfilment": Fulfilment()}


# --- what workers could not import


def in_main() -> Service:
    """As in a cell of a notebook."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(SHELF, space)
    service = space["SHELF"]
    assert isinstance(service, Service)
    return service


def test_what_workers_cannot_import_is_said() -> None:
    with pytest.raises(UsageError, match=r"service 'shelf' is defined in __main__ .*%%writefile"):
        references.to_service(in_main())
    with pytest.raises(UsageError, match="service 'other' is no attribute of the module"):
        references.to_service(library("other"))

    class Local(Loan, frozen=True):
        pass

    with pytest.raises(UsageError, match=r"<locals>\.Local of process 'loan' is no attribute of"):
        references.to_process(Local())
    assert references.to_process(Loan()).at == "tests.test_service:Loan"


def test_in_memory_it_works_all_the_same() -> None:
    own = in_main()
    put, where = put_and_where(own)
    with Lab(backend="memory", services=[own]) as lab:
        lab.start()
        assert lab.bus.execute(put("left", "cup")).accepted
        assert lab.ask(where("cup"), fresh=LINEARIZABLE) == "left"


def put_and_where(service: Service) -> tuple[Any, Any]:
    put = next(command for command in service.commands if command.__name__ == "Put")
    return put, service.queries["where-is"]


def test_a_run_is_joined_as_it_is() -> None:
    for more in ({"services": ["orders"]}, {"processes": ["fulfilment"]}):
        with pytest.raises(UsageError, match="run 'r1' has its services already; leave out"):
            Lab(run="r1", start=False, **more)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="run 'r1' has its settings already; leave out partitions"):
        Lab(run="r1", start=False, partitions=12)
    with pytest.raises(UsageError, match="a run in memory ends with its lab and cannot be joined"):
        Lab(backend="memory", run="r1")


@pytest.mark.parametrize("run", ["", "a b", "r/1", "x.y", "$", "R1", "r" * 64])
def test_what_cannot_be_a_run_is_said_without_a_server(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "borrow", lambda *_, **__: pytest.fail("it looked for servers"))
    with pytest.raises(UsageError, match="lab 'lab' has no run "):
        Lab(run=run, start=False)


# --- on real servers


@pytest.mark.servers
def test_workers_import_what_the_run_names(
    servers: stack.Servers, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lab(services=["shelf_module:SHELF"], partitions=2, cache=10) as lab:
        try:
            module: Any = sys.modules["shelf_module"]
            monkeypatch.chdir(traps(folder / "elsewhere"))
            lab.start(queries=1)
            for place in ("left", "right"):
                for thing in ("cup", "jug"):
                    assert lab.bus.execute(module.Put(place, thing)).accepted
            lab.stop()
            for _ in range(3):  # one batch takes out and adds again what is stored
                for command in (module.Took("left"), module.Put("left", "jug")):
                    lab.bus.send(command).token()
            lab.start(queries=1)
            bus = lab.query_bus
            assert bus.ask(module.WhereIs("jug"), fresh=LINEARIZABLE) == "left"
            assert bus.ask(module.WhereIs("cup"), fresh=LINEARIZABLE) == "right"
            assert lab.ask(All("shelf.things"), fresh=LINEARIZABLE).rows == [
                {"_id": "cup", "place": "right"},
                {"_id": "jug", "place": "left"},
            ]
            lab.stop()
            lab.bus.send(module.Put("left", "pot")).token()
            assert lab.crash("handler", Failpoint.HANDLER_COMMITTED).signal == 9
        finally:
            lab.drop()


@pytest.mark.servers
def test_who_waits_for_workers_is_told_why_they_die(servers: stack.Servers, folder: Path) -> None:
    trap = 'import os\nif "LABKIT_BOOTSTRAP" in os.environ:\n    import no_such_module_here\n'
    (folder / "shelf_dies.py").write_text(trap + SHELF)
    with Lab(services=["shelf_dies:SHELF"], partitions=1) as lab:
        try:
            with pytest.raises(StackError, match=r"die as they start: .*no_such_module_here"):
                lab.start()
            assert lab.workers() == []
        finally:
            lab.drop()


@pytest.mark.servers
def test_of_main_only_steps_by_hand(servers: stack.Servers) -> None:
    own = in_main()
    put, where = put_and_where(own)
    with Lab(services=[own], partitions=1) as lab:
        try:
            with pytest.raises(UsageError, match=r"defined in __main__ .*%%writefile"):
                lab.start()
            assert lab.workers() == []
            with pytest.raises(UsageError, match="defined in __main__"):
                lab.crash("handler", Failpoint.HANDLER_POLLED)
            lab.bus.send(put("left", "cup")).token()
            while not lab.handler.step():
                pass
            while not lab.projector.step():
                pass
            assert lab.ask(where("cup")) == "left"
            with pytest.raises(UsageError, match="__main__"):
                Lab(run=lab.run, start=False)
        finally:
            lab.drop()


class Inner(State, frozen=True):
    name: str


class Then(State, frozen=True):
    """A state, as it was."""

    place: str
    parts: tuple[Inner, ...] = ()


class Today(Then, frozen=True):
    """A new name and a new text change nothing that was saved."""


class More(Then, frozen=True):
    colour: str = "red"  # older states would all be red, unseen


class Less(State, frozen=True):
    place: str


class Outer(State, frozen=True):
    name: int


class Deeper(State, frozen=True):
    place: str
    parts: tuple[Outer, ...] = ()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (Today, None),
        (More, r'\(now colour: {"type":"string"}\)'),
        (Less, r"\(then parts: .*; then Inner.name: "),
        (Deeper, r'; now Outer.name: {"type":"integer"}\)'),
    ],
)
def test_a_state_that_has_changed_asks_for_a_new_fold(
    state: type[State], says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, service = MemoryStore(), copy(references.service("orders"))
    monkeypatch.setattr(service, "state", Then)
    folds.check(store, "run", [service])
    folds.check(store, "run", [service])
    monkeypatch.setattr(service, "state", state)
    if says is None:
        folds.check(store, "run", [service])
        return
    with pytest.raises(
        UsageError, match=f"{state.__name__}, the state of service 'orders'.*{says}"
    ):
        folds.check(store, "run", [service])
    monkeypatch.setattr(service, "states", "orders.state.v2")
    folds.check(store, "run", [service])


@pytest.mark.servers
def test_a_run_joined_keeps_services_and_settings(
    servers: stack.Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more partitions than there are by default, whoever asks hears all answers."""
    settings: dict[str, Any] = {"partitions": 12, "cache": 7, "write_concern": "1", "linger": 0.01}
    with Lab(services=["bank", "orders"], processes=[Fulfilment(pay_within=60)], **settings) as lab:
        try:
            lab.start(queries=1)
            with Lab(run=lab.run, start=False) as other:
                assert list(other.services) == list(lab.services) == ["bank", "orders", "inventory"]
                assert other.processes == {"fulfilment": Fulfilment(pay_within=60)}
                assert (other.settings, other.partitions) == (lab.settings, 12)
                accounts = [f"a{n}" for n in range(60)]
                for account in accounts:
                    other.bus.send(OpenAccount(account, "ann"))
                    other.bus.send(Deposit(account, 5))
                other.bus.flush()
                reached = {p for p, end in other.ends("bank.commands").items() if end}
                assert reached == set(range(12)), "commands went to all partitions"
                replies = set()
                for _ in range(8):  # each draws a partition for its answers
                    bus = other.parts.make_query_bus(other.queries, other.drive)
                    questions = [
                        bus.send(AccountById(account), fresh=LINEARIZABLE) for account in accounts
                    ]
                    assert [bus.answer(q)["balance"] for q in questions] == [5] * len(accounts)
                    assert bus.dropped == 0
                    replies.add(bus._replies["bank"])
                    bus.close()
                assert len(replies) > 1
                assert other.ask(ById("bank.accounts", "a1"), fresh=LINEARIZABLE)["balance"] == 5
            with monkeypatch.context() as patch:
                patch.setattr(lab.services["bank"], "state", Today)
                with pytest.raises(
                    UsageError, match=r"since this run began \(then owner: .*`fold`"
                ):
                    Lab(run=lab.run, start=False)
        finally:
            lab.drop()


@pytest.mark.servers
def test_there_is_no_run_of_another_name(servers: stack.Servers) -> None:
    with pytest.raises(UsageError, match="lab 'lab' has no run 'typo'; `labkit runs` lists"):
        Lab(run="typo")
    done = labkit("run", "handler", "--run", "typo", LABKIT_HOME=os.environ["LABKIT_HOME"])
    refused(done, "lab 'lab' has no run 'typo'")
    with Lab(services=["orders"], partitions=1) as lab:
        try:
            assert not any("typo" in topic for topic in lab.broker.topics())
            store: Any = lab.store
            assert not any("typo" in name for name in store._client.list_database_names())
            done = labkit("run", "handler", "--run", lab.run, "--service", "zoo")
            refused(done, "has no handler of 'zoo'; name one of them by --service: orders")
            refused(labkit("run", "relay", "--run", lab.run), "several parts 'relay', or none")
        finally:
            lab.drop()
    with pytest.raises(UsageError, match=f"has no run '{lab.run}'"):
        Lab(run=lab.run)
