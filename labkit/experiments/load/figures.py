"""The figures of a load, and whether they count.

They count if the generator was on time, Little's law holds, every command was acknowledged, and no
checker is red (``verify/checkers.py``). The checkers go by what the clients saw: the generator
knows the place of each command from the broker, and the listener heard the answers.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import UsageError
from labkit.experiments.backlog import behind
from labkit.experiments.load import arrivals, steady
from labkit.experiments.load.consistency import histogram
from labkit.experiments.percentiles import RANGE, percentiles
from labkit.experiments.verify.checkers import check, gather
from labkit.experiments.verify.history import Heard, History
from labkit.experiments.verify.verdict import red, to_report
from labkit.lab import Lab
from labkit.messages import Commit, Token

if TYPE_CHECKING:
    import pandas as pd

    from labkit.experiments.load.offer import Loaded

#: A model is fitted if the projector's instants are known for this share of the commands.
KNOWN = 0.99
#: Checkpoints pass the last transaction markers within this time; otherwise C1 turns red.
SETTLE_SECONDS = 5.0


def judge(loaded: Loaded, everything: pd.DataFrame) -> None:
    """Add the conditions of a valid run to the report, and the broken ones to ``trouble``."""
    commands, window, report = loaded.commands, loaded.window, loaded.report
    rate = len(commands) / loaded.plan.seconds
    report["generator"] = steady.on_time(commands, window) | {"ability": report.pop("ability")}
    report["backlog"] = steady.level(loaded.samples, window, rate)
    report["little"] = steady.little(everything, loaded.samples, window)
    lost = int(commands["acked"].isna().sum())
    report["counts"] = {
        "sent": loaded.sent,
        "in_window": len(commands),
        "not_acknowledged": lost,
        "not_answered": int(commands["heard"].isna().sum()),
        "not_visible": int(commands["visible"].isna().sum()),
        "outcomes": dict(sorted(Counter(commands["outcome"].dropna()).items())),
    }
    if not report["generator"]["ok"]:
        late = report["generator"]["late_ms"]["p99"]
        loaded.trouble.append(
            f"the generator did not keep its timetable: p99 of its lateness is {late:g} ms, and "
            f"{report['generator']['sent_in_window']:,} of {len(commands):,} left in the window"
        )
    if not report["little"]["ok"]:
        law = report["little"]
        loaded.trouble.append(
            f"Little's law is off by {law['difference']:.1%}: L is {law['L']:,.1f}, lambda W is "
            f"{law['lambda_W']:,.1f}, {law['edges']:+,.1f} for the edges of the window"
        )
    if lost:
        loaded.trouble.append(f"{lost:,} commands were not acknowledged")


def figures(loaded: Loaded) -> dict[str, Any]:
    """Rates and latencies, for the report of a run that counts.

    Latencies in ms: ``ack`` from sent, ``reply`` and ``visible`` from intended, ``lag`` from heard;
    ``visible`` and ``lag`` to the later of the two ends, ``lag_stale`` to the earlier. Commands
    that never got there count as the histogram's greatest value.
    """
    c, seconds = loaded.commands, loaded.plan.seconds
    return {
        "offered_per_second": round(len(c) / seconds, 1),
        "visible_per_second": round(int(c["visible"].between(*loaded.window).sum()) / seconds, 1),
        "latencies_ms": {
            "ack": _histogram(c["acked"] - c["sent"]),
            "reply": _histogram(c["heard"] - c["intended"]),
            "visible": _histogram(c["visible"] - c["intended"]),
            "lag": _histogram(c["visible"] - c["heard"]),
            "lag_stale": _histogram(c["stale"] - c["heard"]),
        },
    }


def modelled(loaded: Loaded) -> dict[str, Any]:
    """The prediction of the lag model for a run that counts (``model.predict``), by percentile."""
    from labkit.experiments.load.model import predict

    fetched = int(loaded.commands["fetched"].notna().sum())
    if fetched < KNOWN * len(loaded.commands):
        return {
            "why": "the model needs the instants of the projector of every command; the view keeps "
            f"those of the newest of each stream: {fetched:,} of {len(loaded.commands):,}"
        }
    try:
        return predict(loaded).report()
    except UsageError as error:
        return {"why": str(error)}


def _histogram(nanoseconds: pd.Series[float]) -> dict[str, float]:
    least, _, _ = RANGE
    return percentiles(histogram((nanoseconds / 1e6).fillna(np.inf).clip(lower=least / 1e3)))


def judge_by_checkers(
    lab: Lab,
    loaded: Loaded,
    acked: NDArray[np.int64],
    heard: list[tuple[int, Commit[Any]]],
) -> None:
    """Run the checkers on what the clients saw: acknowledgements and answers."""
    plan, service = loaded.plan, loaded.plan.service.name
    history = History()
    answers = {}
    for _, commit in heard:
        mark = Heard.of(service, commit)
        history.heard.append(mark)
        answers[mark.token] = mark.answer
    opened = {commit.id: commit for _, commit in heard if commit.id.startswith("open")}
    for command in arrivals.opening(plan, len(acked)):
        operation = history.invoke(command, id=f"open{len(history)}")
        if (made := opened.get(operation.id)) is None:
            operation.unknown("it was never heard of")
        else:
            operation.token = Token(service, made.partition, made.offset)
            operation.ok(made.answer)
    for number, command in enumerate(arrivals.commands(plan, len(acked))):
        operation = history.invoke(command, id=f"c{number}")
        _, partition, offset = acked[number].tolist()
        token = Token(service, partition, offset)
        operation.token = token if offset >= 0 else None
        if (answer := answers.get(token)) is None:
            operation.unknown("it was never heard of")
        else:
            operation.ok(answer)
    _settle(lab)
    verdicts = check(gather(lab, service), history)
    loaded.report["checkers"] = to_report(verdicts)
    if wrong := red(verdicts):
        loaded.trouble.append(f"{', '.join(wrong)} turned red")


def _settle(lab: Lab) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while behind(lab) and time.monotonic() < deadline:
        time.sleep(0.05)
