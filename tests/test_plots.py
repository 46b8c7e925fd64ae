from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.plots.course import revenue_a_minute, seen_through_a_rebuild, stale_against_waiting
from labkit.plots.demo import demo_figure, lag_distribution, orders_by_month

MONTHS = pd.DataFrame(
    {
        "month": ["1997-02", "1997-01", "1997-03", "1997-04"],
        "orders": [11272, 8928, 11598, 3781],
        "expected_orders": [11272, 8928, 11598, 3781],
        "cents": [37965000, 29906017, 39315512, 14283300],
    }
)
LAGS = pd.DataFrame({"stale_ms": np.arange(100.0) + 9, "fresh_ms": np.arange(100.0) + 11})


def axes() -> Axes:
    return Figure().subplots()


def bars(ax: Axes) -> list[float]:
    return [patch.get_height() for patch in ax.patches if isinstance(patch, Rectangle)]


def line(ax: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = [one for one in ax.lines if str(one.get_label()).startswith(label)]
    xs, ys = np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)
    return xs.tolist(), ys.tolist()


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend
    return [text.get_text() for text in legend.get_texts()]


def test_bars_are_the_views_and_markers_the_file() -> None:
    months = MONTHS.assign(expected_orders=[1, 2, 3, 4])
    ax = orders_by_month(months, axes())
    assert bars(ax) == [8928, 11272, 11598, 3781]
    assert line(ax, "pandas over the raw file") == ([0, 1, 2, 3], [2, 1, 3, 4])
    assert [text.get_text() for text in ax.get_xticklabels()] == sorted(MONTHS["month"])
    assert ax.get_ylabel() == "orders a month"
    assert ax.get_xlabel() == "month of the purchase"


def test_orders_are_summed_up_in_the_title() -> None:
    title = orders_by_month(MONTHS, axes()).get_title()
    assert title.startswith("35,579 orders worth $1,214,698.29, every month equals the raw file")
    assert title.endswith("the best month was 1997-03 with 11,598 orders")


@pytest.mark.parametrize("orders", [[11272, 8928, 11597, 3780], [11272, 8928, 11599, np.nan]])
def test_months_that_differ_are_told_and_marked(orders: list[float]) -> None:
    ax = orders_by_month(MONTHS.assign(orders=orders), axes())
    assert "2 of 4 months differ from the raw file" in ax.get_title()
    assert line(ax, "they differ")[0] == [2, 3]
    assert "they differ" not in labels(orders_by_month(MONTHS, axes()))


def test_the_lag_is_drawn_from_both_ends() -> None:
    ax = lag_distribution(LAGS.sample(frac=1, random_state=1), axes())
    shares = list(range(101))
    assert line(ax, "last stale read") == ([9, *LAGS["stale_ms"]], shares)
    assert line(ax, "first fresh read") == ([11, *LAGS["fresh_ms"]], shares)
    (band,) = [c for c in ax.collections if c.get_label() == "became visible in here"]
    corners = band.get_paths()[0].vertices
    assert np.asarray(corners).min(axis=0).tolist() == [9, 0]
    assert np.asarray(corners).max(axis=0).tolist() == [110, 100]


def test_percentiles_are_marked_where_they_were_measured() -> None:
    ax = lag_distribution(LAGS, axes())
    assert {"p50: 58 to 60 ms", "p95: 103 to 105 ms", "p99: 107 to 109 ms"} <= set(labels(ax))
    for p, lag in ((50, 60), (95, 105), (99, 109)):
        assert line(ax, f"p{p}:") == ([lag], [p])
    markers = [one.get_marker() for one in ax.lines if str(one.get_label()).startswith("p")]
    assert len(set(markers)) == 3, "colour alone must not tell them apart"
    assert ax.get_title() == "Half of the writes are visible within 60 ms,\n99 % within 109 ms"


def test_plain_lags_have_no_band() -> None:
    ax = lag_distribution([14.2, 3, 60.04], axes())
    assert line(ax, "became visible")[0] == [3, 3, 14.2, 60.04]
    assert labels(ax) == ["became visible", "p50: 14.2 ms", "p95: 60 ms", "p99: 60 ms"]
    assert ax.get_ylabel() == "writes visible by then (% of 3)"


def test_a_write_that_was_never_seen_is_counted() -> None:
    fresh = [4.0, 5, 6, 7, 8, 9, 10, 11, np.nan, np.inf]
    lags = pd.DataFrame({"stale_ms": [1.0] * 8 + [3000] * 2, "fresh_ms": fresh})
    ax = lag_distribution(lags, axes())
    expected = "Half of the writes are visible within 8 ms,\n2 of 10 writes were never seen"
    assert ax.get_title() == expected
    assert "p99: later than 3,000 ms" in labels(ax)
    assert ax.get_xlim()[1] < 20
    ax = lag_distribution([np.inf, np.nan], axes())
    assert ax.get_title() == "2 of 2 writes were never seen"
    assert "p50: never seen" in labels(ax)


def test_a_write_that_no_read_missed_may_have_been_visible_at_once() -> None:
    lags = pd.DataFrame({"stale_ms": [np.nan, 2], "fresh_ms": [3.0, 4]})
    assert line(lag_distribution(lags, axes()), "last stale read")[0] == [0, 0, 2]


@pytest.mark.parametrize(("slowest", "scale"), [(30.0, "linear"), (900.0, "log")])
def test_a_long_tail_is_drawn_on_a_log_scale(slowest: float, scale: str) -> None:
    ax = lag_distribution([9.0, 10, 11, slowest], axes())
    assert ax.get_xscale() == scale
    assert ("log scale" in ax.get_xlabel()) == (scale == "log")
    assert "(ms" in ax.get_xlabel()
    low, high = ax.get_xlim()
    assert low < 9
    assert high > slowest


CASES: dict[str, dict[str, Any]] = {
    "usual": {"months": MONTHS, "lag_ms": LAGS},
    "one order": {"months": MONTHS.head(1), "lag_ms": [3.0]},
    "differing": {"months": MONTHS.assign(orders=0), "lag_ms": [np.inf]},
    "slow tail": {"months": MONTHS, "lag_ms": [*np.arange(1.0, 100), 20_000]},
}


@pytest.mark.parametrize("case", CASES)
def test_the_figure_is_saved_and_nothing_in_it_overlaps(case: str, tmp_path: Path) -> None:
    figure = demo_figure(
        **CASES[case],
        client="kafka-python",
        commands_per_second=3210.4,
        customers=23570,
        lag_rate=802.6,
        sustained=False,
    )
    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw(renderer)
    for ax in figure.axes:
        legend = ax.get_legend()
        assert legend
        texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *legend.get_texts(), *figure.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = axis.get_view_interval()
            drawn = [
                tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
            ]
            assert len(drawn) >= (1 if axis is ax.xaxis else 2)
            texts += drawn
        extents = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
        for i, (name, box) in enumerate(extents):
            assert figure.bbox.x0 <= box.x0, name
            assert box.x1 <= figure.bbox.x1, name
            others = [other for other, extent in extents[i + 1 :] if extent.overlaps(box)]
            assert not others, (name, others)
    left, right = (ax.get_tightbbox(renderer) for ax in figure.axes)
    assert left
    assert right
    assert left.x1 <= right.x0
    figure.savefig(tmp_path / "demo.png")
    figure.savefig(tmp_path / "demo.svg")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"
    assert ElementTree.parse(tmp_path / "demo.svg").getroot().tag.endswith("svg")


def test_the_figure_tells_the_run() -> None:
    figure = demo_figure(
        MONTHS, LAGS, client="confluent", commands_per_second=32104.4, customers=23570
    )
    assert figure.get_suptitle() == (
        "35,579 purchases of 23,570 customers as commands through Kafka into MongoDB views: "
        "32,104 a second with confluent"
    )


@pytest.mark.parametrize(
    ("sustained", "says"),
    [
        (True, "at 802 commands a second, which is sustained"),
        (False, "at 802 commands a second, which is not sustained: a queue"),
        (None, "at 802 commands a second"),
    ],
)
def test_the_figure_tells_the_rate_of_the_lag(sustained: bool | None, says: str) -> None:
    figure = demo_figure(
        MONTHS, LAGS, client="c", commands_per_second=3210.0, lag_rate=802.4, sustained=sustained
    )
    assert figure.axes[1].get_title().splitlines()[-1] == says


def test_no_data_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="no write"):
        lag_distribution([], axes())
    with pytest.raises(ValueError, match="no month"):
        orders_by_month(MONTHS.head(0), axes())


MINUTES = pd.DataFrame(
    {"windows": [9_000, 4_000], "late": [0, 1_000], "pandas": [9_000, 5_000]},
    index=pd.Index(["09:00", "09:01"], name="minute"),
)


def test_late_revenue_stands_on_its_window() -> None:
    ax = revenue_a_minute(MINUTES, axes())
    assert bars(ax) == [90, 40, 0, 10]
    assert line(ax, "pandas")[1] == [90, 50]
    assert ax.get_title() == (
        "7.1 % of the revenue was late for its window, and no cent is missing"
    )
    assert "(UTC)" in ax.get_xlabel()
    assert "whole units" in ax.get_ylabel()


def test_a_minute_that_lacks_a_cent_is_marked() -> None:
    ax = revenue_a_minute(MINUTES.assign(late=[0, 999]), axes())
    assert ax.get_title().endswith("and 1 of 2 minutes differ from pandas")
    assert line(ax, "they differ") == ([1], [50])
    with pytest.raises(ValueError, match="got no minute to draw"):
        revenue_a_minute(MINUTES.iloc[:0], axes())


READS = pd.DataFrame(
    [("eventual", 0, ms, stale) for ms, stale in ((1, True), (2, True), (3, True), (9, False))]
    + [("eventual", 20, ms, stale) for ms, stale in ((21, True), (22, False), (23, False), (24, 0))]
    + [("token", 0, float(ms), False) for ms in range(101)]
    + [("linearizable", 0, 7.0, False)],
    columns=["strategy", "pause_ms", "ms", "stale"],
)


def written(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_pauses_are_points_and_what_waits_has_rows_below() -> None:
    ax = stale_against_waiting(READS.sample(frac=1, random_state=1), axes())
    assert line(ax, "eventual, after a pause") == ([2.5, 22.5], [75, 25])
    xs, ys = line(ax, "waits for its goal")
    assert xs == [5, 95]
    assert ys[0] == ys[1] < 0
    assert written(ax) == [
        "immediate: 75 %",
        "after 20 ms: 25 %",
        "token: 50 ms, 0 of 101 (at most 3 %) stale",
        "linearizable: 7 ms, 0 of 1 (at most 100 %) stale",
    ]
    markers = [one.get_marker() for one in ax.lines if one.get_marker() != "None"]
    assert len(set(markers)) == 3, "colour alone must not tell them apart"
    assert ax.get_title() == (
        "75 % of the immediate reads were stale;\n"
        "0 of 102 (at most 2.9 %) reads that waited for their goal were stale"
    )
    assert all(tick >= 0 for tick in ax.get_yticks()), "below zero there are rows, no percentages"


def test_a_broken_promise_is_told() -> None:
    reads = READS.assign(stale=READS["stale"] | (READS["ms"] == 7.0))
    ax = stale_against_waiting(reads, axes())
    assert "2 of 102 reads that waited for their goal were stale" in ax.get_title()
    assert "linearizable: 7 ms, 1 of 1 stale" in written(ax)


def test_reads_of_one_kind_are_enough() -> None:
    ax = stale_against_waiting(READS[READS["strategy"] == "token"], axes())
    assert ax.get_title() == "0 of 101 (at most 3 %) reads that waited for their goal were stale"
    with pytest.raises(ValueError, match="no read"):
        stale_against_waiting(READS[:0], axes())


REBUILT = pd.DataFrame(
    [(10, 10, 0, 0, "v"), (11, 11, 1, 4, "v"), (12, 12, 2, 9, "v"), (13, 13, 13, 13, "v@1")],
    columns=["sent", "seen", "new", "built", "generation"],
)


def test_a_rebuild_is_seen_from_one_look_to_the_next() -> None:
    ax = seen_through_a_rebuild(REBUILT, axes())
    assert line(ax, "documents that a reader saw") == ([1, 2, 3, 4], [10, 11, 12, 13])
    assert line(ax, "… of these by the new projection") == ([1, 2, 3, 4], [0, 1, 2, 13])
    assert line(ax, "next generation") == ([2, 3], [4, 9]), "none before it is begun or it serves"
    assert [one.get_text() for one in ax.texts] == ["the switch"]
    assert ax.get_title() == (
        "Each of 4 looks saw all documents;\nthe new projection appeared for all of them at once"
    )


def test_a_look_that_misses_something_is_marked() -> None:
    ax = seen_through_a_rebuild(REBUILT.assign(seen=[10, 11, 9, 13], new=[0, 1, 2, 12]), axes())
    assert line(ax, "some missing") == ([3], [9])
    assert ax.get_title() == "1 of 4 looks missed documents"
    assert seen_through_a_rebuild(REBUILT.head(3), axes()).get_title().endswith("saw all documents")
    with pytest.raises(ValueError, match="got no look to draw"):
        seen_through_a_rebuild(REBUILT.iloc[:0], axes())
