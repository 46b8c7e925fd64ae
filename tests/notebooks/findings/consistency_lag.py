"""The claims of notebook 10, and the planted bugs that turn each claim red.

Without servers a model simulates the loads; the claims are the same.
"""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

NAME = "10_consistency_lag"
CLAIMS = ("the lag", "does not see the write", "markers take offsets")

OFFSETS = "the same three commits are six offsets or four, and none once the view has them"
CLOCKS = "a closed loop misses nearly all of a stall"
SUM = "the stages add up to what a probe saw"
BAND = "a later read is more likely to see the write, by both bounds"
MODEL = "the model predicts the median of a half that it has not seen"
BEHIND = "some reads of busy streams are behind, and few of them far"
THREE = "there are more offsets than commits"
LOAD = "more load is more lag"
SAID = "the plots say that a load was simulated, and only then"

#: Bound of the model's relative error of the median: in a simulated run, and in a short run on a
#: busy machine. A longer run on a quiet machine has a narrower bound (`labkit load`).
ERROR = {"memory": 0.1, "kafka": 0.5}


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    stalled: list[int] = book.value("[int((waits[c] > 500).sum()) for c in clocks.columns]")
    sums = book.value("sums.loc[['sum', 'whole']].values.tolist()")
    low, high = seen = book.value("[seen['at_least'].to_list(), seen['at_most'].to_list()]")
    stale, early = book.value("shares[['share', 'share_at_best']].T.values.tolist()")
    offsets, commits = book.value("lags[['offsets', 'commits']].sum().to_list()")
    lags: list[float] = book.value("[float(np.median(at_rate(times))) for times in (1, 4, 16)]")
    (said, probed) = sums
    # No model can be fitted to a disturbed run.
    disturbed = book.value("BACKEND != 'memory' and bool(loaded.trouble)")
    return {
        OFFSETS: book.value("counted.values.tolist()") == [[3, 6, 0], [3, 4, 0]],
        CLOCKS: stalled[0] <= 2 and stalled[1] >= stalled[0] + 3,
        SUM: said[0] <= probed[1]
        and probed[0] <= said[1]
        and book.value("consistency.off_by(sums)") < 0.1,
        BAND: all(ends == sorted(ends) for ends in seen)
        and all(a <= b for a, b in zip(low, high, strict=True))
        and low[0] < 0.5 < low[-1],
        MODEL: disturbed or book.value("predicted.error_p50") < ERROR[book.value("BACKEND")],
        BEHIND: stale[0] < 1 and early[0] >= stale[0] > 0.2 and abs(sum(stale) - 1) < 1e-9,
        THREE: offsets > 1.05 * commits > 0,
        SAID: book.value("(visibility.get_suptitle() or '')[:9]")
        == {"memory": "Simulated", "kafka": ""}[book.value("BACKEND")],
        LOAD: disturbed or (lags == sorted(lags) and lags[-1] > 1.2 * lags[0]),
    }


NO_MARKERS = """
from labkit.adapters.memory import MemoryBroker
_append = MemoryBroker.append
MemoryBroker.append = lambda broker, *record: _append(broker, *record[:-1], None)
"""

LOOKS_AWAY = """
_one_by_one = one_by_one
def one_by_one(*arguments, **options):
    return _one_by_one(*arguments, **options).eval("from_intended_ms = from_sent_ms")
"""

A_STAGE_IS_MISSING = """
_stages = consistency.stages
def without_waiting(commands):
    found = _stages(commands)
    longest = found[list(consistency.STAGES)].mean().idxmax()  # another on each machine
    return found.assign(**{longest: 0.0})
consistency.stages = without_waiting
"""

ENDS_ARE_SWAPPED = """
_lag = consistency.lag
def swapped(commands):
    return _lag(commands).rename(columns={"stale_ms": "fresh_ms", "fresh_ms": "stale_ms"})
consistency.lag = swapped
"""

NOTHING_WAITS = """
model.Station.cycles = lambda station, arrivals, sizes, rng: (
    (n, n + 1, at, at + station.out_rest[0], 0.0) for n, at in enumerate(arrivals)
)
"""

VISIBLE_WHEN_HEARD = """
_known = consistency.known
def at_once(commands):
    return _known(commands).eval("visible = heard").eval("stale = heard")
consistency.known = at_once
"""

COUNTS_COMMITS = """
_three_lags = consistency.three_lags
consistency.three_lags = lambda loaded: _three_lags(loaded).eval("offsets = commits")
"""

BATCHES_COST_NOTHING = """
from labkit.experiments.load.station import Line
Line.at = lambda line, size: line.base + 0 * size
"""

NO_TITLE = "Picture.suptitle = lambda *_, **__: None"

TWINS = {
    "no plot has a title of its source": ("set-up", NO_TITLE, {SAID}),
    "transactions leave no markers": ("set-up", NO_MARKERS, {OFFSETS}),
    "the schedule is ignored": ("set-up", LOOKS_AWAY, {CLOCKS}),
    "a stage is missing": ("load", A_STAGE_IS_MISSING, {SUM}),
    "the two bounds are swapped": ("stages", ENDS_ARE_SWAPPED, {BAND}),
    "nothing waits in the model": ("stages", NOTHING_WAITS, {MODEL, LOAD}),
    "a commit is visible at its reply": ("visibility", VISIBLE_WHEN_HEARD, {BEHIND, THREE}),
    "only commits are counted": ("versions", COUNTS_COMMITS, {THREE}),
    "a batch costs as much as one command": ("three-lags", BATCHES_COST_NOTHING, {LOAD}),
}
#: On real servers, where the loads are measured.
SERVER_TWINS = {
    "a stage is missing, on real servers": ("load", A_STAGE_IS_MISSING, {SUM}),
}
