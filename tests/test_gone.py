"""A server that dies: who waits is told why, and closing is quiet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from labkit import stack
from labkit.errors import Unreachable
from labkit.lab import Lab
from labkit.stack import external
from labkit.stack.gone import explained
from labkit.stack.processes import born
from labkit.stack.state import LabState, ServerProcess, save

pytest_plugins = ("tests.stack_home",)

#: No process has it: it is above the limit of Linux.
NO_PID = 5_000_000
KAFKA_ERROR = "2026-01-31 ERROR LogDirFailureChannel - No space left on device"


def state(pid: int = NO_PID, log_from: int = 0) -> LabState:
    process = ServerProcess(pid, born(pid), 20_001, log_from)
    return LabState(up=True, kafka=process, mongo=process, kafka_port=20_001, mongo_port=20_002)


def test_a_message_about_a_dead_server_has_its_last_error_and_the_space_on_its_disk(
    lab_home: Path,
) -> None:
    logs = lab_home / "labs" / "lab" / "logs"
    logs.mkdir(parents=True)
    (logs / "kafka.log").write_text(f"ERROR of an earlier life\n{KAFKA_ERROR}\n\tat java\nINFO\n")
    save("lab", state())
    said = explained("no answer from 127.0.0.1:20001")
    assert said.startswith("no answer from 127.0.0.1:20001; Kafka of lab 'lab'")
    assert "MB are free on the disk of" in said
    assert said.split("this error: ")[1].startswith(KAFKA_ERROR)
    save("lab", state(log_from=(logs / "kafka.log").stat().st_size))
    assert "no error" in explained("127.0.0.1:20001")
    for other in ("127.0.0.1:200", "127.0.0.1:200011", "10.0.0.1:20001"):
        assert explained(other) == other
    (lab_home / "labs" / "lab" / "state.json").write_text("{")
    assert explained("127.0.0.1:20001") == "127.0.0.1:20001"


def test_a_lab_asks_the_servers_that_it_works_with(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those that the state of a lab on this machine names: they may be elsewhere."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(external, "accept", lambda *at: asked.append(at) or len(asked) == 1)
    with Lab(backend="memory") as lab:
        lab.servers = stack.Servers("lab", "external", "h:1", "mongodb://me:secret@h:2")
        lab.check()
        with pytest.raises(Unreachable, match=r"h:1, mongodb://me:\*\*\*@h:2") as error:
            lab.check()
        assert asked == [("h:1", "mongodb://me:secret@h:2")] * 2
        assert "secret" not in str(error.value)


DYING = """
import os, signal
from labkit import stack
from labkit.lab import Lab
from labkit.errors import Unreachable
from labkit.services.orders import PlaceOrder
lab = Lab(services=["orders"], partitions=1)
lab.bus.listen("orders")
lab.bus.hear("orders", 0)
lab.bus.send(PlaceOrder("o1", "ann", "1997-01-31", 1, 5)).token()
while not lab.handler.step():
    pass
os.kill(stack.status()["servers"][0]["pid"], signal.SIGKILL)
lost = lab.bus.send(PlaceOrder("o2", "ann", "1997-01-31", 1, 5))
try:
    while True:
        lab.bus.hear("orders", 0.5)
except Unreachable as error:
    print(error)
{end}
"""


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.parametrize("end", ["lab.close()", ""])
def test_who_waits_is_told_that_kafka_is_gone_and_all_ends_quietly(
    lab_home: Path, end: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DYING.format(end=end)], capture_output=True, text=True, timeout=120
    )
    assert "Kafka of lab 'lab'" in done.stdout
    assert "MB are free on the disk of" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert not stack.running()
