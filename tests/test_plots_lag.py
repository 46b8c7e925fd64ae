"""The plots of the lag: what is drawn, and what the titles say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from labkit.experiments.load.consistency import STAGES
from labkit.plots import lag as plots
from labkit.plots.style import Picture
from tests.test_plots import axes, labels, line

#: Stages of 1 to 7 ms, the last from 7 to 9; a probe that saw the whole between 27 and 31 ms.
SUMS = pd.DataFrame(
    {"at_least": [1.0, 2, 3, 4, 5, 6, 7, 28, 27], "at_most": [1.0, 2, 3, 4, 5, 6, 9, 30, 31]},
    index=[*STAGES, "sum", "whole"],
)
SEEN = pd.DataFrame(
    {
        "t_ms": [0.0, 5, 10, 15],
        "at_least": [0.1, 0.4, 0.6, 0.99],
        "at_most": [0.2, 0.5, 0.99, 1.0],
        "model": [0.1, 0.4, 0.6, 1.0],
    }
)
SHARES = pd.DataFrame({"share": [0.7, 0.2, 0.1], "share_at_best": [0.8, 0.2, 0.0]})
LAGS = pd.DataFrame(
    {
        "at": [0.1, 0.2, 0.3],
        "offsets": [4.0, 6, 2],
        "commits": [2, 4, 0],
        "by_offsets_ms": [8.0, 12, 4],
        "age_ms": [3.0, 5, 0],
        "probe_ms": [9.0, 10, 11],
    }
)
WAITS = pd.DataFrame(
    {"at": [0.0, 0.1, 0.2], "from_sent_ms": [9.0, 500, 9], "from_intended_ms": [9.0, 500, 420]}
)


def test_the_stages_are_stacked_and_the_reply_stands_where_it_comes() -> None:
    ax = plots.stages_of_the_way(SUMS, axes())
    stacked = [p for p in ax.patches if p.get_y() < 0.5]  # type: ignore[attr-defined]
    ends = [p.get_x() + p.get_width() for p in stacked]  # type: ignore[attr-defined]
    assert ends == [1, 3, 6, 15, 21, 29]
    assert "decided → fetched: 9 ms" in labels(ax)
    assert np.asarray(ax.lines[1].get_xdata()).tolist() == [10, 10]
    assert line(ax, "its bounds")[0] == [27, 31]
    assert ax.get_title() == (
        "66 % of the time to the view comes after the reply;\n"
        "the stages add up to 29 ms, the probe measured 29 ms (0.0 % difference)"
    )


def test_visibility_is_a_band_and_the_model_lies_over_it() -> None:
    ax = plots.t_visibility(SEEN, axes())
    assert line(ax, "first look that saw it")[1] == pytest.approx([10, 40, 60, 99])
    assert line(ax, "last look that missed it")[1] == pytest.approx([20, 50, 99, 100])
    assert line(ax, "the model")[1] == pytest.approx([10, 40, 60, 100])
    assert "independent stages" not in labels(ax)
    assert ax.get_title() == (
        "At once, 10 to 20 % of the reads see the write;\n"
        "half of them do after 5 to 10 ms, 99 % after 10 to 15 ms"
    )


def test_what_is_not_reached_is_said() -> None:
    title = plots.t_visibility(SEEN.iloc[:3], axes()).get_title()
    assert title.endswith("99 % after 10 to more than 10 ms")


def test_versions_behind_have_a_bar_for_each_end() -> None:
    ax = plots.versions_behind(SHARES, axes())
    assert [p.get_height() for p in ax.patches] == pytest.approx(  # type: ignore[attr-defined]
        [70, 20, 10, 80, 20, 0]
    )
    assert ax.get_title() == (
        "20 to 30 % of the reads of a busy stream are stale;\n99 % see one of the newest 3 versions"
    )


def test_reads_that_are_far_behind_are_drawn_as_one() -> None:
    many = pd.DataFrame({"share": [0.05] * 20, "share_at_best": [0.05] * 20})
    ax = plots.versions_behind(many, axes())
    assert ax.get_xticklabels()[-1].get_text() == "8 or more"
    assert ax.patches[8].get_height() == pytest.approx(60)  # type: ignore[attr-defined]


def test_three_lags_are_set_side_by_side() -> None:
    ax = plots.three_lags(LAGS, axes())
    assert line(ax, "offsets ÷ rate")[1] == [8, 12, 4]
    assert line(ax, "age of the oldest unseen")[1] == [3, 5, 0]
    assert line(ax, "commit to visible")[1] == [9, 10, 11]
    assert ax.get_title().startswith("1.67 offsets stand for one invisible commit")
    assert ax.get_title().endswith("median by offsets 8 ms, by age 3 ms, by the probe 10 ms")


def test_two_clocks_count_what_a_stall_held_up() -> None:
    title = plots.two_clocks(WAITS, axes()).get_title()
    assert title == (
        "The stall delayed 2 of 3 requests by more than 250 ms;\n"
        "a clock that starts at the sending shows only 1"
    )


def test_a_prediction_stands_beside_what_was_measured() -> None:
    ax = plots.predicted_lag(np.array([4.0, 8]), np.array([2.0, 4]), 600, axes())
    at, share = line(ax, "measured")
    assert share[np.searchsorted(at, 4.1)] == 100
    assert line(ax, "the model")[1][np.searchsorted(at, 4.1)] == 50
    assert at[-1] > 8
    assert "At 600 commands a second the model predicts a median lag" in ax.get_title()
    assert ax.get_title().endswith("2.0 times the measured one")


Draw = Callable[[pd.DataFrame, Axes], Axes]
DRAWS: list[tuple[Draw, pd.DataFrame]] = [
    (plots.stages_of_the_way, SUMS),
    (plots.t_visibility, SEEN),
    (plots.versions_behind, SHARES),
    (plots.three_lags, LAGS),
    (plots.two_clocks, WAITS),
]


@pytest.mark.parametrize(("draw", "data"), DRAWS)
def test_nothing_cannot_be_drawn(draw: Draw, data: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="to draw: pass at least one"):
        draw(data.iloc[:0], axes())


@pytest.mark.parametrize(("draw", "data"), DRAWS)
def test_titles_and_legends_stay_inside(draw: Draw, data: pd.DataFrame) -> None:
    picture = Picture(figsize=(8.5, 4.5), layout="constrained")
    ax = draw(data, picture.add_subplot())
    FigureCanvasAgg(picture).draw()
    legend = ax.get_legend()
    assert legend is not None
    for one in (ax.title, legend):
        box = one.get_window_extent()
        assert picture.bbox.x0 <= box.x0 < box.x1 <= picture.bbox.x1
        assert picture.bbox.y0 <= box.y0 < box.y1 <= picture.bbox.y1
