"""The model of the lag: what it makes of a run whose stations are known."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

from labkit.errors import UsageError
from labkit.experiments.load import model, station
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.batches import HANDLER, PROJECTOR, batches, marked, owners
from labkit.experiments.load.consistency import known
from labkit.experiments.load.imagined import imagine, stations

PLAN = Plan(rate=2_000.0, seconds=12.0, warm_up=1.0)


def test_a_line_is_fitted() -> None:
    sizes = np.array([1, 10, 100, 1000])
    assert station.Line.fit(sizes, 5 + 0.25 * sizes) == pytest.approx((5, 0.25))
    assert station.Line.fit(sizes, np.array([9.0, 9, 9, 1])).each == 0, "not below zero"


def test_batches_are_found_again() -> None:
    commands = known(imagine(PLAN)[0].commands)
    found = batches(marked(commands), HANDLER)
    assert found["size"].sum() == len(commands)
    assert (found["following"].dropna() > found["begin"].iloc[:-1]).all()
    assert found["pressed"].mean() > 0.8, "at this load most of the batches have to wait"
    assert not (found["pressed"] & found["idle"]).any()


def test_partitions_that_were_never_in_one_batch_have_owners_of_their_own() -> None:
    two = structs.replace(stations(), handlers=np.array([0, 0, 1, 1]))
    commands = imagine(PLAN, two)[0].commands
    numbers = dict(zip(commands["partition"], owners(commands, "polled"), strict=True))
    assert numbers[0] == numbers[1] != numbers[2] == numbers[3]
    assert len(set(owners(commands, "fetched"))) == 1
    assert model.fit(commands).handlers.tolist() == [numbers[p] for p in range(4)]


@pytest.mark.parametrize("rate", [300.0, 2_000.0, 5_000.0])
def test_the_stations_are_found_again(rate: float) -> None:
    """Also those that never made anybody wait, like the projector here."""
    loaded, _ = imagine(structs.replace(PLAN, rate=rate))
    found, truth = model.fit(loaded.commands), stations()
    size = batches(marked(known(loaded.commands)), PROJECTOR)["size"].mean()
    for part in ("handler", "projector"):
        was, is_ = (getattr(of, part).busy.at(size) for of in (truth, found))
        assert is_ == pytest.approx(was, rel=0.1), part


def test_what_came_together_is_one_arrival() -> None:
    """The projector here is slower than the handler, whose transactions reach it seldom."""
    one = stations()
    slow = structs.replace(one.projector, busy=station.Line(30.0, 0.0), out=station.Line(30.0, 0.0))
    commands = imagine(PLAN, structs.replace(one, projector=slow))[0].commands
    found = batches(marked(known(commands)), PROJECTOR)
    assert found["pressed"].mean() > 0.5
    assert (found["size"] > 5 * found["arrivals"]).all()
    reach = np.median(model.fit(commands).projector.reach)
    assert reach == pytest.approx(np.median(slow.reach), abs=2.0), "not a handler's cycle more"


@pytest.mark.parametrize(
    ("pattern", "rate"),
    # A burst is four times the load: near the limit a little more would be a lot more.
    [("poisson", 2_000.0), ("constant", 2_000.0), ("burst", 1_000.0)],
)
def test_it_predicts_what_it_has_not_seen(pattern: str, rate: float) -> None:
    plan = structs.replace(PLAN, pattern=pattern, rate=rate)
    found = model.predict(imagine(plan)[0])
    assert found.error_p50 < 0.1
    assert found.report()["p99"]["error"] < 0.25


def test_an_error_is_an_error() -> None:
    """The fitted half was of a machine that was half as fast."""
    loaded, _ = imagine(PLAN)
    slow = imagine(PLAN, stations(busy=2.0))[0].commands
    lag = model.fit(slow).lag(PLAN)
    measured = model.predict(loaded).measured_ms
    assert model.Prediction(lag, measured, lag).error_p50 > 0.4


def test_more_load_is_more_lag() -> None:
    lags = [np.median(stations().lag(PLAN.at(rate))) for rate in (100.0, 2_000.0, 6_000.0)]
    assert lags == sorted(lags)


def test_a_full_batch_leaves_the_rest_for_the_next() -> None:
    small = structs.replace(stations().handler, most=10)
    none, rng = np.zeros(50), np.random.default_rng(1)
    taken = [(start, stop) for start, stop, *_ in small.cycles(none, none.astype(int) + 1, rng)]
    assert taken == [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]


def test_the_same_seed_gives_the_same_run() -> None:
    first, again, other = (stations().run(np.arange(0.0, 500), seed) for seed in (3, 3, 4))
    assert first.equals(again)
    assert not first.equals(other)


def test_independent_stages_have_the_right_mean() -> None:
    loaded, _ = imagine(PLAN)
    found = model.predict(loaded)
    assert found.independent_ms.mean() == pytest.approx(found.measured_ms.mean(), rel=0.05)


def test_too_short_a_run_is_not_fitted() -> None:
    plan = structs.replace(PLAN, seconds=0.2)
    with pytest.raises(UsageError, match="batches are too few to fit; let the load last longer"):
        model.predict(imagine(plan)[0])
