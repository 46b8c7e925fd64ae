"""Parked streams: what a user sees of them, and how they go on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from labkit import stack
from labkit.errors import CheckFailed, Refused, UsageError
from labkit.lab import Lab
from labkit.messages import Envelope, encode
from labkit.ports.ids import new_id
from labkit.services.orders import ORDERS, OrderById, PayOrder, PlaceOrder, ShipOrder

GARBAGE = b"\xff\x00 not JSON"
#: What would be markup and a code of the terminal, in a table.
CODES = b"[/bold]\x1b\xff"
UNKNOWN = b'{"id":"x1","body":{"type":"Teleport","order_id":"o1"}}'


def place(order: str, cents: int = 100) -> PlaceOrder:
    return PlaceOrder(order, "ann", "1997-01-31", 1, cents)


def put(lab: Lab, key: bytes, value: bytes, partition: int | None = None) -> tuple[int, int]:
    sender = lab.log_broker.sender()
    try:
        return sender.send(lab.topic_name("orders.commands"), key, value, partition).result(20)
    finally:
        sender.close()


def work(lab: Lab) -> None:
    while lab.handler.step(0):
        pass
    lab.handler.flush()
    while lab.projector.step(0):
        pass


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=["orders"]) as made:
        yield made


def send(lab: Lab, *commands: Any) -> None:
    for command in commands:
        lab.bus.send(command).token()


def status(lab: Lab) -> dict[str, str]:
    work(lab)
    return {d["_id"]: d["status"] for d in lab.store.find("orders.view.orders", {})}


@pytest.mark.parametrize("poison", [GARBAGE, UNKNOWN, b"", b"[" * 100_000])
def test_poison_parks_its_stream_alone_until_it_is_dropped(lab: Lab, poison: bytes) -> None:
    send(lab, place("o1"), place("o2"))
    _, head = put(lab, b"o1", poison)
    send(lab, PayOrder("o1", 100), ShipOrder("o1"), PayOrder("o2", 100), ShipOrder("o2"))
    assert status(lab) == {"o1": "placed", "o2": "shipped"}
    (row,) = lab.dead_letters().to_dict("records")
    assert list(row) == ["service", "stream", "partition", "waiting", "since", "by", "reason"]
    assert (row["service"], row["stream"], row["waiting"]) == ("orders", "o1", 3)
    assert row["by"] == "handler"
    assert "not a message" in row["reason"]
    commands = lab.dead_letter("o1")
    assert commands["offset"][0] == head
    assert list(commands["command"])[1:] == ["PayOrder", "ShipOrder"]
    assert commands["body"][1] == {"order_id": "o1", "cents": 100}
    assert lab.replay("o1").accepted, "it goes on, and gets stuck at the same place"
    assert status(lab)["o1"] == "placed"
    assert lab.dead_letters()["waiting"].to_list() == [3]
    assert lab.drop_dead_letter("o1").accepted
    assert status(lab) == {"o1": "shipped", "o2": "shipped"}
    assert lab.dead_letters().empty


@pytest.mark.parametrize("look", ["dead_letter", "replay", "drop_dead_letter"])
def test_by_hand_each_look_knows_what_the_last_step_has_parked(lab: Lab, look: str) -> None:
    put(lab, b"o1", GARBAGE)
    lab.handler._flush_seconds = 1e9
    lab.handler.step(0)
    assert getattr(lab, look)("o1") is not None


def test_a_stream_that_goes_on_while_somebody_looks_is_shown_as_it_was(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, head = put(lab, b"o1", GARBAGE)
    work(lab)
    letters, load = lab.letters("orders"), lab.store.load

    def and_then_it_goes_on(collection: str, ids: Any) -> Any:
        monkeypatch.undo()
        found = load(collection, ids)
        lab.drop_dead_letter("o1")
        work(lab)
        return found

    monkeypatch.setattr(lab.store, "load", and_then_it_goes_on)
    assert [command.offset for command in letters.waiting("o1")] == [head]
    with pytest.raises(UsageError, match="is not parked"):
        letters.waiting("o1")
    letters.close()


def test_a_rule_with_a_bug_is_replayed_when_it_is_mended(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(lab, place("o1"))
    with monkeypatch.context() as patch:
        patch.setitem(ORDERS.decide, PayOrder, lambda *_: 1 / 0)  # type: ignore[index]
        send(lab, PayOrder("o1", 100), ShipOrder("o1"))
        assert status(lab) == {"o1": "placed"}
        assert lab.dead_letters()["reason"].to_list() == ["ZeroDivisionError: division by zero"]
    lab.replay("o1")
    assert status(lab) == {"o1": "shipped"}


def test_behind_the_poison_there_may_be_more(lab: Lab) -> None:
    send(lab, place("o1"))
    for n in range(3):
        put(lab, b"o1", GARBAGE + bytes([n]))
    send(lab, PayOrder("o1", 100))
    for left in (4, 3, 2):
        work(lab)
        assert lab.dead_letters()["waiting"].to_list() == [left]
        lab.drop_dead_letter("o1")
    assert status(lab)["o1"] == "placed"
    assert lab.dead_letters().empty
    assert lab.history("o1")["event"].dropna().to_list() == ["OrderPlaced.v2", "OrderPaid"]


@pytest.mark.parametrize("key", [b"\xff\xfe", b"", b"\x00o1", b"k" * 5_000, "ö".encode() * 150])
def test_a_key_that_is_no_stream_gets_a_name_of_its_own(lab: Lab, key: bytes) -> None:
    put(lab, key, GARBAGE)
    put(lab, key, encode(Envelope(new_id(), place(key.decode("utf-8", "replace")))))
    send(lab, place("o1"))
    assert "o1" in status(lab)
    for left in (2, 1):
        if lab.dead_letters().empty:  # the key is one, only a long one
            assert left == 1
            break
        (row,) = lab.dead_letters().to_dict("records")
        assert row["waiting"] == left
        lab.drop_dead_letter(row["stream"])
        work(lab)
    assert lab.dead_letters().empty


def test_a_record_in_a_foreign_partition_does_no_harm(lab: Lab) -> None:
    """Two handlers would otherwise write the state of one stream."""
    send(lab, place("o1"))
    home = lab.handler._log.partitions_for([b"o1"])[0]
    work(lab)
    for partition in range(lab.partitions):
        if partition != home:
            put(lab, b"o1", encode(Envelope(new_id(), PayOrder("o1", 100))), partition)
    send(lab, PayOrder("o1", 100))
    work(lab)
    assert lab.ask(OrderById("o1"))["payment"] == "paid"  # type: ignore[index]
    assert len(lab.dead_letters()) == lab.partitions - 1
    for stream in lab.dead_letters()["stream"]:
        lab.drop_dead_letter(stream)
        work(lab)
    assert lab.dead_letters().empty
    assert lab.ignored_commits() == 0


def test_nobody_drops_what_he_has_not_seen(lab: Lab) -> None:
    send(lab, place("o1"))
    put(lab, b"o1", GARBAGE)
    put(lab, b"o1", UNKNOWN)
    work(lab)
    seen = lab.letters("orders")
    first = seen.find("o1")
    lab.drop_dead_letter("o1")
    while lab.handler.step(0):  # and the state is not saved: who looks sees the old one
        pass
    lab._stepping = "orders"
    assert seen.find("o1") == first
    with pytest.raises(Refused, match="is first, not"):
        seen.release("o1", drop=True)
    lab._stepping = None
    seen.close()
    assert lab.dead_letters()["waiting"].to_list() == [1]


@pytest.mark.parametrize(
    ("value", "command", "body"),
    [
        (b'{"id":"x","body":{"type":"Go","n":[1,null]}}', "Go", {"n": [1, None]}),
        (b"\xff\x00\x1b[2J\n", "", r"\xff\x00\x1b[2J\n"),
        (b'{"id":"x","body":{"type":"Go","n":"\\ud800"}}', "", None),  # half a character
        (b'{"id":"x","body":[["type","Go"]]}', "", '{"id":"x","body":[["type","Go"]]}'),
        (b"7", "", "7"),
        (b"x" * 501, "", "x" * 500 + "... (501 bytes)"),
    ],
)
def test_what_waits_is_shown_as_far_as_it_can_be_read(
    lab: Lab, value: bytes, command: str, body: Any
) -> None:
    put(lab, b"o1", value)
    work(lab)
    (row,) = lab.dead_letter("o1").to_dict("records")
    assert row["command"] == command
    assert row["body"] == (value.decode() if body is None else body)
    json.dumps(row["body"], ensure_ascii=False).encode()


def test_the_stream_of_a_command_that_is_gone_goes_on(lab: Lab) -> None:
    """Topics are made to forget nothing; but others may have changed that."""
    for key in (b"o1", b"\xff"):
        put(lab, key, GARBAGE)
    work(lab)
    for slots in lab.broker.partitions(lab.topic_name("orders.commands")):  # type: ignore[attr-defined]
        slots[:] = [type(slot)(None) for slot in slots]
    assert lab.dead_letter("o1")["body"].to_list() == ["(gone)"]
    lab.drop_dead_letter("o1")
    work(lab)
    (odd,) = lab.dead_letters()["stream"]
    with pytest.raises(CheckFailed, match="is gone from"):
        lab.drop_dead_letter(odd)


def test_a_release_says_where_the_stream_is_stuck_again(lab: Lab) -> None:
    send(lab, place("o1"))
    put(lab, b"o1", GARBAGE)
    send(lab, PayOrder("o1", 100))
    _, second = put(lab, b"o1", GARBAGE)
    send(lab, ShipOrder("o1"))
    work(lab)
    lab.handler.flush()
    with closing(lab.letters("orders")) as letters:
        lab._stepping = "orders"
        assert "stuck again at offset 1: not a message" in letters.let_go("o1")
        lab.handler.flush()
        assert letters.let_go("o1", drop=True).startswith(f"stuck again at offset {second}: ")
        lab.handler.flush()
        assert letters.let_go("o1", drop=True) == ""


def test_what_has_waited_longest_comes_first(lab: Lab) -> None:
    """More commands to its stream do not make it look fresh."""
    for stream in (b"o2", b"o1"):
        put(lab, stream, GARBAGE)
        work(lab)
        time.sleep(0.01)
    first = lab.dead_letters()["since"].to_list()
    send(lab, PayOrder("o2", 100))
    work(lab)
    found = lab.dead_letters()
    assert found["stream"].to_list() == ["o2", "o1"]
    assert found["since"].to_list() == first


def test_errors_name_the_value(lab: Lab) -> None:
    send(lab, place("o1"))
    work(lab)
    for stream, what in (("o1", "is not parked"), ("o9", "has no commits")):
        with pytest.raises(UsageError, match=f"stream '{stream}' of orders {what}"):
            lab.replay(stream)
    with pytest.raises(UsageError, match="no service 'bank'"):
        lab.dead_letters("bank")


# --- on real servers, by the command line


def labkit(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "labkit", "dead-letters", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "200"},
        timeout=120,
        check=False,
    )
    assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def until(true: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


@pytest.mark.servers
@pytest.mark.parametrize("log", ["kafka", pytest.param("mongodb", marks=pytest.mark.slow)])
def test_the_command_line_shows_and_releases(
    servers: stack.Servers, tmp_path: Path, log: str
) -> None:
    with Lab(services=["orders"], start=False, log=log) as lab:
        lab.start()
        run, file = ("--run", lab.run), tmp_path / "letters.json"
        assert lab.bus.execute(place("o1")).accepted
        for key in (b"o1", b"\xff\xfe"):
            put(lab, key, CODES)
        assert lab.bus.execute(PayOrder("o1", 100)).outcome == "parked"
        until(lambda: len(lab.dead_letters()) == 2)
        until(lambda: lab.dead_letters()["waiting"].max() == 2)
        listed = labkit("list", *run, "--json", str(file))
        assert "not a message" in listed
        odd, o1 = sorted(json.loads(file.read_bytes()), key=lambda letter: letter["stream"])
        assert (o1["stream"], o1["waiting"], o1["service"]) == ("o1", 2, "orders")
        shown = labkit("show", "o1", *run)
        assert "PayOrder" in shown
        assert r"[/bold]\x1b\xff" in shown
        assert "give --yes" in labkit("drop", "o1", *run, code=2)
        again = labkit("replay", "o1", *run, code=1)
        assert re.search(r"o1: stuck again at offset \d+: not a message of this schema", again)
        assert "goes on" not in again
        until(lambda: lab.dead_letters()["waiting"].to_list().count(2) == 1)
        assert labkit("replay", "--all", *run, code=1).count("stuck again at offset") == 2
        until(lambda: sorted(lab.dead_letters()["waiting"]) == [1, 2])
        assert "without the first command" in labkit("drop", "o1", "--yes", *run)
        name = "~" + odd["stream"][1:13]
        assert name in listed
        labkit("drop", name, "--yes", *run)
        until(lambda: lab.dead_letters().empty)
        until(lambda: (lab.ask(OrderById("o1")) or {})["payment"] == "paid")
        assert f"no stream of run {lab.run} is parked" in labkit("list", *run)
        assert "stream 'o1' of orders is not parked" in labkit("show", "o1", *run, code=2)
        for other in ("bank", "sales"):
            said = labkit("list", *run, "--service", other, code=2)
            assert f"this run has no service {other!r}, but orders" in said
        assert "has no run 'r0000000'" in labkit("list", "--run", "r0000000", code=2)
        assert "name one stream or give --all" in labkit("replay", *run, code=2)
        assert "no stream of orders is parked" in labkit("replay", "--all", *run)
        put(lab, b"o1", GARBAGE)
        until(lambda: not lab.dead_letters().empty)
        lab.stop()
        said = labkit("drop", "o1", "--yes", "--timeout", "1", *run, code=1)
        assert "is a handler of 'orders' running?" in said
        lab.drop()
