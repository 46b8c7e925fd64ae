"""A crash between any two effects, for real: SIGKILL, then a new life, then every checker.

Each case has a run of its own (topics, groups, database). Most of its time is spent in waiting:
a killed member stays in its group until its session ends. So the cases of the next few failpoints
are already under way in threads while one is waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from msgspec import Struct

from labkit import stack
from labkit.errors import TimedOut
from labkit.experiments.verify.checkers import History, Verdict, check_all, gather
from labkit.lab import Crashed, Lab
from labkit.messages import Outcome
from labkit.ports import failpoints
from labkit.ports.failpoints import ALL, Crash, Failpoint
from labkit.run.run import Role
from tests.test_checkers import assert_green, mixed, send

CASES = [
    *(("kafka-python", point) for point in ALL if point.startswith(("handler.", "projector."))),
    *(("confluent", point) for point in ALL if point.startswith("handler.")),
    ("mongodb", Failpoint.HANDLER_PRODUCED),
    ("mongodb", Failpoint.HANDLER_OFFSETS),
    ("mongodb", Failpoint.HANDLER_COMMITTED),
    ("mongodb", Failpoint.RELAY_SENT),
]
ROLE_OF: dict[str, Role] = {"handler": "handler", "projector": "projector", "relay": "relay"}
AT_ONCE = 3
QUIET_SECONDS = 30.0


class Survived(Struct):
    """What is left after a crash."""

    crashed: Crashed
    alive: bool
    verdicts: dict[str, Verdict]
    ignored: int
    outcomes: dict[Outcome, int]
    seconds: float


def crash_and_recover(client: str, point: Failpoint, seed: int) -> Survived:
    """Half of the commands, a crash at the failpoint, the other half, then the checkers."""
    started = time.monotonic()
    role = ROLE_OF[point.partition(".")[0]]
    mongo = client == "mongodb"  # the log; its relay and the readers are on kafka-python
    settings = {"log": "mongodb"} if mongo else {"client": client}
    lab = Lab(services=("orders",), partitions=2, **settings)
    try:
        history = History(lab.bus)
        calls = mixed(seed, 240)
        send(history, calls[:120])
        history.acknowledge()
        if role != "handler":
            done = 0
            while done < 120:
                done += len(lab.handler.step())
            lab.handler.close()
            lab._by_hand._parts.clear()
        crashed = lab.crash(role, at=point)
        # The clients hear nothing, so they send some of it again, and go on.
        send(history, calls[60:])
        lab.start()
        history.settle(QUIET_SECONDS)
        wait_until_quiet(lab)
        outcomes = Counter(commit.outcome for commit in gather(lab).commits)
        return Survived(
            crashed,
            psutil.pid_exists(crashed.pid),
            check_all(lab, history),
            lab.ignored_commits(),
            outcomes,
            time.monotonic() - started,
        )
    finally:
        lab.drop()


def wait_until_quiet(lab: Lab) -> None:
    """Until nothing is under way, and the handler has saved its states."""
    deadline = time.monotonic() + QUIET_SECONDS
    roles = ["handler", "projector", *(["relay"] if lab.instances_of("relay") else [])]
    while any(lab.lag(role, "orders") for role in roles):
        assert time.monotonic() < deadline, "the workers never caught up"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def survivals(
    request: pytest.FixtureRequest, servers: stack.Servers
) -> Iterator[dict[tuple[str, Failpoint], Future[Survived]]]:
    # Only those that were chosen, by `-k` for one.
    chosen = {item.name for item in request.session.items}
    name = test_a_sigkill_at_a_failpoint_changes_nothing.__name__
    wanted = [case for case in CASES if f"{name}[{case[0]}-{case[1]}]" in chosen]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {
            case: pool.submit(crash_and_recover, *case, CASES.index(case)) for case in wanted
        }
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.servers
@pytest.mark.parametrize(("client", "point"), CASES)
def test_a_sigkill_at_a_failpoint_changes_nothing(
    survivals: dict[tuple[str, Failpoint], Future[Survived]], client: str, point: Failpoint
) -> None:
    survived = survivals[client, point].result()
    print(f"{survived.seconds:.1f} s")
    assert survived.crashed.signal == signal.SIGKILL
    assert survived.crashed.at == point
    assert not survived.alive
    assert_green(survived.verdicts)
    assert survived.ignored == 0
    assert sum(survived.outcomes.values()) == 300, "a commit for each command that was sent"
    assert survived.outcomes.keys() == {"accepted", "refused", "repeated"}
    assert survived.outcomes["repeated"] >= 60


# --- the failpoints themselves


def test_a_process_dies_once_at_the_place_that_its_environment_names(tmp_path: Path) -> None:
    mark = tmp_path / "hit"
    program = (
        "import os; from labkit.ports import failpoints as f; f.arm_from_environment(os.environ);"
        "f.hit(f.Failpoint.HANDLER_POLLED); print('passed');"
        "f.hit(f.Failpoint.HANDLER_DECIDED); print('not here')"
    )
    armed = {"LABKIT_FAILPOINT": "handler.decided", "LABKIT_FAILPOINT_MARK": str(mark)}

    def life(environment: dict[str, str]) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, "-uc", program],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout.splitlines()

    assert life({}) == (0, ["passed", "not here"])
    assert life(armed) == (-signal.SIGKILL, ["passed"])
    assert mark.exists()
    assert life(armed) == (0, ["passed", "not here"]), "its next life passes"


def test_a_crash_in_one_process_happens_at_its_place_only() -> None:
    with failpoints.armed(Failpoint.HANDLER_DECIDED):
        failpoints.hit(Failpoint.HANDLER_POLLED)
        with pytest.raises(Crash):
            failpoints.hit(Failpoint.HANDLER_DECIDED)
    failpoints.hit(Failpoint.HANDLER_DECIDED)
    assert not issubclass(Crash, Exception), "or a handler could swallow it"


def test_a_failpoint_that_is_never_reached_is_an_error() -> None:
    never = pytest.raises(TimedOut, match=r"handler\.decided was not reached")
    with Lab(backend="memory", services=("orders",)) as lab, never:
        lab.crash("handler", at=Failpoint.HANDLER_DECIDED)
