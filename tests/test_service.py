"""A service of somebody's own: what is refused when it is declared, and that all parts take it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from msgspec import Struct

from labkit import (
    LINEARIZABLE,
    Command,
    Event,
    Failpoint,
    Fresh,
    KeyedView,
    Lab,
    Page,
    Process,
    Query,
    Refused,
    Send,
    Service,
    Session,
    State,
    Version,
    View,
    specification,
)
from labkit.adapters.memory_store import MemoryStore
from labkit.errors import Parked, UsageError
from labkit.messages import Commit, Document
from labkit.ports.store import Writes
from labkit.read.standard import All, ById
from labkit.read.unit_of_work import UnitOfWork
from labkit.service import At, Documents, answers
from labkit.services.inventory import INVENTORY, ReceiveStock, StockOf
from labkit.services.orders import OrderById, PayOrder, PlaceOrder
from labkit.teaching import project, settle, work

# --- a library: books are lent


class AddBook(Command, frozen=True):
    book: str
    title: str


class LendBook(Command, frozen=True):
    book: str
    member: str


class ReturnBook(Command, frozen=True):
    book: str


class BookAdded(Event, frozen=True):
    title: str


class BookLent(Event, frozen=True):
    member: str


class BookReturned(Event, frozen=True):
    member: str


class Book(State, frozen=True):
    title: str
    member: str = ""


def add_book(book: Book | None, command: AddBook) -> Any:
    if book is not None:
        raise Refused(f"book {command.book!r} is there already")
    return BookAdded(command.title)


def lend(book: Book | None, command: LendBook) -> Any:
    if book is None or book.member:
        raise Refused(f"book {command.book!r} is not on the shelf")
    return BookLent(command.member)


def give_back(book: Book | None, command: ReturnBook) -> Any:
    return None if book is None or not book.member else [BookReturned(book.member)]


def evolve(book: Book | None, event: Any) -> Book:
    match event:
        case BookAdded():
            return Book(event.title)
        case BookLent():
            assert book is not None
            return Book(book.title, event.member)
    assert book is not None
    return Book(book.title)


class Books(View):
    indexes = (("member", "_id"),)

    def apply(self, document: Any, event: Any) -> Document:
        if isinstance(event, BookAdded):
            return {"title": event.title, "member": ""}
        if event.member == "nobody":
            document["member"] = "half"  # a change that must not remain
            raise ValueError("nobody borrows a book")
        lent = isinstance(event, BookLent)
        if event.member == "nothing":
            return None  # type: ignore[return-value]
        return {**document, "member": event.member if lent else ""}


class Loans(KeyedView):
    """How often each member has borrowed, by partition."""

    indexes = (("member", "loans"),)

    def keys(self, event: Event, at: At) -> Iterator[str]:
        if isinstance(event, BookLent):
            yield f"{event.member}:{at.partition}"

    def change(self, documents: Documents, event: Any, at: At) -> None:
        if isinstance(event, BookLent):
            assert at.document is not None
            assert at.document["member"] == event.member, "what the first view shows by now"
            id = f"{event.member}:{at.partition}"
            new = {"_id": id, "member": event.member, "loans": 0}
            found = documents.get(id) or documents.add(new)
            found["loans"] += 1


class Away(KeyedView):
    """The books that are not on the shelf."""

    def keys(self, event: Event, at: At) -> Iterator[str]:
        yield at.stream

    def change(self, documents: Documents, event: Any, at: At) -> None:
        if isinstance(event, BookLent):
            documents.add({"_id": at.stream, "since": at.version})
        else:
            documents.remove(at.stream)


class BookById(Query, frozen=True):
    book: str

    def read(self, views: Any) -> Document | None:
        return views.get(Books, self.book)  # type: ignore[no-any-return]


class BooksOf(Query, frozen=True):
    member: str
    limit: int = 10
    cursor: str = ""

    def read(self, views: Any) -> Page:
        chosen = {"limit": self.limit, "cursor": self.cursor}
        return views.page(Books, member=self.member, **chosen)  # type: ignore[no-any-return]


class LoansOf(Query, frozen=True):
    member: str

    def read(self, views: Any) -> int:
        found = views.totals(Loans, "member", ["loans"], member=self.member)
        return found[0]["loans"] if found else 0


def library(name: str = "library", **parts: Any) -> Service:
    own: dict[str, Any] = {
        "decide": {AddBook: add_book, LendBook: lend, ReturnBook: give_back},
        "events": BookAdded | BookLent | BookReturned,
        "evolve": evolve,
        "state": Book,
        "views": [Books, Loans(), Away()],
        "queries": [BookById, BooksOf, LoansOf],
    }
    return Service(name, **(own | parts))


LIBRARY = library()
given = specification(LIBRARY)


# --- what does not fit together


class NoStream(Command, frozen=True):
    pass


class Numbered(Command, frozen=True):
    number: int


class NoState:
    pass


class ByTitle(Query, frozen=True):
    title: str

    def read(self, views: Any) -> Any:
        return views.find(Books, title=self.title)


class ByTitleIfAny(Query, frozen=True):
    """What is asked for without an index only with a condition that need not be."""

    member: str
    title: str = ""

    def read(self, views: Any) -> Any:
        return views.find(Books, title=self.title) if self.title else views.find(Books, member="a")


class TooFresh(Query, frozen=True):
    freshness: str

    def read(self, views: Any) -> Any:
        return views.count(Books)


class Shelf2(View):
    name = "books"


class NotAnIndex(View):
    indexes = ("member",)  # type: ignore[assignment]


class Odd(View):
    name = "Odd Name"


class Parking(View):
    name = "parked"


def same_name() -> type[Event]:
    class BookLent(Event, frozen=True):
        pass

    return BookLent


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"name": "Library"}, "a name is lower-case letters"),
        ({"name": "run"}, r"not one of api, commands, .*run"),
        ({"name": "a" * 32}, "at most 31"),
        ({"name": ""}, "a name is lower-case letters"),
        ({"commands": AddBook | LendBook}, "not exactly one decision for ReturnBook$"),
        ({"commands": [AddBook, LendBook, ReturnBook, PayOrder]}, "one decision for PayOrder$"),
        ({"decide": {BookLent: lend}}, "decide must be Command types, got .*BookLent"),
        ({"decide": {"LendBook": lend}}, "decide must be Command types, got 'LendBook'"),
        ({"decide": {}}, "decide must not be empty"),
        ({"events": []}, "events must not be empty"),
        ({"decide": {NoStream: lend}}, "NoStream needs a field for the id of its stream"),
        ({"decide": {Numbered: lend}}, "the first field of Numbered .* must be str"),
        ({"events": [AddBook]}, "events must be Event types, got .*AddBook"),
        ({"events": [BookLent, same_name()]}, "events has two types 'BookLent'"),
        ({"upcasts": {BookLent: lambda old: old}}, "events has two types 'BookLent'"),
        ({"state": NoState}, "state must be a State"),
        ({"state": Book("t")}, "state must be a State"),
        ({"fold": 0}, "fold must be a whole number from 1, got 0"),
        ({"views": [Books, Shelf2]}, "two views are named 'books'"),
        ({"views": [NotAnIndex]}, "an index of 'not_an_index' is a tuple of fields, got 'member'"),
        ({"views": [Odd]}, "'Odd Name' cannot be the name of a view"),
        ({"views": [Parking]}, "'parked' cannot be the name of a view"),
        ({"views": [BookById]}, "views must be View objects, got .*BookById"),
        ({"queries": [Books]}, "queries must be Query types, got .*Books"),
        ({"queries": [BookById("b")]}, r"queries must be Query types, got BookById\(book='b'\)"),
        ({"queries": iter([Books])}, "queries must be Query types, got .*Books"),
        ({"queries": [BookById, BookById]}, "queries has two types 'BookById'"),
        ({"queries": [TooFresh]}, "TooFresh has a condition 'freshness', which the HTTP API"),
        ({"queries": [ByTitle]}, r"ByTitle asks Books by title.*add indexes = \[\('title',\)\]"),
        ({"queries": [ByTitleIfAny]}, "ByTitleIfAny asks Books by title"),
        ({"public": [PayOrder]}, "PayOrder.* is public and has no decision"),
        ({"public": {LendBook: "GET /lend"}}, "the address of LendBook must be like 'POST /libra"),
        ({"public": {LendBook: "POST /{reader}"}}, r"got 'POST /\{reader\}'"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_declared(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        library(**parts)


def test_a_query_is_not_named_as_those_that_every_view_has() -> None:
    class ById(Query, frozen=True):
        book: str

        def read(self, views: Any) -> Any:
            return views.get(Books, self.book)

    with pytest.raises(UsageError, match="'by-id' is a query of every view"):
        library(queries=[ById])


def test_two_services_do_not_share_a_name_a_command_or_a_query() -> None:
    with pytest.raises(UsageError, match="AddBook is claimed by 'library' and by 'other'"):
        Lab(backend="memory", services=[LIBRARY, library("other")])
    with pytest.raises(UsageError, match="two services or processes of this run are named 'libra"):
        Lab(backend="memory", services=[LIBRARY, library()])
    with pytest.raises(UsageError, match="two services or processes of this run are named 'order"):
        Lab(backend="memory", services=["orders", library("orders")])
    other = Service(
        "other",
        decide={Register: register},
        events=[Registered],
        evolve=lambda member, event: Member(event.name),
        state=Member,
        queries=[BookById],
    )
    with pytest.raises(UsageError, match="BookById is a query of 'library' and of 'other'"):
        Lab(backend="memory", services=[LIBRARY, other])


def test_what_a_service_says_by_itself() -> None:
    assert LIBRARY.module == __name__
    assert [view.name for view in LIBRARY.views] == ["books", "loans", "away"]
    assert list(LIBRARY.queries) == ["book-by-id", "books-of", "loans-of"]
    assert LIBRARY.public == {
        AddBook: "POST /library/{book}/add-book",
        LendBook: "POST /library/{book}/lend-book",
        ReturnBook: "POST /library/{book}/return-book",
    }
    assert library(views=(view for view in (Books, Loans))).views[1].name == "loans"
    assert library(public=()).public == {}


def test_its_rules_are_tested_as_any() -> None:
    given().when(AddBook("b1", "Emma")).then(BookAdded("Emma"))
    given(BookAdded("Emma")).when(ReturnBook("b1")).then()
    lent = (BookAdded("Emma"), BookLent("ann"))
    given(*lent).when(ReturnBook("b1")).then(BookReturned("ann"))
    given(*lent).when(LendBook("b1", "bob")).then_refused("not on the shelf")


# --- by hand and started


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Three books, of which ann has two; in several partitions."""
    with Lab(backend="memory", services=[LIBRARY], cache=10) as made:
        for n in range(3):
            made.bus.send(AddBook(f"b{n}", f"Title {n}"))
        for n in (0, 1):
            made.bus.send(LendBook(f"b{n}", "ann"))
        made.bus.flush()
        work(made, wait=0)
        project(made, wait=0)
        yield made


def ids(page: Page) -> list[str]:
    return [row["_id"] for row in page.rows]


def test_by_hand(lab: Lab) -> None:
    assert lab.first == "library"
    book = lab.ask(BookById("b1"))
    assert (book["title"], book["member"], book["version"]) == ("Title 1", "ann", 2)
    assert lab.ask(BookById("none")) is None
    first = lab.ask(BooksOf("ann", limit=1))
    assert (ids(first), ids(lab.ask(BooksOf("ann", cursor=first.cursor)))) == (["b0"], ["b1"])
    assert (lab.ask(LoansOf("ann")), lab.ask(LoansOf("bob"))) == (2, 0)
    assert lab.ask(ById("library.books", "b1")) == book
    assert ids(lab.ask(All("library.away"))) == ["b0", "b1"]
    assert lab.collection("library.view.away")["_id"].to_list() == ["b0", "b1"]
    lab.bus.listen("library")
    token = lab.bus.send(LendBook("b2", "bob")).token()
    lab.handler.step(0)
    assert lab.bus.answer(token).accepted
    lab.projector.step(0)
    assert lab.ask(BookById("b2"), fresh=LINEARIZABLE)["member"] == "bob"
    session = Session(lab.queries)
    session.wrote(Version("library", "b2", 2))
    assert session.ask(BookById("b2"))["member"] == "bob"


def test_started_over_both_buses() -> None:
    with Lab(backend="memory", services=[LIBRARY], cache=10) as lab:
        lab.start(queries=1)
        assert lab.bus.execute(AddBook("b1", "Emma")).accepted
        assert lab.bus.execute(AddBook("b1", "Emma")).outcome == "refused"
        assert lab.bus.execute(ReturnBook("b1")).version == 1, "nothing happened"
        assert lab.bus.execute(LendBook("b1", "ann")).version == 2
        bus = lab.query_bus
        assert bus.ask(BookById("b1"), fresh=LINEARIZABLE) == lab.ask(BookById("b1"))
        assert bus.ask(LoansOf("ann"), fresh=LINEARIZABLE) == 1
        assert isinstance(bus.ask(BooksOf("ann")), Page)
        assert ids(bus.ask(All("library.books"))) == ["b1"]


def test_an_answer_is_held_until_what_it_was_read_from_changes(lab: Lab) -> None:
    def asked(query: Query) -> tuple[Any, bool]:
        question = lab.query_bus.send(query)
        lab.by_hand("query", "library").step(0)
        (result,) = lab.query_bus.hear(0)
        assert result.id == question.id
        return result.value, result.cached

    for _ in range(2):
        held = [asked(LoansOf("ann")), asked(BookById("b2"))]
    assert [cached for _, cached in held] == [True, True]
    lab.bus.send(LendBook("b2", "ann"))
    work(lab, wait=0)
    project(lab, wait=0)
    assert asked(LoansOf("ann")) == (3, False), "of a KeyedView"
    value, cached = asked(BookById("b2"))
    assert (value["member"], cached) == ("ann", False)
    assert asked(BookById("b2"))[1]


def test_a_subscription_follows_it(lab: Lab) -> None:
    lab.start(queries=1)
    with (
        closing(lab.subscribe(LoansOf("bob"))) as here,
        closing(lab.query_bus.subscribe(BookById("b2"))) as there,
    ):
        one, two = here.poll(1), there.poll(1)
        assert one is not None
        assert two is not None
        assert (one.answer, two.answer["member"]) == (0, "")
        lab.bus.execute(LendBook("b2", "bob"))
        one, two = here.poll(5), there.poll(5)
        assert one is not None
        assert two is not None
        assert (one.answer, two.answer["member"]) == (1, "bob")


def test_what_is_removed_and_added_in_one_batch_is_there(lab: Lab) -> None:
    for command in (ReturnBook("b0"), LendBook("b0", "bob"), ReturnBook("b1")):
        lab.bus.send(command)
    for command in (LendBook("b2", "bob"), ReturnBook("b2")):
        lab.bus.send(command)
    work(lab, wait=0)
    project(lab, wait=0)
    assert lab.store.find("library.view.away", {}) == [{"_id": "b0", "since": 4}]
    assert (lab.ask(LoansOf("ann")), lab.ask(LoansOf("bob"))) == (2, 2)


def test_a_batch_does_not_delete_what_it_has_added_again() -> None:
    """MongoDB deletes last; the twin deletes first, and would hide it."""
    store = MemoryStore()
    store.advance("c.checkpoints", [], Writes({"c": [{"_id": "a"}, {"_id": "b"}]}))
    docs = UnitOfWork(store)
    docs.load([("c", "a"), ("c", "b")])
    for id in ("a", "b"):
        docs["c"].remove(id)
    docs["c"].add({"_id": "a", "n": 1})
    docs["c"].remove("a")
    docs["c"].add({"_id": "a", "n": 2})
    assert docs.writes() == Writes(replaces={"c": [{"_id": "a", "n": 2}]}, deletes={"c": ["b"]})


def test_time_travel_and_history(lab: Lab) -> None:
    lab.bus.send(ReturnBook("b0"))
    work(lab, wait=0)
    log = lab.log()
    assert log.state("b0") == Book("Title 0")
    assert log.state("b0", version=2) == Book("Title 0", "ann")
    assert log.state("b0", at=datetime.datetime(1997, 1, 1, tzinfo=datetime.UTC)) is None
    assert lab.history("b0")["event"].to_list() == ["BookAdded", "BookLent", "BookReturned"]


def test_snapshots_shorten_the_way(lab: Lab) -> None:
    lab.handler._snapshots.every = 4
    for _ in range(6):
        lab.bus.send(ReturnBook("b0"))
        lab.bus.send(LendBook("b0", "ann"))
    work(lab, wait=0)
    taken = lab.store.find(LIBRARY.snapshots, {})
    assert [d["version"] for d in taken if d["stream"] == "b0"] == [4, 8, 12]
    for version in range(15):
        with_them = lab.log().state("b0", version=version)
        assert with_them == lab.log().state("b0", version=version, snapshots=False)


def test_a_rebuild(lab: Lab) -> None:
    before = {v.name: lab.store.find(LIBRARY.collection(v), {}) for v in LIBRARY.views}
    lab.rebuild_view("library.view", keep=0)
    for view in LIBRARY.views:
        where = lab.where(LIBRARY.collection(view))
        assert where.endswith("@1")
        plain = [{k: v for k, v in d.items() if k != "trace"} for d in lab.store.find(where, {})]
        was = [{k: v for k, v in d.items() if k != "trace"} for d in before[view.name]]
        assert plain == was
        assert plain
    assert lab.ask(LoansOf("ann")) == 2


def test_a_film(lab: Lab) -> None:
    assert "LendBook" in lab.film("b0").svg
    with pytest.raises(UsageError, match="the view holds no 'b9'"):
        lab.film("b9")


@pytest.mark.parametrize("point", [Failpoint.HANDLER_PRODUCED, Failpoint.HANDLER_FLUSHED])
def test_it_survives_a_crash(lab: Lab, point: Failpoint) -> None:
    lab.bus.send(LendBook("b2", "bob"))
    lab.crash("handler", at=point)
    work(lab, wait=0)
    project(lab, wait=0)
    assert lab.log().state("b2") == Book("Title 2", "bob")
    assert lab.ask(LoansOf("bob")) == 1


def test_without_a_document_for_each_stream_versions_are_kept_beside() -> None:
    class Titles(KeyedView):
        def change(self, documents: Documents, event: Any, at: At) -> None:
            if isinstance(event, BookAdded):
                documents.add({"_id": event.title, "book": at.stream})
                assert at.document is None

    with Lab(backend="memory", services=[library(views=[Titles], queries=[])]) as lab:
        lab.start()
        lab.bus.execute(AddBook("b1", "Emma"))
        lab.bus.execute(LendBook("b1", "ann"))
        version = Fresh("version", (Version("library", "b1", 2),), 1)
        assert lab.ask(ById("library.titles", "Emma"), fresh=version)["book"] == "b1"
        assert lab.store.find("library.view.seen", {}) == [{"_id": "b1", "version": 2}]
        with pytest.raises(UsageError, match="the view holds no 'b1'"):
            lab.film("b1")


def test_without_views_there_is_the_log_alone() -> None:
    with Lab(backend="memory", services=[library(views=[], queries=[])]) as lab:
        lab.start()
        assert lab.bus.execute(AddBook("b1", "Emma")).accepted
        assert lab.log().state("b1") == Book("Emma")
        assert lab.instances_of("projector") == ()
        with pytest.raises(UsageError, match="has no projector of 'library': none"):
            _ = lab.projector
        with pytest.raises(UsageError, match=r"this run has no views, got 'library\.view'"):
            lab.rebuild("library.view")
        with pytest.raises(UsageError, match=r"no view 'library\.books' in this run; known: none"):
            lab.ask(All("library.books"))


# --- what goes wrong in it parks its stream, and others go on


class Broken(Command, frozen=True):
    book: str


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("yes", "'y' is no event of service 'library'"),
        (5, "'int' object is not iterable"),
        (Book("Emma"), "'Book' object is not iterable"),
        ([BookLent("ann"), None], "None is no event of service 'library'"),
        (PlaceOrder("o", "a", "1997-01-31", 1, 1), "'PlaceOrder' object is not iterable"),
    ],
)
def test_a_decision_that_returns_no_event_parks_its_stream(returned: Any, reason: str) -> None:
    decide = {**LIBRARY.decide, Broken: lambda book, command: returned}
    with Lab(backend="memory", services=[library(decide=decide)]) as lab:
        lab.start()
        for book in ("b1", "b2"):
            lab.bus.execute(AddBook(book, "Emma"))
        assert lab.bus.execute(Broken("b1")).outcome == "parked"
        assert lab.bus.execute(LendBook("b1", "ann")).outcome == "parked"
        assert lab.bus.execute(LendBook("b2", "bob")).accepted
        lab.handler.flush()
        (letter,) = lab.parked()
        assert (letter.service, letter.stream, letter.waiting) == ("library", "b1", 2)
        assert letter.reason == f"TypeError: {reason}"
        assert lab.drop_dead_letter("b1").accepted
        lab.drive()
        assert lab.log().state("b1") == Book("Emma", "ann")
        assert lab.dead_letters().empty


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("nobody", "ValueError: nobody borrows a book"),
        ("nothing", "TypeError: Books.apply must give a document, got None"),
    ],
)
def test_a_view_that_stumbles_parks_its_stream_in_itself(
    lab: Lab, member: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (LendBook("b2", member), ReturnBook("b0"), LendBook("b0", "bob")):
        lab.bus.send(command)
    work(lab, wait=0)
    project(lab, wait=0)
    lab.bus.send(ReturnBook("b2"))
    work(lab, wait=0)
    project(lab, wait=0)
    (letter,) = lab.parked()
    assert (letter.by, letter.stream, letter.waiting) == ("library.view", "b2", 2)
    assert letter.reason == reason
    assert lab.ask(BookById("b2"))["member"] == "", "nothing half done remains"
    assert lab.ask(LoansOf(member)) == 0
    assert lab.ask(BookById("b0"))["member"] == "bob", "others go on"
    with pytest.raises(Parked, match=r"'b2' is parked in 'library\.view'"):
        lab.ask(BookById("b2"), fresh=Fresh("linearizable", timeout=1))
    assert lab.ask(BooksOf("bob"), fresh=LINEARIZABLE).rows
    monkeypatch.setattr(
        Books, "apply", lambda self, d, e: {**d, "member": getattr(e, "member", "")}
    )
    assert lab.parts.replay_reader("library.view", "b2") == 2
    assert lab.ask(LoansOf(member)) == 1
    assert lab.parked() == []


def test_a_keyed_view_that_stumbles_parks_its_stream_too(lab: Lab, monkeypatch: Any) -> None:
    change = Loans.change

    def stumble(self: Loans, documents: Documents, event: Any, at: At) -> None:
        change(self, documents, event, at)
        if at.stream == "b2":
            raise KeyError("loans")

    monkeypatch.setattr(Loans, "change", stumble)
    for command in (LendBook("b2", "ann"), ReturnBook("b0"), LendBook("b0", "ann")):
        lab.bus.send(command)
    work(lab, wait=0)
    project(lab, wait=0)
    assert [(d.stream, d.reason) for d in lab.parked()] == [("b2", "KeyError: 'loans'")]
    assert lab.ask(LoansOf("ann")) == 3
    assert lab.ask(BookById("b2"))["member"] == "", "all views of a service are one transaction"


def test_a_query_with_a_bug_says_so_to_its_asker_alone(lab: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr(LoansOf, "read", lambda self, views: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        lab.ask(LoansOf("ann"))
    assert lab.ask(BookById("b1"))


def test_a_query_reads_what_it_may() -> None:
    class Peeking(Query, frozen=True):
        def read(self, views: Any) -> Any:
            return views.count("inventory.stock")

    with (
        Lab(backend="memory", services=[library(queries=[Peeking]), "inventory"]) as lab,
        pytest.raises(UsageError, match=r"the view 'inventory\.stock', but library\.away, lib"),
    ):
        lab.ask(Peeking())


# --- several services and a process between them


class Register(Command, frozen=True):
    member: str
    name: str


class NoteLoan(Command, frozen=True):
    member: str
    book: str


class Registered(Event, frozen=True):
    name: str


class LoanNoted(Event, frozen=True):
    book: str


class Member(State, frozen=True):
    name: str
    books: tuple[str, ...] = ()


def register(member: Member | None, command: Register) -> Any:
    return Registered(command.name)


def note_loan(member: Member | None, command: NoteLoan) -> Any:
    if member is None:
        raise Refused(f"{command.member!r} is no member")
    return LoanNoted(command.book)


def evolve_member(member: Member | None, event: Any) -> Member:
    if isinstance(event, Registered):
        return Member(event.name)
    assert member is not None
    return Member(member.name, (*member.books, event.book))


class Members(View):
    def apply(self, document: Any, event: Any) -> Document:
        if isinstance(event, Registered):
            return {"name": event.name, "books": []}
        document["books"].append(event.book)
        return document  # type: ignore[no-any-return]


class MemberWithBooks(Query, frozen=True):
    """Across services."""

    member: str
    reads = (Members, Books)

    def read(self, views: Any) -> Any:
        found = views.get(Members, self.member)
        return found and [views.get(Books, book)["title"] for book in found["books"]]


class Lending(Struct, frozen=True):
    member: str
    ended: bool = False


class Loan(Process, frozen=True):
    """A loan is noted for its member; who is none has to give the book back."""

    name = "loan"
    sources = ("library", "members")
    state = Lending

    step_name: str = "note"

    def instance(self, service: str, commit: Commit[Any]) -> str | None:
        if service == "library":
            lent = any(isinstance(event, BookLent) for event in commit.events)
            return f"{commit.stream}-{commit.last}" if lent else None
        return commit.correlation or None

    def react(self, state: Any, service: str, commit: Commit[Any]) -> tuple[Any, tuple[Send, ...]]:
        if service == "library":
            (event,) = commit.events
            note = NoteLoan(event.member, commit.stream)
            return Lending(event.member), (Send("members", note, self.step_name),)
        id = commit.correlation
        if state is None or not answers(self.name, id, commit, self.step_name):
            return state, ()
        done = Lending(state.member, True)
        if commit.outcome == "accepted":
            return done, ()
        return done, (Send("library", ReturnBook(id.rpartition("-")[0]), "give back"),)

    def ended(self, state: Lending) -> bool:
        return state.ended


def members(**parts: Any) -> Service:
    return Service(
        "members",
        decide={Register: register, NoteLoan: note_loan},
        events=[Registered, LoanNoted],
        evolve=evolve_member,
        state=Member,
        views=[Members],
        queries=[MemberWithBooks],
        **parts,
    )


def lend_and_sell(lab: Lab, settled: Callable[[], Any]) -> None:
    for command in (Register("ann", "Ann"), AddBook("b1", "Emma"), AddBook("b2", "Persuasion")):
        lab.bus.send(command)
    for book, who in (("b1", "ann"), ("b2", "stranger")):
        lab.bus.send(LendBook(book, who))
    for command in (ReceiveStock("cd", 5), PlaceOrder("o1", "ann", "1997-01-31", 2, 10)):
        lab.bus.send(command)
    lab.bus.send(PayOrder("o1", 10))
    settled()
    assert lab.ask(MemberWithBooks("ann"), fresh=LINEARIZABLE) == ["Emma"]
    assert (lab.ask(BookById("b1"))["member"], lab.ask(BookById("b2"))["member"]) == ("ann", "")
    assert all(d["ended"] for d in lab.store.find("loan.instances", {}))
    assert lab.store.count("loan.instances") == 2
    assert lab.ask(OrderById("o1"))["status"] == "shipped"
    assert lab.ask(StockOf("cd"))["on_hand"] == 3
    assert lab.ignored_commits() == 0


ALL = ("library", "members", "orders", "inventory")


def test_own_services_and_processes_beside_built_in_ones() -> None:
    services = [LIBRARY, members(processes=[Loan()]), "orders", INVENTORY]
    with Lab(backend="memory", services=services, processes=["fulfilment"]) as lab:
        assert set(lab.services) == set(ALL)
        assert set(lab.processes) == {"fulfilment", "loan"}
        lend_and_sell(lab, lambda: settle(lab, 0))


def test_started_they_do_the_same() -> None:
    services = [LIBRARY, members()]
    processes = [Loan(step_name="write down"), "fulfilment"]
    with Lab(backend="memory", services=services, processes=processes) as lab:
        assert set(lab.services) == set(ALL), "what a built-in process listens to comes along"
        lab.start(queries=1)

        def settled() -> None:
            for _ in range(30):
                lab.drive()

        lend_and_sell(lab, settled)
        asked = lab.query_bus.ask(MemberWithBooks("ann"), fresh=LINEARIZABLE)
        assert asked == ["Emma"]
        sent = lab.topic("members.commands")["value"].map(lambda value: value["id"]).to_list()
        assert "loan:b1-2:write down" in sent


def test_a_process_of_a_service_runs_where_its_other_sources_do() -> None:
    with Lab(backend="memory", services=[members(processes=[Loan()])]) as lab:
        assert lab.processes == {}
    with pytest.raises(UsageError, match="unknown service or process 'library'"):
        Lab(backend="memory", services=[members()], processes=[Loan()])
    services = [LIBRARY, members(processes=[Loan()])]
    with Lab(backend="memory", services=services, processes=[Loan(step_name="x")]) as lab:
        assert lab.processes == {"loan": Loan(step_name="x")}, "the one that is named"


def test_two_services_may_have_queries_of_one_name() -> None:
    """Each query handler, and each address over HTTP, is of one service."""

    def counting(view: type[View]) -> type[Query]:
        class HowMany(Query, frozen=True):
            def read(self, views: Any) -> int:
                return views.count(view)  # type: ignore[no-any-return]

        return HowMany

    class People(View):
        def apply(self, document: Any, event: Any) -> Document:
            return {}

    people, books = counting(People), counting(Books)
    other = Service(
        "other",
        decide={Register: register, NoteLoan: note_loan},
        events=[Registered, LoanNoted],
        evolve=evolve_member,
        state=Member,
        views=[People],
        queries=[people],
    )
    own = library(queries=[books])
    for services in ([own, other], [other, own]):
        with Lab(backend="memory", services=services) as lab:
            lab.start(queries=1)
            lab.bus.execute(AddBook("b1", "Emma"))
            lab.bus.execute(AddBook("b2", "Emma"))
            lab.bus.execute(Register("ann", "Ann"))
            for ask in (lab.ask, lab.query_bus.ask):
                assert ask(books(), fresh=LINEARIZABLE) == 2
                assert ask(people(), fresh=LINEARIZABLE) == 1
