"""The bench of snapshots and restarts, tiny, on real servers: shape and checks, no times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from msgspec import structs

from labkit import stack
from labkit.cli import main
from labkit.errors import UsageError
from labkit.experiments.bench import restart
from labkit.experiments.bench.restart_sizes import Sizes
from labkit.experiments.bench.takeover import tail_streams
from labkit.log.snapshots import Snapshot
from labkit.ports.store import Document
from labkit.write.states import States
from tests.test_cli import labkit, labkit_here, refused

TINY = "0.001"  # the smallest that is permitted: a snapshot of every version
ARMS = {"short_log", "long_log"}


def test_sizes_shrink_together() -> None:
    tiny = Sizes().scaled(0.002)
    assert (tiny.events, tiny.snapshot_every, tiny.events_after) == (200, 2, 1)
    assert (tiny.streams, tiny.tail, tiny.times_longer, tiny.rounds) == (400, 10, 5, 5)
    assert Sizes().scaled(1) == Sizes()
    for scale in (0, -1, 1.1, float("nan")):
        with pytest.raises(UsageError, match=f"--scale must be from 0.001 to 1, got {scale:g}"):
            Sizes().scaled(scale)


def test_the_tail_is_spread_over_the_streams() -> None:
    for sizes in (Sizes(), Sizes().scaled(0.001), Sizes().scaled(0.37)):
        tail = tail_streams(sizes)
        assert len(tail) == sizes.tail
        assert 0.7 * sizes.streams < tail[-1] < sizes.streams


def test_bad_options_are_said_before_the_run(home: Path, tmp_path: Path) -> None:
    refused(labkit_here("bench", "restart", "--scale", "7"), "--scale", "7")
    refused(labkit_here("bench", "restart", "--client", "owl"), "owl", "kafka-python")
    refused(labkit_here("bench", "restart", "--json", str(tmp_path)), str(tmp_path))


@pytest.mark.servers
@pytest.mark.usefixtures("topics_dropped")
@pytest.mark.parametrize(
    "client", ["kafka-python", pytest.param("confluent", marks=pytest.mark.slow)]
)
def test_a_tiny_bench(servers: stack.Servers, tmp_path: Path, client: str) -> None:
    file = tmp_path / "new" / "r.json"
    done = labkit("bench", "restart", "--scale", TINY, "--client", client, "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["same_state"] is True
    assert found["client"] == client
    assert found["streams"] == found["sizes"]["streams"] == 200
    assert {"kafka-python", "kafka", "mongodb", "python", "labkit"} <= set(found["versions"])
    assert {"cores", "memory_bytes"} == set(found["machine"])
    assert found["snapshot_speedup"] >= 0  # so small, it is rounded away
    snapshots = found["snapshots"]
    assert (snapshots["events"], snapshots["taken"]) == (101, 101)
    assert found["restart_ratio"] > 0
    assert found["replay_ratio"] > 0
    assert set(found["restart_s"]) == set(found["replay_s"]) == ARMS
    restarts = found["restarts"]
    assert restarts["commits"] == {"short_log": 205, "long_log": 1_005}
    assert restarts["saved_streams"] == dict.fromkeys(ARMS, 200)
    assert restarts["replayed"] == [5], "each restart finds the same tail"
    for times in (
        snapshots["from_snapshot_s"],
        snapshots["from_start_s"],
        *restarts["restart_s"].values(),
        *restarts["replay_s"].values(),
    ):
        assert len(times["each"]) == 5
        assert times["min"] <= times["median"] <= times["max"]
    for arm in ARMS:  # no race: the replay is a part of the restart
        assert found["replay_s"][arm] < found["restart_s"][arm]


# --- planted bugs: the bench ends red, and its JSON is written all the same


def wrong_state(self: Snapshot, fold: int) -> Document:
    found = DOCUMENT(self, fold)
    return {**found, "state": {**found["state"], "name": "a pencil"}}


def saves_at_once(self: States) -> None:
    if self.dirty:
        self.flush()


DOCUMENT = Snapshot.document
BUGS = {
    "a snapshot with a wrong state": (Snapshot, "document", wrong_state),
    "a tail that the first restart saves": (States, "flush_if_due", saves_at_once),
}


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_turns_the_bench_red(
    servers: stack.Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bug: str,
) -> None:
    holder, name, planted = BUGS[bug]
    monkeypatch.setattr(holder, name, planted)
    monkeypatch.setattr(restart, "calm_gc", lambda: None)
    scaled = Sizes.scaled
    monkeypatch.setattr(
        Sizes, "scaled", lambda self, scale: structs.replace(scaled(self, scale), rounds=1)
    )
    file = tmp_path / "r.json"
    monkeypatch.setattr(
        sys, "argv", ["labkit", "bench", "restart", "--scale", TINY, "--json", str(file)]
    )
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert json.loads(file.read_text())["same_state"] is False
    assert "a state differs" in capsys.readouterr().err
