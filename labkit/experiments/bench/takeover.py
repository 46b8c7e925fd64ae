"""A handler takes over all partitions, of a short log and of a long one.

Both logs have 200,000 streams; the short one holds 200,000 commits, the long one 1,000,000. In
both, 5,000 commits, each of a different stream, are beyond the checkpoint. A takeover runs from
creating the handler until it owns and has replayed all partitions: it joins the group, and replays
the tail (fetch, decode, load the states in batches). It saves nothing here, so that each takeover
finds the same tail. ``replay_s`` leaves out the join. A state of the longer log remembers five
command ids instead of one, so the loaded documents are a little larger there.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from msgspec import Struct

from labkit.experiments.bench.decided import Taken
from labkit.experiments.bench.filling import NEVER, fill, handler_of
from labkit.experiments.bench.long_streams import Even
from labkit.experiments.bench.restart_sizes import Sizes, seconds
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import quotient
from labkit.lab import Lab
from labkit.service import Service
from labkit.write.take_over import Recovered


class _Takeover(Struct):
    """Seconds in all, seconds of the replay, commits replayed, and whether the states are right."""

    seconds: float
    replay: float
    commits: int
    same: bool


def takeovers(
    short: Lab, long: Lab, service: Service, even: Even, sizes: Sizes, progress: Progress
) -> dict[str, Any]:
    """Fill both logs and measure their takeovers, alternating; the first round does not count."""
    tail = [even.streams[number] for number in tail_streams(sizes)]
    tails = {times: even.next(tail, times) for times in (1, sizes.times_longer)}
    fill_s: dict[str, float] = {}
    for what, lab, times in (("short log", short, 1), ("long log", long, sizes.times_longer)):
        began = time.monotonic()
        total = sizes.streams * times
        commands = (taken.command for taken in even.commands(times))
        fill(service, lab, commands, total, lambda done, w=what, t=total: progress(w, done, t))  # type: ignore[misc]
        after = (taken.command for taken in tails[times])
        fill(service, lab, after, sizes.tail, ids="t", save=False)
        fill_s[what] = round(time.monotonic() - began, 1)
    found: dict[str, list[_Takeover]] = {"short_log": [], "long_log": []}
    rounds = 1 + sizes.rounds
    for number in range(rounds):
        arms = [("short_log", short, 1), ("long_log", long, sizes.times_longer)]
        for arm, lab, times in arms if number % 2 else reversed(arms):
            found[arm].append(_take_over(lab, service, tails[times]))
        progress("restarts", number + 1, rounds)
    every = [one for arm in found.values() for one in arm]
    counted = {arm: restarts[1:] for arm, restarts in found.items()}
    whole = {arm: statistics.median(r.seconds for r in rs) for arm, rs in counted.items()}
    replay = {arm: statistics.median(r.replay for r in rs) for arm, rs in counted.items()}
    return {
        "restart_s": {arm: round(seconds, 4) for arm, seconds in whole.items()},
        "restart_ratio": round(quotient(whole["long_log"], whole["short_log"]), 3),
        "replay_s": {arm: round(seconds, 4) for arm, seconds in replay.items()},
        "replay_ratio": round(quotient(replay["long_log"], replay["short_log"]), 3),
        "restarts": {
            "commits": {
                "short_log": sizes.streams + sizes.tail,
                "long_log": sizes.streams * sizes.times_longer + sizes.tail,
            },
            "saved_streams": {"short_log": _saved(short), "long_log": _saved(long)},
            "replayed": sorted({one.commits for one in every}),
            "fill_s": fill_s,
            "restart_s": {arm: seconds([r.seconds for r in rs]) for arm, rs in counted.items()},
            "replay_s": {arm: seconds([r.replay for r in rs]) for arm, rs in counted.items()},
            "first_round_s": {arm: round(rs[0].seconds, 4) for arm, rs in found.items()},
            "same_state": all(one.same and one.commits == sizes.tail for one in every)
            and _saved(short) == _saved(long) == sizes.streams,
        },
    }


def tail_streams(sizes: Sizes) -> range:
    """The numbers of the streams of the tail, evenly spread."""
    return range(0, sizes.streams, sizes.streams // sizes.tail)[: sizes.tail]


def _take_over(lab: Lab, service: Service, tail: list[Taken]) -> _Takeover:
    parts: list[Recovered] = []
    began = time.perf_counter()
    handler = handler_of(
        service, lab, lab, NEVER, report=parts.append, flush_streams=NEVER, flush_seconds=NEVER
    )
    try:
        handler.join(lab.partitions)
        took = time.perf_counter() - began
        streams = handler._states.streams
        same = len(streams) == len(tail) and all(
            (kept := streams.get(taken.stream)) is not None
            and (kept.version, kept.state) == (taken.version, taken.state)
            for taken in tail
        )
    finally:
        handler.close()
    replay = max((part.seconds for part in parts), default=0.0)  # they replay side by side
    return _Takeover(took, replay, sum(part.commits for part in parts), same)


def _saved(lab: Lab) -> int:
    return lab.store.count(lab.of.service(lab.first).states)
