"""Servers end with their last user, whoever started them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from labkit import stack
from labkit.errors import Unreachable
from labkit.lab import Lab
from labkit.stack import native
from labkit.stack.state import LabState, Lease, load, save

pytest_plugins = ("tests.stack_home",)

NOTEBOOK = """
import sys
from labkit.lab import Lab
from labkit.services.orders import PlaceOrder
lab = Lab(services=["orders"], partitions=1)
print(lab.run, flush=True)
for line in sys.stdin:
    sent = lab.bus.send(PlaceOrder("o1", "ann", "1997-01-31", 1, 5)).token()
    while not lab.handler.step():
        pass
    print(lab.bus.answer(sent).outcome, flush=True)
lab.close()
"""


def notebook() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", NOTEBOOK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert said(process).startswith("r")
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.servers
def test_the_notebook_that_started_the_servers_ends_and_the_other_goes_on(lab_home: Path) -> None:
    first, second = notebook(), notebook()
    try:
        first.communicate(timeout=60)
        assert first.returncode == 0
        assert second.stdin is not None
        second.stdin.write("step\n")
        second.stdin.flush()
        assert said(second) == "accepted"
        with Lab(services=[], start=False):
            second.kill()
            second.communicate()
            assert stack.running(), "a user is left"
        assert stack.running() is None, "a killed process uses nothing"
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


# --- without servers


@pytest.fixture
def started(lab_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Which servers run: those of one lab, which are only noted here."""
    up: list[bool] = []
    monkeypatch.setattr(native, "start", lambda *_: up or up.append(True))
    monkeypatch.setattr(native, "shut_down", lambda *_: bool(up) and up.clear() is None)
    monkeypatch.setattr(native, "is_up", lambda *_: bool(up))
    monkeypatch.setattr(native, "alive", lambda *_: (None, None))
    yield up
    assert not stack.users()


def test_servers_that_a_lab_started_stop_with_their_last_user(started: list[bool]) -> None:
    stack.borrow(run="r1")
    stack.borrow(run="r2", start=False)
    with stack.borrowed():
        assert [lease.run for lease in stack.users()] == ["r1", "r2", ""]
        stack.give_back(run="r1")
    assert started
    stack.give_back(run="r2")
    assert not started
    stack.give_back(run="r2")
    with pytest.raises(Unreachable, match="run `labkit up`"):
        stack.borrow(start=False)


@pytest.mark.parametrize("first", ["up", "borrow"])
def test_what_up_started_or_found_stays_until_down(started: list[bool], first: str) -> None:
    if first == "borrow":
        stack.borrow()
        stack.up()
    else:
        stack.up()
        stack.borrow()
    stack.give_back()
    assert started
    stack.down()
    with stack.borrowed():
        assert started
    assert not started, "what was down belongs to who starts it again"


def test_a_process_that_is_gone_or_another_with_its_pid_uses_nothing(started: list[bool]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # still listed, as a zombie
    with stack.borrowed():
        (mine,) = stack.users()
        others = [Lease(dead.pid, mine.started, ""), Lease(mine.pid, mine.started - 5, "")]
        state = load("lab")
        save("lab", msgspec.structs.replace(state, leases=[*others, *state.leases]))
        assert stack.users() == [mine]
    assert not started
    dead.wait()


def test_a_process_that_ends_without_closing_gives_back_what_it_uses(lab_home: Path) -> None:
    code = """
from labkit import stack
from labkit.stack import native
native.start = lambda *_: None
native.is_up = lambda *_: True
native.shut_down = lambda *_: print("stopped")
stack.borrow()
"""
    save("lab", LabState(up=True, leased=True))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "stopped\n"
    assert not load("lab").up
