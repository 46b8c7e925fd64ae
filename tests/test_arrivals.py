"""When an open loop sends, and to whom: means, gaps, seeds, skew. All pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.experiments import cdnow
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import DUTY, PATTERNS, PERIOD_SECONDS, Plan
from labkit.services.bank import Deposit, OpenAccount


def plan(**asked: Any) -> Plan:
    return Plan(**({"rate": 1_000.0, "seconds": 40.0, "warm_up": 0.0} | asked)).check()


plans = st.builds(
    Plan,
    pattern=st.sampled_from(PATTERNS),
    keys=st.sampled_from(["", "new", "zipf", "real"]),
    rate=st.floats(0.5, 2_000),
    seconds=st.floats(0.1, 20),
    warm_up=st.floats(0, 5),
    seed=st.integers(0, 2**63 - 1),
)


@given(plans)
@settings(max_examples=60, deadline=None)
def test_every_plan_keeps_within_its_time_and_near_its_rate(plan: Plan) -> None:
    at = arrivals.instants(plan)
    assert (np.diff(at) >= 0).all()
    assert at[0] >= 0
    assert at[-1] < plan.total * 1e9
    expected = plan.rate * plan.total
    assert abs(len(at) - expected) <= 6 * expected**0.5 + 1
    assert (at == arrivals.instants(plan)).all(), "the same seed, the same instants"
    count = min(len(at), 300)
    commands = list(arrivals.commands(plan, count))
    assert commands == list(arrivals.commands(plan, count))
    for command in commands:
        command.validate()
    opened = {command.stream for command in arrivals.opening(plan, count)}
    streams = {command.stream for command in commands}
    assert streams <= opened if plan.named != "new" else len(streams) == count


@pytest.mark.parametrize("pattern", ["poisson", "burst"])
def test_another_seed_draws_other_instants(pattern: Any) -> None:
    first, second = (arrivals.instants(plan(pattern=pattern, seed=seed)) for seed in (1, 2))
    assert len(set(first.tolist()) & set(second.tolist())) < 10


def test_constant_gaps_are_equal() -> None:
    gaps = np.diff(arrivals.instants(plan(pattern="constant")))
    assert gaps.min() == pytest.approx(1e6, abs=2)
    assert gaps.max() == pytest.approx(1e6, abs=2)


def test_poisson_gaps_are_exponential() -> None:
    """Their deviation equals their mean, and 1/e of them are longer than that."""
    gaps = np.diff(arrivals.instants(plan(pattern="poisson"))) / 1e6
    assert gaps.mean() == pytest.approx(1, rel=0.02)
    assert gaps.std() == pytest.approx(1, rel=0.03)
    assert (gaps > 1).mean() == pytest.approx(np.exp(-1), abs=0.01)
    counts = np.bincount(arrivals.instants(plan(pattern="poisson")) // 100_000_000)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.25), "of counts, too"


def test_a_burst_is_on_for_its_share_of_each_period() -> None:
    at = arrivals.instants(plan(pattern="burst")) / 1e9
    within = at % PERIOD_SECONDS
    assert within.max() < DUTY * PERIOD_SECONDS
    a_period = np.bincount((at // PERIOD_SECONDS).astype(int))
    assert len(a_period) == 40
    assert a_period.mean() == pytest.approx(1_000, rel=0.02)
    assert within.mean() == pytest.approx(DUTY * PERIOD_SECONDS / 2, rel=0.02)


def test_the_trace_keeps_the_days_of_the_shop() -> None:
    """All purchases in 546 s: a day is a second. Facts about the raw file, counted another way."""
    whole = plan(pattern="cdnow", rate=cdnow.ORDERS / 546, seconds=546.0)
    at = arrivals.instants(whole)
    assert len(at) == cdnow.ORDERS
    days = Counter(command.day for command in cdnow.commands())
    names = np.arange("1997-01-01", "1998-07-01", dtype="datetime64[D]").astype(str)
    wanted = [days.get(str(name), 0) for name in names]
    assert np.bincount((at / 1e9 + 1e-6).astype(int), minlength=546).tolist() == wanted
    one_day = np.diff(at[: wanted[0]])
    assert one_day.min() == pytest.approx(one_day.max(), abs=2), "spread evenly over the day"
    bought: list[Any] = list(arrivals.commands(whole, len(at)))
    assert [command.day for command in bought] == sorted(command.day for command in bought)


def test_the_trace_goes_round() -> None:
    at = arrivals.instants(plan(pattern="cdnow", rate=5_000.0, seconds=40.0))
    assert len(at) == 200_000
    lap = 40 * cdnow.ORDERS / 200_000
    first, second = (((at / 1e9 > n * lap) & (at / 1e9 < (n + 1) * lap)).sum() for n in (0, 1))
    assert first == pytest.approx(cdnow.ORDERS, rel=0.02)
    assert second == pytest.approx(first, rel=0.02)
    orders = list(arrivals.commands(plan(pattern="cdnow"), 2 * cdnow.ORDERS))
    assert len({order.stream for order in orders}) == len(orders), "each is a new order"
    laps = orders[: cdnow.ORDERS], orders[cdnow.ORDERS :]
    customers = [{order.customer_id for order in lap} for lap in laps]  # type: ignore[attr-defined]
    assert [len(each) for each in customers] == [23_570] * 2
    assert not customers[0] & customers[1], "the shop grows"


def test_zipf_keys_have_their_skew() -> None:
    skewed = plan(keys="zipf", skew=1.0, accounts=100)
    counts = Counter(command.stream for command in arrivals.commands(skewed, 100_000))
    harmonic = sum(1 / k for k in range(1, 101))
    for rank in (1, 2, 10):
        share = counts[f"a{rank}"] / 100_000
        assert share == pytest.approx(1 / rank / harmonic, rel=0.1)
    flat = plan(keys="zipf", skew=0.0, accounts=100)
    even = Counter(command.stream for command in arrivals.commands(flat, 100_000))
    assert max(even.values()) < 1.3 * min(even.values())
    assert len(arrivals.opening(skewed, 1)) == 100


def test_real_keys_are_the_customers() -> None:
    real = plan(keys="real")
    commands = list(arrivals.commands(real, cdnow.ORDERS))
    assert all(isinstance(command, Deposit) for command in commands)
    assert Counter(c.stream for c in commands) == Counter(c.customer_id for c in cdnow.commands())
    opening = arrivals.opening(real, 1_000)
    assert all(isinstance(command, OpenAccount) for command in opening)
    assert len(opening) == len({command.stream for command in commands[:1_000]})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pattern": "waves"}, "pattern must be one of constant, poisson, burst, cdnow"),
        ({"keys": "car"}, r"keys must be one of new \(orders\), .*zipf \(bank\), .* got 'car'"),
        ({"rate": 0.0}, "rate must be from 0.1 to 1e\\+06, got 0"),
        ({"rate": float("nan")}, "rate must be from .* got nan"),
        ({"seconds": -1.0}, "seconds must be from 0.1 to 3600, got -1"),
        ({"warm_up": -1.0}, "warm_up must be from"),
        ({"keys": "zipf", "skew": 11.0}, "skew must be from"),
        ({"keys": "zipf", "accounts": 0}, "accounts must be from"),
        ({"skew": 1.0}, "'new' of service 'orders' takes no skew; it takes lap"),
        ({"keys": "real", "accounts": 7}, "'real' of service 'bank' takes no accounts"),
        (
            {"services": ("tests.desk:DESK",), "keys": "new"},
            r"of calm \(desk\), busy \(desk\), got",
        ),
        ({"services": ("moon",)}, "unknown service or process 'moon'"),
        ({"services": ("tests.desk:DUMB",)}, "'dumb' has no workload; verify and load need one"),
        ({"services": ("tests.desk:BLIND",)}, "'blind' has no views; a load measures when"),
        ({"payload": 201}, "payload must be from 0 to 200, got 201"),
        ({"rate": 1e6, "seconds": 3_600.0}, "are too many: each takes about 8,000"),
    ],
)
def test_what_cannot_be_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(**wrong)


def test_a_report_leaves_out_what_was_not_used() -> None:
    assert "skew" not in arrivals.shape(plan())
    assert arrivals.shape(plan(keys="zipf"))["skew"] == 1.0
    assert arrivals.shape(plan(keys="zipf", skew=2.0))["skew"] == 2.0


def test_a_plan_of_a_service_of_ones_own() -> None:
    own = plan(services=("tests.desk:DESK",))
    assert (own.service.name, own.named) == ("desk", "calm")
    commands = list(arrivals.commands(own, 50))
    assert commands == list(arrivals.commands(own, 50)) == list(arrivals.commands(own, 80))[:50]
    assert commands != list(arrivals.commands(plan(services=own.services, seed=2), 50))
    assert arrivals.shape(own)["service"] == "desk"
    assert [command.stream for command in arrivals.opening(own, 50)] == ["first"]
