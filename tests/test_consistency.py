"""Lag from a run's rows: stages, percentiles, what a read sees, and three lags.

The runs are imagined (``experiments/imagined.py``), or made by hand where a figure is to be seen.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit.errors import UsageError
from labkit.experiments.load import consistency
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.consistency import LAG, STAGES, WHOLE
from labkit.experiments.load.imagined import imagine
from labkit.experiments.load.offer import Loaded

PLAN = Plan(rate=800.0, seconds=6.0, warm_up=1.0)
MS = 1e6


@pytest.fixture(scope="module")
def run() -> tuple[Loaded, pd.DataFrame]:
    return imagine(PLAN)


def rows(*instants: tuple[float, ...], **columns: object) -> pd.DataFrame:
    """Commands by hand: intended, sent, polled, decided, heard, fetched, applied, stale, visible,
    in ms."""
    names = [*consistency.INSTANTS[:-1], "stale", "visible"]
    frame = pd.DataFrame(instants, columns=names) * MS
    count = range(1, len(frame) + 1)
    known = {"stream": "a", "partition": 0, "version": list(count), "outcome": "accepted"}
    return frame.assign(**known | columns)


FIRST = (0.0, 1, 3, 4, 9, 10, 12, 14, 18)
SECOND = (1.0, 2, 3, 5, 9, 10, 12, 15, 17)


def test_each_stage_is_the_time_between_two_instants() -> None:
    found = consistency.stages(rows(FIRST))
    assert found[list(STAGES)].iloc[0].to_list() == [1, 2, 1, 5, 1, 2, 6]
    assert found[[LAG, f"{LAG} (at least)", WHOLE, f"{WHOLE} (at least)"]].iloc[0].to_list() == [
        *(9, 5),
        *(18, 14),
    ]


def test_a_batch_became_visible_at_once() -> None:
    found = consistency.known(rows(FIRST, SECOND))
    assert (found["stale"] / MS).to_list() == [15, 15]
    assert (found["visible"] / MS).to_list() == [17, 17]


def test_what_no_look_missed_was_at_least_not_visible_before_it_was_applied() -> None:
    found = consistency.known(rows((*FIRST[:-2], np.nan, 18)))
    assert (found["stale"] / MS).to_list() == [12]


def test_where_a_view_keeps_no_instants_each_command_keeps_its_own_ends() -> None:
    unknown = [(*row[:5], np.nan, np.nan, *row[7:]) for row in (FIRST, SECOND)]
    found = consistency.known(rows(*unknown))
    assert (found["visible"] / MS).to_list() == [18, 17]


def test_what_was_refused_or_never_answered_has_no_lag() -> None:
    assert len(consistency.known(rows(FIRST, SECOND, outcome=["accepted", "refused"]))) == 1
    with pytest.raises(UsageError, match="no command of this run was accepted"):
        consistency.known(rows(FIRST, outcome="refused"))


def test_what_was_never_seen_is_later_than_any_other() -> None:
    unseen = (*SECOND[:5], np.nan, np.nan, 15, np.nan)
    table = consistency.table(consistency.stages(rows(*[FIRST] * 9, unseen)))
    assert table.loc[LAG, "p50"] == pytest.approx(9, rel=0.01)
    assert table.loc[LAG, "p95"] >= 99_000
    assert table.loc[LAG, ["max", "count", "never"]].to_list() == [np.inf, 10, 1]


def test_percentiles_are_those_of_the_histogram_and_histograms_can_be_added() -> None:
    ms = np.arange(1.0, 1001)
    table = consistency.table(pd.DataFrame({"x": ms}))
    assert table.loc["x", ["p50", "p99", "p99.9"]].to_list() == pytest.approx(
        [500, 990, 999], rel=2e-3
    )
    both = consistency.histogram(ms[:500])
    both.add(consistency.histogram(ms[500:]))
    whole = consistency.histogram(ms)
    assert both.get_value_at_percentile(99) == whole.get_value_at_percentile(99)


def test_the_stages_add_up_to_what_the_probe_saw(run: tuple[Loaded, pd.DataFrame]) -> None:
    loaded, probes = run
    sums = consistency.adds_up(loaded.commands, probes)
    assert list(sums.index) == [*STAGES, "sum", "whole"]
    assert (sums["at_least"] <= sums["at_most"]).all()
    assert consistency.off_by(sums) < 0.02


@pytest.mark.parametrize("late", ["visible", "stale"])
def test_stages_that_do_not_add_up_are_found_out(
    run: tuple[Loaded, pd.DataFrame], late: str
) -> None:
    """The probe sees documents later than the checkpoints say, or later than it should."""
    loaded, probes = run
    sums = consistency.adds_up(loaded.commands, probes.assign(**{late: probes[late] + 6 * MS}))
    assert consistency.off_by(sums) > 0.05


# --- what a read sees


def test_t_visibility_has_two_ends() -> None:
    lag = consistency.lag(rows(FIRST, (*FIRST[:5], 20, 21, 29, 31)))
    assert lag.to_dict("list") == {"stale_ms": [5, 20], "fresh_ms": [9, 22]}
    seen = consistency.t_visibility(lag, [0, 5, 9, 20, 22])
    assert seen["at_least"].to_list() == [0, 0, 0.5, 0.5, 1]
    assert seen["at_most"].to_list() == [0, 0.5, 0.5, 1, 1]


def test_a_write_that_is_never_seen_keeps_t_visibility_below_one() -> None:
    lag = pd.DataFrame({"stale_ms": [1.0, 900], "fresh_ms": [2.0, np.inf]})
    assert consistency.t_visibility(lag, [1e9])["at_least"].to_list() == [0.5]


def test_k_staleness_counts_the_versions_that_a_read_misses() -> None:
    """Replies at 0, 10 and 20 ms; all are shown at 16 ms but the last, at 20 ms."""
    known = {"fetched": np.nan, "applied": np.nan}
    frame = rows(*[FIRST] * 3).assign(
        **known,
        heard=np.array([0, 10, 20]) * MS,
        stale=np.array([15, 15, 20]) * MS,
        visible=np.array([16, 16, 20]) * MS,
    )
    found = consistency.k_staleness(frame, reads=50_000)
    assert found["share"].to_list() == pytest.approx([0.2, 0.5, 0.3], abs=0.01)
    assert found["share_at_best"].to_list() == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_streams_do_not_count_for_each_other() -> None:
    at = {"heard": np.array([0, 0, 100, 100]) * MS, "visible": np.array([50, 1, 101, 101]) * MS}
    frame = rows(*[FIRST] * 4).assign(
        fetched=np.nan, applied=np.nan, stale=at["visible"], stream=["a", "b", "a", "b"], **at
    )
    found = consistency.k_staleness(frame, reads=50_000)
    # A read of a is one behind in the first half, a read of b for a moment only.
    assert found["share"].to_list() == pytest.approx([0.745, 0.255], abs=0.01)


# --- three lags


def test_offsets_are_more_than_commits(run: tuple[Loaded, pd.DataFrame]) -> None:
    """Each transaction leaves a marker in each partition that it wrote to."""
    lags = consistency.three_lags(run[0])
    busy = lags[lags["commits"] > 0]
    assert 1.2 < (busy["offsets"].sum() / busy["commits"].sum()) < 2
    assert (lags["age_ms"] >= 0).all()
    assert lags["by_offsets_ms"].mean() > lags["age_ms"].mean()


def test_a_single_command_has_no_rate_and_its_lags_all_the_same() -> None:
    loaded, _ = imagine(PLAN)
    loaded.commands = loaded.commands[:1]
    lags = consistency.three_lags(loaded)
    assert lags["by_offsets_ms"].isna().all()
    assert (lags["age_ms"] >= 0).all()


def test_the_age_is_that_of_the_oldest_commit_that_nobody_sees() -> None:
    loaded, _ = imagine(PLAN)
    frame = rows(FIRST, (*FIRST[:4], 11, 20, 21, 29, 30))
    loaded.commands, loaded.window = frame, (0.0, 40 * MS)
    at = np.repeat([10.0, 17, 19, 33], consistency.SELDOM) * MS
    loaded.samples = pd.DataFrame({"at": at, "projector_lag": 4})
    lags = consistency.three_lags(loaded)
    assert lags["at"].to_list() == pytest.approx([0.010, 0.017, 0.019, 0.033])
    assert lags["age_ms"].to_list() == [1, 8, 8, 0]
    assert lags["commits"].to_list() == [1, 2, 1, 0]
    assert lags["probe_ms"].to_list()[0] == 9
