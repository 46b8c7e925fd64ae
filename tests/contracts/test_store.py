"""What the core relies on in a store: MongoDB and the twin alike."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from msgspec import structs

from labkit import stack
from labkit.adapters.memory_store import MemoryStore
from labkit.adapters.mongo_client import connect, transaction, translated
from labkit.errors import Conflict, Duplicate, Fenced, TooSlow, Unstorable
from labkit.ports.store import Checkpoint, Document, Store, Writes

pytestmark = [pytest.mark.contract, pytest.mark.servers]


@pytest.fixture(params=["memory", "mongo"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    from labkit.adapters.mongo import MongoStore

    made = MongoStore(request.getfixturevalue("servers").mongo_uri, f"t_{uuid.uuid4().hex[:8]}")
    for name in ("docs", "checkpoints"):
        made.index(name, [("n", 1)])
    yield made
    made.drop()
    made.close()


def moved(at: Checkpoint, **fields: int) -> Checkpoint:
    return structs.replace(at, **fields)


def test_a_claim_raises_the_epoch_and_keeps_the_rest(store: Store) -> None:
    first = store.claim("checkpoints", "p:0")
    assert first == Checkpoint("p:0", 1, 0, -1, 0)
    store.advance(
        "checkpoints", [(first, moved(first, position=7, command=3, ignored=1))], Writes()
    )
    assert store.claim("checkpoints", "p:0") == Checkpoint("p:0", 2, 7, 3, 1)
    assert store.checkpoints("checkpoints") == [Checkpoint("p:0", 2, 7, 3, 1)]


def test_writes_and_checkpoint_are_one(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    to = moved(at, position=1)
    store.advance("checkpoints", [(at, to)], Writes({"docs": [{"_id": "a", "n": 1}]}))
    writes = Writes({"docs": [{"_id": "b", "n": 2}]}, {"docs": [{"_id": "a", "n": 3}]})
    store.advance("checkpoints", [(to, moved(to, position=2))], writes)
    assert store.load("docs", ["a", "b", "c"]) == {
        "a": {"_id": "a", "n": 3},
        "b": {"_id": "b", "n": 2},
    }


@pytest.mark.parametrize("field", ["epoch", "position"])
def test_who_lost_the_checkpoint_writes_nothing(store: Store, field: str) -> None:
    at = store.claim("checkpoints", "p:0")
    stale = moved(at, **{field: getattr(at, field) + 1})
    other = store.claim("checkpoints", "p:1")
    with pytest.raises(Fenced):
        store.advance(
            "checkpoints",
            [(other, moved(other, position=5)), (stale, moved(stale, position=9))],
            Writes({"docs": [{"_id": "a"}]}),
        )
    assert store.load("docs", ["a"]) == {}
    assert {c.id: c.position for c in store.checkpoints("checkpoints")} == {"p:0": 0, "p:1": 0}


def test_a_zombie_of_an_older_epoch_is_fenced(store: Store) -> None:
    old = store.claim("checkpoints", "p:0")
    new = store.claim("checkpoints", "p:0")
    with pytest.raises(Fenced):
        store.advance("checkpoints", [(old, moved(old, position=1))], Writes())
    store.advance("checkpoints", [(new, moved(new, position=1))], Writes())


def test_of_two_that_move_on_at_once_one_wins(store: Store) -> None:
    """Whoever meets the other in mid-transaction has a conflict; who comes later is fenced."""
    at = store.claim("checkpoints", "p:0")
    for turn in range(10):
        to, both = moved(at, position=turn + 1), Barrier(2)
        start = both.wait

        def move(who: str, old: Checkpoint = at, new: Checkpoint = to, ready: Any = start) -> bool:
            ready()
            writes = Writes({"docs": [{"_id": f"{who}{new.position}"}]})
            try:
                store.advance("checkpoints", [(old, new)], writes)
            except (Fenced, Conflict):
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            won = dict(zip("ab", pool.map(move, "ab"), strict=True))
        assert sorted(won.values()) == [False, True]
        names = [f"{who}{to.position}" for who in "ab"]
        assert list(store.load("docs", names)) == [f"{w}{to.position}" for w in won if won[w]]
        at = to


def test_a_duplicate_insert_undoes_all(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    to = moved(at, position=1)
    store.advance("checkpoints", [(at, to)], Writes({"docs": [{"_id": "a", "n": 1}]}))
    writes = Writes({"docs": [{"_id": "b", "n": 2}, {"_id": "a", "n": 9}]})
    with pytest.raises(Duplicate):
        store.advance("checkpoints", [(to, moved(to, position=2))], writes)
    assert store.load("docs", ["a", "b"]) == {"a": {"_id": "a", "n": 1}}
    assert store.checkpoints("checkpoints") == [to]


def test_one_transaction_inserts_an_id_once(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    writes = Writes({"docs": [{"_id": "a", "n": 1}, {"_id": "a", "n": 2}]})
    with pytest.raises(Duplicate):
        store.advance("checkpoints", [(at, moved(at, position=1))], writes)
    assert store.load("docs", ["a"]) == {}


def test_find_sorts_and_limits(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    docs = [{"_id": f"d{n}", "kind": "even" if n % 2 == 0 else "odd", "n": n} for n in range(6)]
    store.advance("checkpoints", [(at, moved(at, position=1))], Writes({"docs": docs}))
    found = store.find("docs", {"kind": "even"}, [("n", -1)], 2)
    assert [d["_id"] for d in found] == ["d4", "d2"]
    assert store.count("docs") == 6


def test_find_takes_upper_bounds(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    docs = [{"_id": f"d{n}", "kind": "even" if n % 2 == 0 else "odd", "n": n} for n in range(6)]
    docs.append({"_id": "without", "kind": "even"})
    store.advance("checkpoints", [(at, moved(at, position=1))], Writes({"docs": docs}))
    newest = [("n", -1)]
    found = store.find("docs", {"kind": "even"}, newest, 2, {"n": 3})
    assert [d["_id"] for d in found] == ["d2", "d0"]
    assert [d["_id"] for d in store.find("docs", {}, newest, 1, at_most={"n": 4})] == ["d4"]
    assert store.find("docs", {}, newest, 1, at_most={"n": -1}) == []


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("field", ["n", "at"])
def test_pages_follow_each_other(store: Store, field: str, direction: int) -> None:
    """Documents with one value are told apart by their id, and the last page is empty."""
    at = store.claim("checkpoints", "p:0")
    docs = [{"_id": f"d{n}", "kind": "even", "n": n // 3, "at": f"{n % 3}"} for n in range(9)]
    docs.append({"_id": "odd", "kind": "odd", "n": 1, "at": "1"})
    store.advance("checkpoints", [(at, moved(at, position=1))], Writes({"docs": docs}))
    sort = [(field, direction), ("_id", direction)]
    everything = store.find("docs", {"kind": "even"}, sort)
    assert len(everything) == 9
    found: list[Document] = []
    after: list[object] = []
    while page := store.find("docs", {"kind": "even"}, sort, 2, after=after):
        found += page
        after = [page[-1][field], page[-1]["_id"]]
    assert found == everything


def test_a_page_keeps_to_the_upper_bound(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    docs = [{"_id": f"d{n}", "n": n} for n in range(6)]
    store.advance("checkpoints", [(at, moved(at, position=1))], Writes({"docs": docs}))
    rising = [("n", 1), ("_id", 1)]
    found = store.find("docs", {}, rising, at_most={"n": 4}, after=[2, "d2"])
    assert [d["_id"] for d in found] == ["d3", "d4"]
    falling = [("n", -1), ("_id", -1)]
    found = store.find("docs", {}, falling, at_most={"n": 4}, after=[5, "d5"])
    assert [d["_id"] for d in found] == ["d4", "d3", "d2", "d1", "d0"]


def test_find_gives_only_the_fields_that_were_asked_for(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    docs = [{"_id": "a", "n": 1, "much": [1, 2, 3]}, {"_id": "b", "much": []}]
    store.advance("checkpoints", [(at, moved(at, position=1))], Writes({"docs": docs}))
    found = store.find("docs", {}, [("_id", 1)], fields=["n"])
    assert found == [{"_id": "a", "n": 1}, {"_id": "b"}]


def test_collections_are_known(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    store.advance("checkpoints", [(at, moved(at, position=1))], Writes({"docs": [{"_id": "a"}]}))
    assert set(store.collections()) >= {"docs", "checkpoints"}


def test_totals_sum_by_key(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    rows = [("a:0", "a", 2), ("a:1", "a", 3), ("b:0", "b", 9), ("c:0", "c", 5)]
    docs = [{"_id": i, "who": w, "cents": c} for i, w, c in rows]
    store.advance("checkpoints", [(at, moved(at, position=1))], Writes({"docs": docs}))
    assert store.totals("docs", "who", ["cents"]) == [
        {"_id": "a", "cents": 5},
        {"_id": "b", "cents": 9},
        {"_id": "c", "cents": 5},
    ]
    assert [d["_id"] for d in store.totals("docs", "who", ["cents"], "cents")] == ["b", "a", "c"]
    assert len(store.totals("docs", "who", ["cents"], "cents", 1)) == 1
    assert store.totals("docs", "who", ["cents"], where={"who": "a"}) == [{"_id": "a", "cents": 5}]
    assert store.totals("docs", "who", ["cents"], where={"who": "nobody"}) == []


def test_the_store_keeps_copies(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    document = {"_id": "a", "tags": ["x"]}
    store.advance("checkpoints", [(at, moved(at, position=1))], Writes({"docs": [document]}))
    document["tags"].append("y")
    store.load("docs", ["a"])["a"]["tags"].append("z")
    assert store.load("docs", ["a"])["a"]["tags"] == ["x"]


def test_a_snapshot_sees_one_instant(store: Store) -> None:
    at = store.claim("checkpoints", "p:0")
    store.advance("checkpoints", [], Writes({"docs": [{"_id": "a", "n": 1}, {"_id": "b", "n": 1}]}))
    with store.snapshot() as then:
        assert then.load("docs", ["a"]) == {"a": {"_id": "a", "n": 1}}
        writes = Writes({"docs": [{"_id": "c", "n": 5}]}, {"docs": [{"_id": "a", "n": 2}]})
        writes.deletes["docs"] = ["b"]
        store.advance("checkpoints", [(at, moved(at, position=9))], writes)
        assert store.load("docs", ["a"])["a"]["n"] == 2
        assert then.load("docs", ["a", "b", "c"]) == {
            "a": {"_id": "a", "n": 1},
            "b": {"_id": "b", "n": 1},
        }
        assert [d["_id"] for d in then.find("docs", {}, [("n", 1), ("_id", 1)])] == ["a", "b"]
        assert then.totals("docs", "n", ["n"]) == [{"_id": 1, "n": 2}]
        assert then.count("docs") == 2
        assert then.checkpoints("checkpoints") == [at]
    with store.snapshot() as now:
        assert now.checkpoints("checkpoints") == [moved(at, position=9)]
        assert set(now.load("docs", "abc")) == {"a", "c"}


def test_what_is_discarded_is_gone(store: Store) -> None:
    store.advance("checkpoints", [], Writes({"docs": [{"_id": "a"}]}))
    store.discard(["docs", "never there"])
    assert store.count("docs") == 0
    assert "docs" not in store.collections()


def test_a_checkpoint_can_be_taken_away(store: Store) -> None:
    """And with it the partition of whoever held it."""
    at = store.claim("checkpoints", "p:0")
    store.advance("checkpoints", [], Writes(deletes={"checkpoints": ["p:0"]}))
    assert store.checkpoints("checkpoints") == []
    with pytest.raises(Fenced):
        store.advance("checkpoints", [(at, moved(at, position=1))], Writes())


@pytest.mark.parametrize("value", [2**63, {1: "a number as a name"}, {"\0": 1}, object()])
def test_a_document_that_cannot_be_stored_says_so(store: Store, value: Any) -> None:
    with pytest.raises(Unstorable, match="cannot hold"):
        store.advance("checkpoints", [], Writes({"docs": [{"_id": "a", "n": value}]}))
    assert store.load("docs", ["a"]) == {}


@pytest.mark.parametrize("number", [1, 2**31, 2**63 - 1, -(2**63)])
def test_numbers_are_plain_ones_however_large(store: Store, number: int) -> None:
    store.advance("checkpoints", [], Writes({"docs": [{"_id": "a", "n": number, "m": [number]}]}))
    (found,) = [*store.load("docs", ["a"]).values()]
    assert (found["n"], found["m"]) == (number, [number])
    assert type(found["n"]) is type(found["m"][0]) is int
    assert type(store.find("docs", {"n": number})[0]["n"]) is int
    (total,) = store.totals("docs", "_id", ["n"])
    assert type(total["n"]) is int


@pytest.mark.parametrize(("count", "bytes"), [(3, 6_000_000), (10_001, 1)])
def test_more_than_one_command_may_hold_is_one_transaction(
    store: Store, count: int, bytes: int
) -> None:
    """MongoDB takes 16 MB in a command, and the store 10,000 writes."""
    documents = [{"_id": str(n), "text": "x" * bytes, "n": 1} for n in range(count)]
    at = store.claim("checkpoints", "p:0")
    to = moved(at, position=1)
    store.advance("checkpoints", [(at, to)], Writes({"docs": documents}))
    replaces = Writes(replaces={"docs": [d | {"n": 2} for d in documents]})
    store.advance("checkpoints", [(to, moved(to, position=2))], replaces)
    assert [found["n"] for found in store.find("docs", {}, fields=["n"])] == [2] * count
    gone = Writes(replaces={"docs": [*documents, {"_id": "none"}]})
    with pytest.raises(Conflict):
        store.advance("checkpoints", [], gone)
    assert {found["n"] for found in store.find("docs", {}, fields=["n"])} == {2}
    again = Writes({"docs": [{"_id": "new"}, *documents]})
    with pytest.raises(Duplicate):
        store.advance("checkpoints", [], again)
    assert store.count("docs") == count


def test_what_is_not_there_cannot_be_replaced(store: Store) -> None:
    with pytest.raises(Conflict):
        store.advance("checkpoints", [], Writes(replaces={"docs": [{"_id": "a"}]}))
    assert store.count("docs") == 0


@pytest.mark.servers
def test_a_transaction_that_is_over_before_its_end_is_no_conflict(servers: stack.Servers) -> None:
    client, db = connect(servers.mongo_uri, "test_too_slow")
    limit = {"setParameter": 1, "transactionLifetimeLimitSeconds": 1}
    before = client.admin.command(limit)["was"]
    try:
        db["docs"].insert_one({"_id": "there"})
        with pytest.raises(TooSlow, match="over before its end"):  # noqa: PT012, SIM117
            with translated("write"), transaction(client) as session:
                db["docs"].insert_one({"_id": "a"}, session=session)
                time.sleep(4)
                db["docs"].insert_one({"_id": "b"}, session=session)
        assert db["docs"].count_documents({}) == 1
    finally:
        client.admin.command({**limit, "transactionLifetimeLimitSeconds": before})
        client.drop_database("test_too_slow")
        client.close()
