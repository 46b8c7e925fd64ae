"""What a store tells of changes: MongoDB and the twin alike."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from msgspec import structs

from labkit.adapters.memory_store import MemoryStore
from labkit.ports.store import Change, Changes, Noticed, Store, Writes
from labkit.read.freshness import EVENTUAL, Fresh
from labkit.read.queries import Answered, Asked, Queries
from labkit.read.subscriptions import Subscription, of_views
from labkit.service import Query

#: Of the writer that goes on while others subscribe.
WRITES = 300

#: A collection of a view, which subscriptions follow with the pointer to its generation.
DOCS = "s.view.docs"

pytestmark = [pytest.mark.contract, pytest.mark.servers]


@pytest.fixture(params=["memory", "mongo"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    from labkit.adapters.mongo import MongoStore

    made = MongoStore(request.getfixturevalue("servers").mongo_uri, f"t_{uuid.uuid4().hex[:8]}")
    for name in ("docs", DOCS, "docs@1", "others", "checkpoints"):
        made.index(name, [("n", 1)])
    yield made
    made.drop()
    made.close()


@pytest.fixture
def write(store: Store) -> Callable[..., None]:
    """Inserts, replaces and deletes: one transaction, as projectors write."""
    at = store.claim("checkpoints", "p:0")

    def advance(*args: Any) -> None:
        nonlocal at
        to = structs.replace(at, position=at.position + 1)
        store.advance("checkpoints", [(at, to)], Writes(*args))
        at = to

    return advance


def hear(changes: Changes, *expected: Change, lost: bool = False) -> None:
    """Exactly these, in one poll or in several; and then nothing more."""
    found = set[Change]()
    while found < set(expected):
        noticed = changes.poll(10)
        assert noticed, f"heard only {found}"
        assert noticed.lost == lost
        found |= noticed.changes
    assert found == set(expected)
    assert changes.poll(0.1) == Noticed()


def test_what_is_written_from_now_on(store: Store, write: Callable[..., None]) -> None:
    write({"docs": [{"_id": "old"}]})
    store.claim("checkpoints", "p:1")  # the newest change of all may be told, too
    with closing(store.changes({"docs": None, "others": ["x"]})) as changes:
        assert changes.poll(0) == Noticed()
        write({"docs": [{"_id": "a"}, {"_id": "b"}], "others": [{"_id": "y"}]})
        hear(changes, Change("docs", "a"), Change("docs", "b"))
        write({}, {"docs": [{"_id": "a", "n": 2}], "others": [{"_id": "y", "n": 2}]})
        hear(changes, Change("docs", "a"))
        write({"others": [{"_id": "x"}]}, {}, {"docs": ["b"]})
        hear(changes, Change("docs", "b"), Change("others", "x"))


def test_each_change_is_told_once(store: Store, write: Callable[..., None]) -> None:
    with closing(store.changes({"docs": None})) as changes:
        write({"docs": [{"_id": "a", "n": 0}]})
        hear(changes, Change("docs", "a"))
        assert changes.poll(0) == Noticed()


def test_a_generation_is_told_by_the_plain_name(store: Store, write: Callable[..., None]) -> None:
    with closing(store.changes({"docs": None})) as changes:
        write({"docs@1": [{"_id": "a"}]})
        hear(changes, Change("docs", "a"))
    store.claim("checkpoints", "p:1")
    with closing(store.changes({"docs": ["a"]})) as changes:
        write({"docs": [{"_id": "b"}], "docs@1": [{"_id": "c"}]})
        write({}, {"docs@1": [{"_id": "a", "n": 1}]})
        hear(changes, Change("docs", "a"))


def test_a_checkpoint_that_moves_is_told(store: Store, write: Callable[..., None]) -> None:
    """A pointer to the generation that serves is one."""
    store.claim("checkpoints", "view")
    with closing(store.changes({"checkpoints": ["view"]})) as changes:
        write({"docs": [{"_id": "a"}]})
        at = store.claim("checkpoints", "view")
        hear(changes, Change("checkpoints", "view"))
        to = structs.replace(at, position=1)
        store.advance("checkpoints", [(at, to)], Writes())
        hear(changes, Change("checkpoints", "view"))


def test_two_listen_apart(store: Store, write: Callable[..., None]) -> None:
    with (
        closing(store.changes({"docs": None})) as one,
        closing(store.changes({"docs": ["a"]})) as two,
    ):
        write({"docs": [{"_id": "a"}, {"_id": "b"}]})
        hear(one, Change("docs", "a"), Change("docs", "b"))
        hear(two, Change("docs", "a"))


def test_when_all_goes_something_is_told(store: Store, write: Callable[..., None]) -> None:
    write({"docs": [{"_id": "a"}]})
    store.claim("checkpoints", "p:1")
    with closing(store.changes({"docs": ["a"]})) as changes:
        store.drop()
        assert changes.poll(10)


def forget(store: Store, changes: Any) -> None:
    """The cursor is gone, and the server has forgotten what came after the token."""
    if isinstance(store, MemoryStore):
        changes.forget()
        return
    stream = changes._stream
    data = stream.resume_token["_data"]
    # A token begins with its type and a timestamp: make that one of 1970.
    stream._resume_token = {"_data": data[:2] + "00000001" + data[10:]}
    stream._cursor.close()
    stream._closed = False


def test_a_token_that_was_forgotten_is_told_and_survived(
    store: Store, write: Callable[..., None]
) -> None:
    with closing(store.changes({"docs": None})) as changes:
        write({"docs": [{"_id": "a"}]})
        hear(changes, Change("docs", "a"))
        forget(store, changes)
        write({"docs": [{"_id": "b"}]})
        store.claim("checkpoints", "p:1")
        assert changes.poll(10).lost
        write({"docs": [{"_id": "c"}]})
        hear(changes, Change("docs", "c"))


def test_a_cursor_that_was_killed_loses_nothing(store: Store, write: Callable[..., None]) -> None:
    with closing(store.changes({"docs": None})) as changes:
        write({"docs": [{"_id": "a"}]})
        hear(changes, Change("docs", "a"))
        if not isinstance(store, MemoryStore):
            cursor = changes._stream._cursor.cursor_id  # type: ignore[attr-defined]
            store._db.command("killCursors", "$cmd.aggregate", cursors=[cursor])  # type: ignore[attr-defined]
        write({"docs": [{"_id": "b"}]})
        hear(changes, Change("docs", "b"))


# --- the seam of a subscription


class Numbers(Query, frozen=True):
    """What the subscriptions here ask; how it is answered, each test says."""


class Answers(Queries):
    """Answers of the test's own, read from one collection."""

    def __init__(self, store: Store, ask: Callable[[], int], ids: set[str] | None) -> None:
        super().__init__(store, {})
        self._answer, self._ids = ask, ids

    def asked(self, query: Query) -> Asked:
        return Asked(query, "s", ("s",), {}, None, {DOCS: self._ids})

    def answer(self, asked: Asked, fresh: Fresh = EVENTUAL) -> Answered:
        places = {(DOCS, None)} if self._ids is None else {(DOCS, id) for id in self._ids}
        return Answered(self._answer(), frozenset(places))


def subscription(store: Store, ask: Callable[[], int], ids: set[str] | None = None) -> Subscription:
    return Subscription(store, Answers(store, ask, ids), Numbers())


def number(store: Store) -> int:
    found = store.load(DOCS, ["a"]).get("a", {"n": 0})["n"]
    assert isinstance(found, int)
    return found


def test_what_is_written_between_the_first_read_and_its_answer_is_not_missed(
    store: Store, write: Callable[..., None]
) -> None:
    written = iter(range(1, 4))

    def ask() -> int:
        answer = number(store)
        if (n := next(written, None)) is not None:
            write(*([{}] if n > 1 else []), {DOCS: [{"_id": "a", "n": n}]})
            store.claim("checkpoints", "p:1")
        return answer

    with closing(subscription(store, ask, {"a"})) as updates:
        found = [updates.poll(10) for _ in range(4)]
        assert [(u.number, u.answer) for u in found if u] == [(1, 0), (2, 1), (3, 2), (4, 3)]
        assert updates.poll(0.2) is None


def test_what_stays_the_same_is_not_given_again(store: Store, write: Callable[..., None]) -> None:
    write({DOCS: [{"_id": "a", "n": 1}]})
    with closing(subscription(store, lambda: number(store))) as updates:
        assert updates.poll() is not None
        write({DOCS: [{"_id": "b", "n": 7}]})
        assert updates.poll(0.3) is None


def test_an_error_leaves_the_answer_due(store: Store, write: Callable[..., None]) -> None:
    fails = iter([False, True])

    def ask() -> int:
        if next(fails, False):
            raise ConnectionError("once")
        return number(store)

    with closing(subscription(store, ask)) as updates:
        updates.poll()
        write({DOCS: [{"_id": "a", "n": 1}]})
        with pytest.raises(ConnectionError):
            updates.poll(10)
        update = updates.poll()
        assert update is not None
        assert update.answer == 1


def test_what_was_lost_is_read_anew(store: Store, write: Callable[..., None]) -> None:
    with closing(subscription(store, lambda: number(store))) as updates:
        assert updates.poll() is not None
        forget(store, updates._changes)
        write({DOCS: [{"_id": "a", "n": 1}]})
        update = updates.poll(10)
        assert update is not None
        assert update.answer == 1


def test_the_pointers_of_views_are_watched() -> None:
    assert of_views({"orders.view.orders": ["o1"], "inventory.view.held": None}) == {
        "orders.view.orders": ["o1"],
        "inventory.view.held": None,
        "orders.checkpoints": {"orders.view"},
        "inventory.checkpoints": {"inventory.view"},
    }


@pytest.fixture
def writer(store: Store, write: Callable[..., None]) -> Iterator[threading.Thread]:
    """Counts up in one document as fast as it can, in one transaction each."""
    if isinstance(store, MemoryStore):
        pytest.skip("in memory nobody writes meanwhile")
    write({DOCS: [{"_id": "a", "n": 0}]})

    def count() -> None:
        for n in range(1, WRITES + 1):
            write({}, {DOCS: [{"_id": "a", "n": n}]})

    thread = threading.Thread(target=count)
    yield thread
    thread.join()


def test_a_writer_that_goes_on_leaves_no_gap_at_the_seam(
    store: Store, writer: threading.Thread
) -> None:
    """Many subscribe while it writes: each sees it rise, and come to its end."""
    writer.start()
    followed = []
    while writer.is_alive():
        followed.append((subscription(store, lambda: number(store), {"a"}), [-1]))
        for updates, seen in followed:
            if (update := updates.poll()) is not None:
                seen.append(update.answer)
    assert len(followed) > 2
    for updates, seen in followed:
        while seen[-1] < WRITES:
            update = updates.poll(10)
            assert update is not None, f"it stays at {seen[-1]}"
            seen.append(update.answer)
        assert seen == sorted(set(seen)), "none twice, none goes back"
        assert updates.poll() is None
        updates.close()
