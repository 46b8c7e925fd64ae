"""C10 by hand: a history is told, and what it must find in it."""

from __future__ import annotations

import pytest

from labkit.experiments.bench.sessions import Read, Write, sessions
from labkit.read.freshness import STRATEGIES, Strategy

PROMISING: list[Strategy] = ["token", "version", "linearizable"]


def read(
    version: int,
    began: int,
    client: str = "ann",
    strategy: Strategy = "eventual",
    *,
    stream: str = "s",
    session: bool = False,
) -> Read:
    return Read(client, stream, strategy, version, began, began + 5, session)


def write(version: int, at: int, client: str = "ann", stream: str = "s") -> Write:
    return Write(client, stream, version, at)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_own_write_that_is_not_shown(strategy: Strategy) -> None:
    found = sessions([read(1, 30, strategy=strategy)], [write(1, 10), write(2, 20)])
    assert found.ok == (strategy == "eventual")
    if not found.ok:
        assert "own writes" in found.violations[0]
        assert "'ann' (" in found.violations[0]
        assert "version 1 of 's' after version 2" in found.violations[0]
    assert sessions([read(2, 30, strategy=strategy)], [write(1, 10), write(2, 20)]).ok


def test_a_session_promises_own_writes_whatever_the_strategy() -> None:
    assert not sessions([read(1, 30, session=True)], [write(2, 20)]).ok
    assert sessions([read(2, 30, session=True)], [write(2, 20)]).ok


@pytest.mark.parametrize("strategy", PROMISING)
def test_a_write_that_was_not_told_before_the_read_is_no_matter(strategy: Strategy) -> None:
    assert sessions([read(1, 15, strategy=strategy)], [write(1, 10), write(2, 15)]).ok
    assert sessions([read(1, 15, strategy=strategy)], [write(1, 10), write(2, 20, "bob")]).ok
    assert not sessions([read(1, 16, strategy=strategy)], [write(1, 10), write(2, 15)]).ok


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_linearizable_promises_the_writes_of_others(strategy: Strategy) -> None:
    found = sessions([read(1, 30, strategy=strategy)], [write(1, 10), write(2, 20, "bob")])
    assert found.ok == (strategy != "linearizable")
    if not found.ok:
        assert found.violations[0].startswith("others' writes")


def test_a_session_never_goes_back() -> None:
    reads = [read(3, 10), read(2, 20, session=True)]
    assert not sessions(reads, []).ok
    assert sessions([read(3, 10), read(2, 20)], []).ok, "eventual reads may"
    assert sessions([read(3, 10), read(2, 20, "bob", session=True)], []).ok, "another session"
    assert sessions([read(3, 10), read(2, 20, stream="t", session=True)], []).ok, "another stream"
    assert sessions([read(3, 10), read(3, 20, session=True)], []).ok


def test_linearizable_reads_of_all_clients_go_one_way() -> None:
    first = read(3, 10, "bob", "linearizable")
    found = sessions([first, read(2, 20, strategy="linearizable")], [])
    assert [line.split(":")[0] for line in found.violations] == ["monotonic"]
    assert sessions([first, read(2, 12, strategy="linearizable")], []).ok, "at the same time"
    assert sessions([read(3, 10, "bob"), read(2, 20, strategy="linearizable")], []).ok
    assert sessions([first, read(2, 20, strategy="token")], []).ok


def test_the_order_of_the_lists_does_not_matter() -> None:
    reads = [read(2, 40, strategy="token"), read(1, 15, strategy="token")]
    writes = [write(2, 30), write(1, 10)]
    assert sessions(reads, writes).ok
    assert not sessions([read(1, 40, strategy="token"), reads[1]], writes).ok


def test_every_promise_is_counted() -> None:
    """A checker that looked at nothing is no witness."""
    assert sessions([read(1, 30)], [write(1, 10)]).checked == 0
    assert sessions([read(1, 30, strategy="token")], [write(1, 10)]).checked == 1
    assert sessions([read(1, 30, strategy="linearizable")], [write(1, 10)]).checked == 3
    assert sessions([read(1, 30, strategy="linearizable", session=True)], []).checked == 3
