"""What all runs say together: the figures, who wins what, and whether arms are what they claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs

from labkit.experiments.cost.arm import ARMS, RIGHT
from labkit.experiments.cost.figures import SECONDS, summary, wins
from labkit.experiments.cost.size import Size, to_know
from labkit.experiments.cost.size import sizes as sizes_by_arm
from labkit.experiments.cost.under_load import Figures
from labkit.experiments.intervals import LEAST_SECONDS
from labkit.experiments.verify.verdict import Verdict, red, to_report

#: An arm that needs so much longer than the timetable has not sustained the rate.
LATE = 1.2
#: The measurement that is of the source code.
SIZE = "size"


def judge(
    rows: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Sequence[Mapping[str, Verdict]]],
    seconds: float,
    *,
    size: bool = False,
) -> dict[str, Any]:
    """The figures, who wins what, and whether the bench says anything.

    ``seconds`` is how long a load was to last; ``size``: the code is counted, too.
    """
    sizes = sizes_by_arm() if size else {}
    rows = [{**row, **_size(row["arm"], sizes)} for row in rows]
    figures = summary(rows)
    checked = {arm: [to_report(one) for one in each] for arm, each in verdicts.items()}
    wrong = [
        f"{arm}, run {run + 1}: {checker}: {(judged[checker].violations or [''])[0]}"
        for arm in RIGHT
        for run, judged in enumerate(verdicts[arm])
        for checker in red(judged)
    ]
    naive = verdicts["naive"]
    resent = {row["run"]: row.get("resent", 0) for row in rows if row["arm"] == "naive"}
    wrong += [
        f"naive, run {run + 1}: all checkers are green though {resent[run]} commands were sent "
        "again and writers met: it measured nothing"
        for run, judged in enumerate(naive)
        if not red(judged) and resent.get(run)
    ]
    short = {
        name.removesuffix("_s"): round(min(row[name] for row in rows if name in row), 2)
        for name in SECONDS
        if any(row.get(name, LEAST_SECONDS) < LEAST_SECONDS for row in rows)
    }
    return {
        "wins": wins(figures, "crud"),
        "losses": wins(figures, "labkit"),
        "figures": figures,
        "anomalies": _anomalies(naive),
        "arms": {arm: to_know(arm) for arm in ARMS},
        "sizes": {arm: structs.asdict(size) for arm, size in sizes.items()},
        "checkers": checked,
        "rows": [dict(row) for row in rows],
        "too_short": short,
        "not_sustained": [
            arm
            for arm in ARMS
            if any(row.get("latency_s", 0) > LATE * seconds for row in rows if row["arm"] == arm)
        ],
        "wrong": wrong,
        "ok": not wrong,
    }


def _size(arm: str, sizes: Mapping[str, Size]) -> Figures:
    if arm not in sizes:
        return {}
    known = to_know(arm)
    return {
        "own_lines": sizes[arm].own_lines,
        "concepts": len(known["concepts"]),
        "failure_modes": len(known["failure_modes"]),
        "kinds_running": len(known["runs"]),
    }


def _anomalies(naive: Sequence[Mapping[str, Verdict]]) -> dict[str, list[int]]:
    """What the checkers found wrong in the naive arm: a number for each run."""
    names = dict.fromkeys(name for judged in naive for name in judged)
    return {
        name: [judged[name].found for judged in naive if name in judged]
        for name in names
        if any(judged[name].found for judged in naive if name in judged)
    }
