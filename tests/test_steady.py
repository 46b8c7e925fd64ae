"""What makes a run count, on runs that are made up: each law holds, each planted error shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from labkit.experiments import demo
from labkit.experiments.load import steady
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.offer import Loaded

SECOND = 1e9
WINDOW = (10 * SECOND, 40 * SECOND)


def run(seed: int = 1, rate: float = 500.0, growth: float = 0.0) -> tuple[pd.DataFrame, Any]:
    """Fifty seconds of Poisson arrivals; each stays 20 to 80 ms, or ever longer by ``growth``."""
    rng = np.random.default_rng(seed)
    sent = np.sort(rng.uniform(0, 50 * SECOND, rng.poisson(50 * rate)))
    gone = sent + rng.uniform(0.02, 0.08, len(sent)) * SECOND + growth * sent
    commands = pd.DataFrame(
        {
            "intended": sent - 1e5,
            "sent": sent,
            "stale": gone - rng.uniform(0, 0.01, len(sent)) * SECOND,
            "visible": gone + rng.uniform(0, 0.01, len(sent)) * SECOND,
        }
    )
    at = np.cumsum(rng.uniform(0.005, 0.015, 5_000)) * SECOND
    number = np.searchsorted(sent, at) - np.searchsorted(np.sort(gone), at)
    return commands, pd.DataFrame({"at": at, "in_system": number.astype(float)})


def test_littles_law_holds_where_all_is_well() -> None:
    for seed in range(5):
        law = steady.little(*run(seed), WINDOW)
        assert law["ok"], law
        assert law["L"] == pytest.approx(25, rel=0.05)
        assert law["W_ms"] == pytest.approx(50, rel=0.05)
        assert law["lambda"] == pytest.approx(500, rel=0.05)
        assert law["lambda_W"] == pytest.approx(law["lambda"] * law["W_ms"] / 1e3, rel=1e-3)


@pytest.mark.parametrize("pause", [(39.5, 40.5), (9.5, 10.5)])
def test_a_pause_of_the_machine_at_an_edge_of_a_short_window_is_no_error(
    pause: tuple[float, float],
) -> None:
    """For a second nothing leaves: half of the pause lies in the window."""
    commands, samples = run()
    began, ended = (instant * SECOND for instant in pause)
    for end in ("stale", "visible"):
        commands[end] = commands[end].where(~commands[end].between(began, ended), ended)
    gone = np.sort(commands["stale"] / 2 + commands["visible"] / 2)
    at = samples["at"]
    number = np.searchsorted(commands["sent"], at) - np.searchsorted(gone, at)
    samples["in_system"] = number.astype(float)
    short = (pause[0] - 2 if pause[0] > 20 else pause[0] + 0.5) * SECOND
    window = (short, short + 2.5 * SECOND)
    law = steady.little(commands, samples, window)
    assert law["ok"], law
    assert abs(law["edges"]) > 2 * steady.LITTLE * law["L"]  # L = lambda W alone would be off


def planted(what: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    commands, samples = run()
    match what:
        case "every tenth command is missing":
            commands = commands.drop(index=commands.index[::10])
        case "the time in the system is doubled":
            for end in ("stale", "visible"):
                commands[end] = commands["sent"] + 2 * (commands[end] - commands["sent"])
        case "only the later end is taken":
            commands["stale"] = commands["visible"] = commands["visible"] + 5e6
        case "the observer misses a tenth of what is there":
            samples["in_system"] *= 0.9
        case "the observer sees one partition of four":
            samples["in_system"] /= 4
        case "the observer slept":
            samples["in_system"] = samples["in_system"].where(samples["at"] < 15 * SECOND, 10)
        case "one command was never seen":
            commands.loc[commands["sent"].between(*WINDOW).idxmax(), "visible"] = np.nan
        case "there were no looks":
            samples = samples[:0]
        case "nothing was sent":
            commands = commands[:0]
    return commands, samples


@pytest.mark.parametrize(
    "what",
    [
        "every tenth command is missing",
        "the time in the system is doubled",
        "only the later end is taken",
        "the observer misses a tenth of what is there",
        "the observer sees one partition of four",
        "the observer slept",
        "one command was never seen",
        "there were no looks",
        "nothing was sent",
    ],
)
def test_what_is_wrong_breaks_it(what: str) -> None:
    assert not steady.little(*planted(what), WINDOW)["ok"]


def test_the_mean_is_over_time_not_over_looks() -> None:
    """Ten looks at an empty system in the first second, then one a second at a full one."""
    at = np.array([*np.linspace(0, 0.9, 10), *range(1, 11)]) * SECOND
    values = np.array([0.0] * 10 + [100.0] * 10)
    mean = steady._mean(at, values, (0.0, 10 * SECOND))
    assert mean == pytest.approx(90.5)


def test_an_observer_that_looks_less_often_while_there_is_much_is_not_deceived() -> None:
    """The second half of the window has twice the rate, and a tenth of the looks."""
    (few, seldom), (many, _) = run(1), run(2)
    commands = pd.concat([few, many[many["sent"] > 25 * SECOND]]).sort_values("sent")
    gone = np.sort(commands["stale"] / 2 + commands["visible"] / 2)
    busy = seldom["at"] > 25 * SECOND
    samples = seldom[~busy | (np.arange(len(seldom)) % 10 == 0)].copy()
    number = np.searchsorted(commands["sent"], samples["at"]) - np.searchsorted(gone, samples["at"])
    samples["in_system"] = number.astype(float)
    assert steady.little(commands, samples, WINDOW)["ok"]


def test_a_backlog_is_level_or_grows() -> None:
    assert steady.level(run()[1], WINDOW, 500)["ok"]
    grows = steady.level(run(growth=0.05)[1], WINDOW, 500)
    assert not grows["ok"]
    assert grows["growth_per_second"] == pytest.approx(25, rel=0.2)
    assert not steady.level(run()[1][:0], WINDOW, 500)["ok"], "nobody looked"


def ended_at(sent: list[int], visible: list[int]) -> int | None:
    """The second in which a load is ended; the tables say what there was at each second."""
    overload = steady.Overload()
    looks = enumerate(zip(sent, visible, strict=True))
    return next((at for at, (s, v) in looks if overload.look(float(at), s, v)), None)


def test_a_load_is_ended_once_the_backlog_would_take_a_minute() -> None:
    seconds = range(100)
    much, done = [100_000 * n for n in seconds], [2_000 * n for n in seconds]
    assert ended_at(much, done) == 10, "as soon as a pace is known"
    assert "leave it: the next would wait 490 s" in _told(much, done)
    assert ended_at([3_000 * n for n in seconds], done) is None, "a backlog that may be worked off"
    rest = [1_000_000] * 100
    assert ended_at(rest, [500_000 + 9_000 * min(n, 55) for n in seconds]) is None, "it is"


def test_a_pause_is_no_verdict() -> None:
    seconds = range(100)
    sent = [1_000 * n for n in seconds]
    paused = [1_000 * (n if n < 20 else max(20, n - 20)) for n in seconds]
    assert ended_at(sent, paused) is None
    assert ended_at(sent, [0] * 100) is None, "who hangs is found elsewhere"


def test_an_overload_remembers_the_last_seconds() -> None:
    overload = steady.Overload()
    for n in range(100_000):
        overload.look(n / 100, n, n)
    assert len(overload._seen) <= steady.PACE_SECONDS + 2


def _told(sent: list[int], visible: list[int]) -> str:
    overload = steady.Overload()
    return next(
        why
        for at, (s, v) in enumerate(zip(sent, visible, strict=True))
        if (why := overload.look(float(at), s, v))
    )


def late(milliseconds: float, share: float) -> pd.DataFrame:
    commands, _ = run()
    commands = commands[commands["intended"].between(*WINDOW)].copy()
    some = np.arange(len(commands)) < share * len(commands)
    commands["sent"] = commands["intended"] + np.where(some, milliseconds, 0.2) * 1e6
    return commands


def test_a_late_generator_is_told() -> None:
    assert steady.on_time(late(5, 0.5), WINDOW)["ok"]
    assert steady.on_time(late(400, 0.005), WINDOW)["ok"], "some may be late"
    assert not steady.on_time(late(60, 0.02), WINDOW)["ok"]
    behind = late(0, 0)
    behind["sent"] += np.linspace(0, 2 * SECOND, len(behind))
    found = steady.on_time(behind, WINDOW)
    assert not found["ok"]
    assert found["sent_in_window"] < found["intended_in_window"]
    assert found["late_ms"]["max"] == pytest.approx(2_000, rel=0.01)
    assert not steady.on_time(behind[:0], WINDOW)["ok"], "a run of nothing"
    short = (10 * SECOND, 11 * SECOND)
    few = late(45, 1.0)
    few = few[few["intended"].between(*short)]
    assert not steady.on_time(few, short)["ok"], "4.5 % of it left after the window"


def test_the_demo_says_whether_its_rate_was_sustained() -> None:
    """Its rate counts if the backlog stayed level and the generator was on time."""

    def offered(growth: float = 0.0, late: float = 0.0, seconds: float = 30.0) -> Any:
        commands, samples = run(growth=growth)
        commands["intended"] -= late * SECOND
        inside = commands[commands["intended"].between(*WINDOW, inclusive="left")]
        plan = Plan(rate=500.0, seconds=seconds)
        return Loaded(plan, inside, samples, WINDOW, {}, len(commands))

    assert demo._sustained(offered()) is True
    assert demo._sustained(offered(growth=0.1)) is False
    assert demo._sustained(offered(late=0.2)) is False
    assert demo._sustained(offered(seconds=1.0)) is None, "too short to tell"
