"""Bursts: the timetable, the figures on hand-made rows, and the bench on real servers."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from labkit import stack
from labkit.api.protection import OFF, Protection
from labkit.errors import UsageError
from labkit.experiments.burst import bench, clients, figures
from labkit.experiments.burst.arm import Call, Client, Told
from labkit.experiments.burst.clients import Order, check_offer
from labkit.experiments.burst.mechanisms import MECHANISMS, chosen
from labkit.experiments.burst.report import summed
from labkit.experiments.burst.timetable import READS, Burst, timetable
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.lost_writes import lost_writes
from labkit.messages import Answer, Command, Token
from labkit.plots.burst import backlog_over_time
from tests.test_cli import labkit, labkit_here
from tests.test_plots import axes, labels, line

PLAN = Plan(rate=60, seconds=60)
BURST = Burst(usual=100, peak=2_000, before=2, during=1, after=3, seed=7)


# --- the timetable


def test_the_timetable_has_a_usual_rate_a_peak_and_the_usual_rate_again() -> None:
    calls = timetable(BURST, 40)
    at = np.array([call.intended for call in calls]) / 1e9
    assert (np.diff(at) >= 0).all()
    before, during, after = (
        int(((at >= low) & (at < high)).sum()) for low, high in ((0, 2), (2, 3), (3, 6))
    )
    assert before == pytest.approx(200, abs=60)
    assert during == pytest.approx(2_000, abs=200)
    assert after == pytest.approx(300, abs=70)
    commands = [call.command for call in calls if not call.read]
    assert commands == list(range(40, 40 + len(commands))), "each is sent once"
    assert sum(call.read for call in calls) == len(calls) // READS
    assert timetable(BURST, 40) == calls
    assert timetable(msgspec.structs.replace(BURST, seed=8), 40) != calls


def test_a_peak_is_of_one_client_for_the_greater_part() -> None:
    calls = timetable(BURST, 0)
    greedy = [call.client == 0 for call in calls if 2 <= call.intended / 1e9 < 3]
    usual = [call.client == 0 for call in calls if call.intended / 1e9 < 2]
    assert 0.5 < np.mean(greedy) < 0.75
    assert np.mean(usual) < 0.3


# --- the figures


def rows_of(*commands: tuple[float, str, float, float]) -> pd.DataFrame:
    """Rows of (intended, outcome, told, visible), in seconds, and one read that counts nowhere."""
    frame = pd.DataFrame(commands, columns=["intended", "outcome", "told", "visible"])
    frame = frame.assign(read=False, sent=frame["intended"], heard=frame["visible"], code=202)
    frame = frame.assign(urgency=3, age=np.nan)
    read = {**frame.iloc[0].to_dict(), "read": True, "outcome": "taken", "told": 9.0, "age": 2.0}
    return pd.concat([frame, pd.DataFrame([read])], ignore_index=True)


NEVER = float("nan")


def test_the_backlog_is_what_is_due_and_neither_visible_nor_turned_away() -> None:
    rows = rows_of(
        (0.0, "taken", 0.1, 1.0),
        (0.2, "turned away", 0.4, NEVER),
        (0.3, "unknown", 2.0, NEVER),
        (0.5, "taken", 0.6, NEVER),
    )
    series = figures.backlog(rows).set_index("seconds")["backlog"]
    found = {at: int(series.iloc[series.index.get_indexer([at], "nearest")[0]]) for at in
             (0.05, 0.35, 0.45, 0.75, 1.5, 2.1)}  # fmt: skip
    assert found == {0.05: 1, 0.35: 3, 0.45: 2, 0.75: 3, 1.5: 2, 2.1: 1}


def test_the_capacity_is_that_of_the_middle_of_a_heap() -> None:
    whole = np.repeat(np.arange(50) * 0.1, 6)  # six commands each tenth of a second
    slow = np.concatenate([[0.0], whole + 3, [30.0]])
    assert figures.capacity(slow) == pytest.approx(60, rel=0.02)
    assert np.isnan(figures.capacity(np.full(20, NEVER)))


@pytest.mark.parametrize("times", [2.0, 5.0, 20.0])
def test_the_drain_of_a_queue_is_backlog_by_what_is_spare(times: float) -> None:
    """Against a queue with a server, command by command: not the formula by itself."""
    able, usual = 60.0, 0.3
    burst = Burst(usual=usual * able, peak=times * able, before=2, during=1, after=60, seed=1)
    due = [call.intended / 1e9 for call in timetable(burst, 0)]
    free, rows = 0.0, []
    for instant in due:
        free = max(free, instant) + 1 / able
        rows.append((instant, "taken", instant, free))
    found = figures.drained(figures.backlog(rows_of(*rows)), burst, able, usual * able)
    assert found["backlog"] == pytest.approx((times - 1) * able, rel=0.3, abs=10)
    assert found["measured_s"] == pytest.approx(found["predicted_s"], rel=0.15, abs=0.7)
    if times > 2:  # a long drain
        assert found["worked_per_second"] == pytest.approx(able, rel=0.2)


def test_without_spare_capacity_there_is_no_prediction() -> None:
    series = pd.DataFrame({"seconds": [0.0, 1.0, 2.0, 3.0], "backlog": [0, 0, 50, 50]})
    burst = Burst(usual=1, peak=2, before=1, during=1, after=1, seed=1)
    found = figures.drained(series, burst, 10.0, 10.0)
    assert np.isnan(found["predicted_s"])
    assert np.isnan(found["measured_s"]), "it never was a usual one again"


def test_percentiles_count_what_never_came() -> None:
    found = figures.told(
        rows_of(*[(0.0, "taken", 0.1, 0.5)] * 9, (0.0, "taken", 0.1, NEVER), (0, "unknown", 30, 0))
    )
    assert (found["taken"], found["unknown"], found["reads"], found["reads_old"]) == (10, 1, 1, 1)
    assert found["done_p50_ms"] == 500
    assert found["done_p99_ms"] == np.inf
    assert summed([1.0, np.inf, 3.0]) == {
        "median": 2.0,
        "interval": [1.0, 3.0],
        "level": 0.5,
        "without": 1,
    }


# --- mechanisms


def test_each_mechanism_protects_by_itself_and_all_together() -> None:
    made = {name: mechanism.protection(60).check() for name, mechanism in MECHANISMS.items()}
    assert made.pop("none") == OFF
    whole = msgspec.structs.asdict(made.pop("together"))
    for name, protection in made.items():
        changed = {
            field: value
            for field, value in msgspec.structs.asdict(protection).items()
            if value != getattr(OFF, field)
        }
        assert changed, name
        assert changed.items() <= whole.items(), name
    assert [m.name for m in chosen(["priorities"])] == ["none", "priorities"]
    with pytest.raises(UsageError, match=r"--only takes none, limit by client, .* got 'hope'"):
        chosen(["hope"])


# --- the clients


#: Longer than any machine takes, if nothing is wrong.
PATIENCE = 30.0


class Slow:
    """It does not answer before all others are asked, too."""

    def __init__(self, number: int, log: list[tuple[int, str]], all: threading.Barrier) -> None:
        self.number, self.log, self.all = number, log, all

    def send(self, command: Command, id: str, urgency: int) -> Told:
        self.log.append((self.number, id))
        self.all.wait(PATIENCE)
        return Told("taken", 202, Token("orders", 0, 0), where="here")

    def read(self, command: Command, told: Told) -> Told:
        self.log.append((self.number, f"read {told.where}"))
        return Told("taken", 200)

    def close(self) -> None: ...


class Pipe:
    """The end of the parent, in a thread."""

    def send_bytes(self, data: bytes) -> None:
        assert data == b"ready"

    def recv_bytes(self) -> bytes:
        return str(time.monotonic_ns()).encode()


def test_the_clients_do_not_wait_for_one_another() -> None:
    log: list[tuple[int, str]] = []
    together = threading.Barrier(8)
    connect: Callable[[int], Client] = lambda number: Slow(number, log, together)  # noqa: E731
    calls = [Call(0, number, client=number) for number in range(8)]
    calls += [Call(int(1e9), 8, read=True, client=3), Call(int(1e9), 8, read=True, client=9)]
    order = Order(PLAN, calls, "k", True, 10)
    before = set(threading.enumerate())
    told = clients._made(Pipe(), connect, order)  # type: ignore[arg-type]
    assert [each.outcome for each in told] == ["taken"] * 10
    assert sorted(log)[:3] == [(0, "k-0"), (1, "k-1"), (2, "k-2")]
    assert (3, "read here") in log, "what it has written"
    assert told[9].why == "there was nothing to read yet"
    assert set(threading.enumerate()) <= before, "others may have ended meanwhile"


class AtOnce:
    """An arm without a log: what it tells is visible at once. It turns every third away."""

    service = PLAN.service

    @contextmanager
    def protected(self, protection: Protection) -> Iterator[Callable[[int], Client]]:
        assert protection == OFF
        yield lambda number: self  # type: ignore[return-value]

    def send(self, command: Command, id: str, urgency: int) -> Told:
        if int(id.rpartition("-")[2]) % 3 == 0:
            return Told("turned away", 429, retry_after=1.0, why="too many")
        return Told("taken", answer=Answer("accepted", 1))

    def close(self) -> None: ...

    def id_of(self, key: str) -> str:
        return key

    def look(self) -> None:
        time.sleep(0.001)

    def seen(self, told: Sequence[Told]) -> list[tuple[float, float]]:
        return [(t.told, t.told) if t.answer else (NEVER, NEVER) for t in told]


class End:
    """An end of a pipe within this process."""

    def __init__(self) -> None:
        self.inbox, self.other = queue.Queue[Any](), self

    def send(self, thing: Any) -> None:
        self.other.inbox.put(thing)

    def recv(self) -> Any:
        return self.inbox.get(timeout=20)

    send_bytes, recv_bytes = send, recv

    def poll(self, timeout: float | None) -> bool:
        return not self.inbox.empty()


def test_an_arm_without_a_log_fits() -> None:
    here, there = End(), End()
    here.other, there.other = there, here

    def process_of_clients() -> None:
        made = clients._made(there, *there.recv())  # type: ignore[arg-type]
        there.send(msgspec.msgpack.encode(made))

    thread = threading.Thread(target=process_of_clients)
    thread.start()
    calls = [Call(int(n * 1e7), n, client=n % 2) for n in range(30)]
    order = Order(PLAN, calls, "k", False, 5)
    none = MECHANISMS["none"]
    rows, operations = bench._asked(AtOnce(), here, none, 60.0, order)  # type: ignore[arg-type]
    thread.join(20)
    assert figures.told(rows)["turned_away"] == 10
    assert (rows["visible"].isna() == (rows["outcome"] == "turned away")).all()
    assert figures.backlog(rows)["backlog"].iloc[-1] == 0
    assert [o.status for o in operations] == ["failed", "ok", "ok"] * 10
    missed = lost_writes([], gather_nothing(), ())
    lost = msgspec.structs.replace(missed, violations=[f"{operations[1]} was accepted, and"])
    assert bench._judged(operations, {"C1": lost}) == {"accepted": 20, "lost": 1}


def gather_nothing() -> Evidence:
    return Evidence(PLAN.service, [], [], [], [], [], {}, {}, {}, {}, [])


@pytest.mark.parametrize(
    ("rate", "peaks", "named"),
    [
        (60, (20.0,), "has 60,000 calls in 50 s, and at most 800 can wait"),
        (1e9, (2.0,), "calls a second"),
    ],
)
def test_a_peak_that_cannot_be_offered_is_refused(
    rate: float, peaks: tuple[float, ...], named: str
) -> None:
    with pytest.raises(UsageError, match=f"a peak of .* {named}.* give a lower --rate"):
        check_offer(PLAN, rate, peaks, 50 if rate == 60 else 1e-9)


BAD = {
    "a peak that is none": (["--peaks", "1,2"], "--peaks must be more than 1 each"),
    "no number": (["--peaks", "two"], "--peaks must be numbers such as 2,5,20, got 'two'"),
    "no peak": (["--peaks", ","], "--peaks must be more than 1 each"),
    "at": (["--at", "1"], "--at must be more than 1, got 1"),
    "only": (["--only", "hope"], "--only takes none"),
    "a rate": (["--rate", "0"], "--rate must be a number from 10"),
    "a rate too high": (["--rate", "90000"], "give a lower --rate"),
    "a service": (["--service", "zoo"], "zoo"),
}


@pytest.mark.parametrize(("arguments", "named"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line(arguments: list[str], named: str) -> None:
    done = labkit_here("bench", "burst", *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--limit-client", "50/secnd"], ["--breaker", "5", "--breaker-reset", "0"]]
)
def test_a_protection_that_cannot_be_is_said_before_servers_start(arguments: list[str]) -> None:
    done = labkit_here("api", *arguments)
    assert done.returncode == 2
    assert arguments[-1] in done.stderr
    assert "Traceback" not in done.stderr


# --- on real servers


def bursts(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    file = tmp_path / "burst.json"
    sizes = ("--rate", "20", "--peaks", "3", "--at", "3", "--runs", "1")
    done = labkit("bench", "burst", *sizes, *arguments, "--json", str(file), timeout=300)
    return done.returncode, json.loads(file.read_text()), done.stdout + done.stderr


@pytest.mark.slow
def test_a_burst_loses_nothing_whatever_protects_the_api(
    servers: stack.Servers, tmp_path: Path
) -> None:
    code, found, said = bursts(tmp_path, "--only", "none,bounded queue,together")
    assert code == 0, said
    assert found["ok"]
    assert not found["red"]
    by_name = {row["mechanism"]: row for row in found["mechanisms"]}
    assert by_name["none"]["turned_away"]["median"] == 0
    for row in found["mechanisms"]:
        assert row["lost"]["median"] == 0
        told = row["accepted"]["median"] + row["turned_away"]["median"] + row["unknown"]["median"]
        assert told == row["commands"]["median"] > 0
    assert by_name["together"]["turned_away"]["median"] > 0
    assert found["peaks"][0]["backlog"]["median"] > 0
    assert {"C1", "C2", "C9"} <= found["checkers"].keys()
    backlog = pd.read_parquet(Path(found["folder"]) / "backlog.parquet")
    assert set(backlog["mechanism"]) == set(by_name)


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "checker"), [("passed-over", "C1"), ("false-refusals", "C9")])
def test_what_is_lost_or_done_in_secret_turns_a_checker_red(
    servers: stack.Servers, tmp_path: Path, plant: str, checker: str
) -> None:
    # The handler passes over the command at offset 50 of each partition.
    code, found, said = bursts(tmp_path, "--only", "none", "--plant", plant, "--rate", "60")
    assert code == 1, said
    assert checker in found["red"]
    assert not found["ok"]
    assert found["mechanisms"], "the JSON is whole"
    assert "turned red" in said


def test_an_unprotected_sizes_check_names_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="--at must be more than 1"):
        bench.Sizes(at=0.5).check()
    assert Protection().check() == OFF


# --- the plot


def drain(times: float, round: int, seconds: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A backlog that falls in a straight line; a tenth longer than predicted."""
    at = np.arange(0.0, 2.0 + 2 * seconds, 0.05)
    high = 40.0 * seconds
    series = pd.DataFrame(
        {"seconds": at, "backlog": np.interp(at, [1, 2, 2 + seconds], [0, high, 0])}
    )
    found = {"begins_s": 1.0, "ends_s": 2.0, "backlog": high, "measured_s": seconds}
    of = {"times": times, "round": round}
    return series.assign(times=times, round=round), found | of | {"predicted_s": seconds / 1.1}


def test_the_plot_shows_each_drain_beside_its_prediction() -> None:
    made = [drain(times, n, times + n / 10) for times in (2.0, 20.0) for n in range(3)]
    runs = pd.DataFrame([found for _, found in made])
    ax = backlog_over_time(pd.concat([series for series, _ in made]), runs, axes())
    assert len(ax.lines) == 6 + 2 * 2 + 1, "a line a burst; a prediction and a marker a peak"
    assert line(ax, "20 times: predicted 18.3 s, measured 20.1 s")[0] == [20.1]
    assert "2 times: predicted 1.91 s, measured 2.1 s" in labels(ax)
    assert ax.get_title() == (
        "1 s at 20 times the capacity take 20.1 s to drain;\nthe prediction is 9% off (median)"
    )
    assert ax.get_xlabel().startswith("seconds")
    never = runs.assign(measured_s=np.nan)
    ax = backlog_over_time(made[0][0], never.iloc[:1], axes())
    assert "are not drained" in ax.get_title()
    without = never.assign(predicted_s=np.nan)  # as much arrives as can be done
    ax = backlog_over_time(made[0][0], without.iloc[:1], axes())
    assert ax.get_title().endswith("there is no prediction")
    assert ax.get_xlim()[1] == made[0][0]["seconds"].max() - 2.0, "all of it is shown"
    with pytest.raises(ValueError, match="got no burst to draw"):
        backlog_over_time(made[0][0], runs.iloc[:0], axes())
