"""``labkit load`` on real servers: what a run leaves, and what makes it count or not. No times."""

from __future__ import annotations

import itertools
import json
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from labkit import stack
from labkit.cli import load as load_cli
from labkit.cli import main
from labkit.errors import CheckFailed, UsageError
from labkit.experiments.load import offer, steady, sustainable
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.observer import Watch
from labkit.experiments.load.sustainable import Crew, Sustainable, Trial
from labkit.lab import Lab
from labkit.services.orders import PlaceOrder
from labkit.stack import limits

INSTANTS = ["intended", "sent", "polled", "decided", "heard"]


@pytest.fixture(autouse=True)
def usual_gc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process, which runs other tests, too."""
    monkeypatch.setattr(load_cli, "calm_gc", lambda: None)


# --- the two ends between which a command became visible


def watch(reached: list[list[int]]) -> Watch:
    """Look number n began at 10 n and ended at 10 n + 5."""
    made = Watch.__new__(Watch)
    made._reached = reached
    made._before = [10 * number for number in range(len(reached))]
    made._after = [10 * number + 5 for number in range(len(reached))]
    return made


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=8),
    st.integers(0, 20),
    st.integers(0, 1),
)
def test_the_ends_are_the_last_look_that_missed_it_and_the_first_that_saw_it(
    steps: list[list[int]], offset: int, partition: int
) -> None:
    reached = (np.cumsum(steps, axis=0) - 1).tolist()
    (stale,), (fresh,) = watch(reached).ends(np.array([partition]), np.array([offset]))
    saw = [number for number, row in enumerate(reached) if row[partition] >= offset]
    missed = [number for number, row in enumerate(reached) if row[partition] < offset]
    assert fresh == 10 * saw[0] + 5 if saw else np.isnan(fresh)
    assert stale == 10 * missed[-1] if missed else np.isnan(stale)


def test_the_ends_of_a_real_view_step_by_step() -> None:
    with Lab(backend="memory", services=["orders"]) as lab:
        looks = Watch(lab, "orders")
        sent = [lab.bus.send(PlaceOrder(f"o{n}", "c", "1997-01-01", 1, 1)) for n in range(8)]
        lab.handler.step(0)
        between = [time.monotonic_ns()]
        assert looks.look() == 0, "decided, and not yet visible"
        lab.projector.step(0)
        between.append(time.monotonic_ns())
        assert looks.look() == 8
        for asked, before, after in zip(between, looks._before, looks._after, strict=True):
            assert asked <= before < after, "a look lasts from before the question to its answer"
        places = np.array([delivery.token()[1:] for delivery in sent])
        stale, fresh = looks.ends(places[:, 0], places[:, 1])
        assert set(stale) == {looks._before[0]}
        assert set(fresh) == {looks._after[1]}


def test_looks_that_see_nothing_new_take_no_memory() -> None:
    with Lab(backend="memory", services=["orders"]) as lab:
        looks = Watch(lab, "orders")
        for number in range(5):
            lab.bus.send(PlaceOrder(f"o{number}", "c", "1997-01-01", 1, 1))
            lab.handler.step(0)
            lab.projector.step(0)
            began = time.monotonic_ns()
            for _ in range(200):
                looks.look()
            first, last = looks._after[-1], looks._before[-1]
            assert began < first < last, "the end of the first, the beginning of the last"
        assert len(looks._before) == len(looks._after) == len(looks._reached) == 5


# --- a run


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' machine is shared: how well it keeps time is not what they are about."""
    monkeypatch.setattr(steady, "LATE_SECONDS", 60.0)
    monkeypatch.setattr(steady, "MISSED", 1.0)
    monkeypatch.setattr(steady, "LITTLE", 0.5)


def run(monkeypatch: pytest.MonkeyPatch, file: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["labkit", "load", "--json", str(file), *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, json.loads(file.read_text())


def frames(found: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    folder = Path(found["folder"])
    return (pd.read_parquet(folder / f"{name}.parquet") for name in ("commands", "samples"))  # type: ignore[return-value]


@pytest.mark.servers
@pytest.mark.usefixtures("servers", "patient")
def test_a_run_is_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--rate", "200", "--seconds", "4", "--warm-up", "1", "--payload", "50")
    code, found = run(monkeypatch, tmp_path / "new" / "l.json", *arguments)
    assert (code, found["ok"], found["trouble"]) == (0, True, []), found
    assert set(found["checkers"]) == {"C1", "C2", "C3", "C6", "C9"}
    assert all(v["ok"] and v["checked"] > 0 for v in found["checkers"].values())
    commands, samples = frames(found)
    check_rows(found, commands)
    check_looks(found, commands, samples)
    counts = found["counts"]
    assert counts["in_window"] == len(commands) == pytest.approx(800, abs=150)
    assert counts["sent"] == pytest.approx(1_000, abs=200)
    assert counts["outcomes"] == {"accepted": len(commands)}
    assert found["settings"]["plan"]["payload"] == 50
    assert found["settings"]["workers"] == {"handler": 1, "projector": 1}
    assert (found["rate"], found["share"], found["seed"]) == (200, None, 1)
    assert {"kafka", "mongodb", "kafka-python", "labkit"} <= set(found["versions"])
    for row in found["latencies_ms"].values():
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["p999_ms"] <= row["max_ms"]
    ability = found["generator"]["ability"]
    assert ability["void"] > ability["topic"] > 0
    check_cpu(found)
    kept = json.loads((Path(found["folder"]) / "report.json").read_text())
    assert kept["little"] == found["little"]
    assert {"machine", "load_average"} <= set(kept)
    assert "all green" in capsys.readouterr().out
    with Lab() as lab:
        own = [topic for topic in lab.broker.topics() if f".{found['run']}." in topic]
        assert not own, "also the topic of the dry run is gone"
        lab.drop()


def check_cpu(found: dict[str, Any]) -> None:
    """What measured, what was measured, and the servers: each took a share of the machine."""
    cpu = found["cpu"]
    assert set(cpu["harness"]) == {"generator", "listener", "observer"}
    assert {*cpu["harness"], *cpu["servers"], "handler", "projector"} == set(cpu["machine_share"])
    assert all(0 < share < 1 for share in cpu["machine_share"].values()), cpu
    assert sum(cpu["machine_share"].values()) < 1.05, "no more than there is"
    assert all(us > 0 for us in cpu["us_per_command"].values())
    assert (found["client"], found["harness_client"]) == ("kafka-python", "confluent")


def check_rows(found: dict[str, Any], commands: pd.DataFrame) -> None:
    """Each command went its way, and no instant is missing or before the one before it."""
    assert commands["id"].is_unique
    assert commands["stream"].is_unique
    assert not commands.isna().any().any()
    for before, after in itertools.pairwise(INSTANTS):
        assert (commands[before] <= commands[after]).all(), (before, after)
    for before, after in (
        ("sent", "acked"),
        ("decided", "fetched"),
        ("fetched", "applied"),
        ("applied", "visible"),
        ("stale", "visible"),
    ):
        assert (commands[before] <= commands[after]).all(), (before, after)
    # All of one batch of the projector is one transaction: no look saw some of it before another
    # missed some of it.
    of_batch = commands.groupby("fetched")
    assert (of_batch["stale"].max() <= of_batch["visible"].min()).all()


def check_looks(found: dict[str, Any], commands: pd.DataFrame, samples: pd.DataFrame) -> None:
    """The observer and the listener do not know of each other, and saw the same."""
    assert samples["at"].is_monotonic_increasing
    assert samples["visible"].is_monotonic_increasing
    # A look that is interrupted is set in the middle of what was sent meanwhile.
    assert (samples["in_system"] >= 0).mean() > 0.9
    assert (samples["in_topic"] <= found["counts"]["sent"]).all()
    last = samples.iloc[-1]
    assert last["sent"] == last["visible"] == found["counts"]["sent"]
    began, ended = (samples["at"] + sign * samples["look_ns"] / 2 for sign in (-1, 1))
    before = found["counts"]["sent"] - len(commands)  # those of the warm-up are visible first
    inside = samples["visible"] > before + 1
    least = before + np.searchsorted(np.sort(commands["visible"]), began[inside])
    most = before + np.searchsorted(np.sort(commands["stale"]), ended[inside])
    assert inside.sum() > 20
    assert (least <= samples["visible"][inside]).all()
    assert (samples["visible"][inside] <= most).all()


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.usefixtures("servers")
def test_a_late_generator_and_a_lost_command_leave_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """60,000 a second are more than any generator of this kind sends."""
    monkeypatch.setattr(offer, "STILL_SECONDS", 1.0)
    arguments = ("--rate", "60000", "--seconds", "0.1", "--warm-up", "0", "--plant", "passed-over")
    code, found = run(monkeypatch, tmp_path / "l.json", *arguments)
    assert (code, found["ok"]) == (1, False)
    assert not found["generator"]["ok"]
    assert [name for name, v in found["checkers"].items() if not v["ok"]] == ["C1"]
    assert "has no commit" in found["checkers"]["C1"]["violations"][0]
    assert found["counts"]["not_answered"] > 0
    assert not {"offered_per_second", "visible_per_second", "latencies_ms"} & set(found)
    output = capsys.readouterr()
    assert "the generator did not keep its timetable" in output.err
    assert "C1 turned red" in output.err
    assert "RED" in output.out


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.usefixtures("servers", "patient")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--keys", "zipf", "--pattern", "burst", "--client", "confluent", "--handlers", "2"),
        ("--keys", "real", "--pattern", "cdnow", "--log", "mongodb", "--projectors", "2"),
    ],
)
def test_other_loads_on_other_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    timing = ("--rate", "100", "--seconds", "5", "--warm-up", "1")
    code, found = run(monkeypatch, tmp_path / "l.json", *timing, *arguments)
    assert (code, found["trouble"]) == (0, []), found
    assert {"C1", "C8", "C9"} <= set(found["checkers"])
    commands, samples = frames(found)
    assert commands["stream"].nunique() < len(commands)
    newest = commands.groupby("stream")["offset"].transform("max") == commands["offset"]
    assert commands["applied"][newest].notna().all(), "the view keeps those of the newest"
    assert commands["applied"][~newest].isna().all()
    assert "the newest of each stream" in found["model"]["why"]
    assert samples.iloc[-1]["in_system"] == 0
    assert found["counts"]["outcomes"] == {"accepted": len(commands)}


def test_a_plan_has_as_many_commands_as_fit_into_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: 16_000_000)  # 1,000 commands
    Plan(rate=100, seconds=9, warm_up=1).check()
    with pytest.raises(
        UsageError, match=r"about 8,000 bytes until it is checked.*at most 1,000 fit"
    ):
        Plan(rate=101, seconds=9, warm_up=1).check()
    with pytest.raises(UsageError, match="at most 909 fit"):
        Plan(rate=100, seconds=9, warm_up=1, payload=200).check()


def known(rate: float) -> Sustainable:
    return Sustainable(rate, [], Path("results"))


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (None, "not known; `labkit load --sustainable`"),
        (known(2_000.0), "100,000 commands a second are more than the 2,000 that were sustained"),
        (known(200_000.0), None),
    ],
)
def test_a_rate_is_compared_with_what_is_sustained(at: Any, says: str | None) -> None:
    said: list[str] = []
    load_cli._compare(at, 100_000.0, said.append)
    assert len(said) == (says is not None)
    assert not says or says in said[0]


def test_who_listens_ends_a_load_that_is_too_much() -> None:
    with (
        Lab(backend="memory", services=["orders"]) as lab,
        closing(offer._Listener(lab, lab, "orders")) as listener,
    ):
        lab.bus.send(PlaceOrder("o1", "c", "1997-01-01", 1, 1))
        lab.handler.step(0)
        lab.projector.step(0)
        looked: list[int] = []
        listener.overload = lambda visible: looked.append(visible) or "1 command waits"  # type: ignore[func-returns-value]
        listener.listen()
        assert not looked, "once a second"
        listener._checked -= 2
        with pytest.raises(CheckFailed, match=r"too much: 1 command waits\. `labkit load --sus"):
            listener.listen()
        assert looked == [1]


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.usefixtures("servers")
def test_a_hopeless_load_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first sight of a backlog, here, and while most of it has not been sent."""
    monkeypatch.setattr(steady, "PACE_SECONDS", 1.0)
    monkeypatch.setattr(steady, "LONGEST_WAIT", 1e-6)
    crew, plan = Crew(), Plan(rate=500.0, seconds=60.0, warm_up=0.0, services=("orders",))
    warned: list[str] = []
    with (
        pytest.raises(CheckFailed, match="the load was ended, it is too much: after"),
        crew.working("lab", plan.service) as lab,
    ):
        offer.offer(lab, plan, dry=False, warn=warned.append)
    assert not warned, "without a dry run it is not known what the generator can do"


def test_a_load_needs_workers_and_the_right_service() -> None:
    with Lab(backend="memory", services=["orders"]) as lab:
        with pytest.raises(UsageError, match="got a lab with backend 'memory'"):
            offer.offer(lab, Plan(rate=1.0, seconds=1.0))
        with pytest.raises(UsageError, match="pattern must be one of"):
            offer.offer(lab, Plan(pattern="waves", rate=1.0, seconds=1.0))  # type: ignore[arg-type]
        lab.backend = "kafka"
        with pytest.raises(UsageError, match="for service 'bank', and this run has orders"):
            offer.offer(lab, Plan(rate=1.0, seconds=1.0, keys="zipf"))
        lab.bus.send(PlaceOrder("o1", "c", "1997-01-01", 1, 1))
        with pytest.raises(UsageError, match="has had commands already; make a new Lab"):
            offer.offer(lab, Plan(rate=1.0, seconds=1.0))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--pattern", "waves"), ("pattern", "waves", "poisson")),
        (("--keys", "car"), ("keys", "car", "zipf")),
        (("--rate", "0"), ("--rate", "'0'")),
        (("--rate", "fast"), ("--rate", "'fast'")),
        (("--rate", "nan"), ("--rate", "'nan'")),
        (("--seconds", "-1"), ("--seconds", "'-1'")),
        (("--payload", "500"), ("payload", "500")),
        (("--handlers", "0"), ("--handlers", "'0'")),
        (("--client", "owl"), ("owl", "confluent")),
        (("--log", "paper"), ("log", "paper")),
        (("--plant", "weeds"), ("--plant", "weeds", "passed-over")),
        (("--json", "/"), ("--json", "cannot be written")),
        (("--rate", "1000000", "--seconds", "3600"), ("too many", "GB are free", "at most")),
    ],
)
def test_bad_arguments_are_named(
    arguments: tuple[str, ...],
    says: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stack, "borrowed", lambda *_: 1 / 0)  # all is said before servers are asked
    monkeypatch.setattr(sys, "argv", ["labkit", "load", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    for part in says:
        assert part in error


# --- the sustainable rate


def tried(rate: float, holds: float) -> Trial:
    why = "" if rate <= holds else "the backlog grew"
    return Trial(rate, rate, 20.0, 0.0, 0.01, why, 0.1)


@pytest.mark.parametrize(
    ("visible", "rate"), [([0, 900], 900), ([0, 0, 900, 900], 900), ([0, 100, 500, 900], 400)]
)
def test_a_heap_has_a_rate_however_few_looks_saw_it(
    visible: list[int], rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it may become visible between two looks."""
    looks = pd.DataFrame({"at": np.arange(len(visible)) * 1e9, "visible": visible})
    loaded = SimpleNamespace(samples=looks)
    monkeypatch.setattr(sustainable, "offer", lambda *_, **__: loaded)
    monkeypatch.setattr(Crew, "working", lambda *_: nullcontext())
    assert sustainable.heap("lab", Crew(), Plan(rate=1.0, seconds=1.0)) == rate


@pytest.mark.servers
def test_the_search_ends_near_what_holds_and_is_kept(
    servers: stack.Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates: list[float] = []

    def trial(name: str, crew: Crew, plan: Plan, p99_ms: float) -> Trial:
        rates.append(plan.rate)
        assert plan.pattern == "poisson"
        return tried(plan.rate, 777.0)

    monkeypatch.setattr(sustainable, "heap", lambda *_: 2_000.0)
    monkeypatch.setattr(sustainable, "trial", trial)
    crew = Crew(settings={"partitions": 2, "client": "confluent"})
    plan = Plan(rate=1.0, seconds=60.0, pattern="burst")
    said: list[str] = []
    assert sustainable.kept("lab", crew, plan, 500.0) is None
    found = sustainable.sustainable("lab", crew, plan, 500.0, lambda *_: None, said.append)
    assert 777 / sustainable.NEAR <= found.rate <= 777
    assert len(rates) == len(found.trials) < sustainable.MOST_TRIALS
    assert found.rate == max(t.rate for t in found.trials if t.held)
    assert any("the backlog grew" in line for line in said)
    assert len(pd.read_parquet(found.folder / "trials.parquet")) == len(rates)
    again = sustainable.kept("lab", crew, plan, 500.0)
    assert again == found
    ratio = round(found.rate / 2_000, 3)
    assert (found.heap, found.report()["sustainable_to_heap"]) == (2_000.0, ratio)
    with monkeypatch.context() as other_harness:
        other_harness.setattr(sustainable, "fast_client", lambda: "kafka-python")
        assert sustainable.kept("lab", crew, plan, 500.0) is None, "another harness sustains less"
    for other in (
        sustainable.kept("lab", structs.replace(crew, handlers=2), plan, 500.0),
        sustainable.kept("lab", Crew(settings={"partitions": 4}), plan, 500.0),
        sustainable.kept("lab", crew, structs.replace(plan, keys="zipf"), 500.0),
        sustainable.kept("lab", crew, plan, 100.0),
    ):
        assert other is None, "what was found under other conditions is not used"
    (found.folder / "report.json").write_text("{")
    assert sustainable.kept("lab", crew, plan, 500.0) is None, "half a file is none"


@pytest.mark.servers
@pytest.mark.usefixtures("servers")
def test_where_no_rate_holds_the_trials_are_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sustainable, "heap", lambda *_: 1e6)
    monkeypatch.setattr(sustainable, "trial", lambda *given: tried(given[2].rate, 0.0))
    code, found = run(monkeypatch, tmp_path / "l.json", "--batch-size", "77")
    assert (code, found["sustainable_per_second"]) == (1, 0)
    assert len(found["trials"]) == sustainable.MOST_TRIALS
    assert "no rate held, down to 4,688 a second: the backlog grew" in capsys.readouterr().err
    crew = Crew(settings={"batch_size": 77})
    assert sustainable.kept("lab", crew, Plan(rate=1.0, seconds=60.0), 500.0) is None


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.usefixtures("servers", "patient")
def test_a_share_of_the_sustainable_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The whole of it, short: search, keep, offer; the second time nothing is searched."""
    monkeypatch.setattr(sustainable, "MOST_TRIALS", 2)
    monkeypatch.setattr(sustainable, "FIRST", 0.05)
    monkeypatch.setattr(sustainable, "TRIAL_SECONDS", 2.0)
    monkeypatch.setattr(sustainable, "HEAP_SECONDS", 0.1)
    timing = ("--seconds", "3", "--warm-up", "1", "--partitions", "3", "--p99", "60000")
    code, first = run(monkeypatch, tmp_path / "1.json", "--rate", "0.5", *timing)
    assert (code, first["trouble"]) == (0, [])
    assert first["rate"] == pytest.approx(first["sustainable_per_second"] / 2)
    assert first["share"] == 0.5
    monkeypatch.setattr(sustainable, "heap", lambda *_: 1 / 0)
    code, second = run(monkeypatch, tmp_path / "2.json", "--rate", "0.25", *timing)
    assert code == 0
    assert second["sustainable_from"] == first["sustainable_from"]
    assert second["rate"] == pytest.approx(first["rate"] / 2)
