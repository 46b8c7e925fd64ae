"""Pages: each row once, whatever is inserted between two of them; bad cursors are refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from labkit.adapters.memory_store import MemoryStore
from labkit.errors import UsageError
from labkit.ports.store import Writes
from labkit.read.pages import MAX_PAGE, Page, page

BY_CENTS = [("cents", 1), ("_id", 1)]


def filled(*documents: tuple[str, int]) -> MemoryStore:
    store = MemoryStore()
    add(store, *documents)
    return store


def add(store: MemoryStore, *documents: tuple[str, int]) -> None:
    rows = [{"_id": id, "cents": cents, "kind": "k"} for id, cents in documents]
    store.advance("checkpoints", [], Writes({"docs": rows}))


def ask(store: MemoryStore, cursor: str = "", limit: int = 2, **more: Any) -> Page:
    return page(store, "docs", {"kind": "k"}, more.pop("sort", BY_CENTS), limit, cursor, **more)


def ids(found: Page) -> list[str]:
    return [row["_id"] for row in found.rows]


def test_a_page_that_is_just_full_is_the_last() -> None:
    store = filled(("a", 1), ("b", 1), ("c", 1), ("d", 2))
    first = ask(store)
    assert ids(first) == ["a", "b"]
    second = ask(store, first.cursor)
    assert (ids(second), second.cursor) == (["c", "d"], "")
    assert ask(filled()) == Page([])


def test_what_comes_between_two_pages_moves_nothing() -> None:
    """With a count of rows instead, "b" would come again and then "c" be left out."""
    store = filled(("a", 1), ("b", 1), ("c", 1), ("d", 2))
    cursor = ask(store).cursor
    add(store, ("0", 1), ("bb", 1), ("e", 0))
    assert ids(ask(store, cursor, 9)) == ["bb", "c", "d"]
    store.advance("checkpoints", [], Writes(deletes={"docs": ["a", "b"]}))
    assert ids(ask(store, cursor, 9)) == ["bb", "c", "d"], "even without the row it stands on"


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
def test_a_page_has_bounds(limit: int) -> None:
    with pytest.raises(UsageError, match=f"from 1 to {MAX_PAGE}, got {limit}"):
        ask(filled(), limit=limit)


def made(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "?",
        "ä",
        "\ud800",
        "abc",
        made("{}"),
        made("[[],[]]"),
        made('[[["cents",1],["_id",1]],["1","a"]]'),
        made('[[["cents",1],["_id",1]],[1,2]]'),
        made('[[["cents",1],["_id",1]],[1]]'),
        made('[[["cents",1],["_id",1]],[-1,"a"]]'),
        made('[[["cents",1],["_id",1]],[9223372036854775808,"a"]]'),
        made('[[["cents",1],["_id",1]],[true,"a"]]'),
        made('[[["cents",1],["_id",1]],[{"$gt":0},"a"]]'),
    ],
)
def test_a_cursor_that_no_page_gave_is_refused(cursor: str) -> None:
    with pytest.raises(UsageError, match="cursor"):
        ask(filled(("a", 1)), cursor)


def test_a_cursor_holds_for_its_own_sorting() -> None:
    store = filled(("a", 1), ("b", 1), ("c", 1))
    with pytest.raises(UsageError, match="of another query"):
        ask(store, ask(store).cursor, sort=[("cents", -1), ("_id", -1)])
