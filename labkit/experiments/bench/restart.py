"""What snapshots and checkpoints save: the state of a long stream, and a handler's restart.

Two ratios, each measured side by side in one process and alternating, after one round that does not
count (connections, metadata, the servers' caches):

- *snapshot speed-up*: the state of one stream of 100,500 events through ``EventLog.state``, folded
  from the start against folded from the newest snapshot, 500 events before its end. Both ways read
  the same topic with the same code; they differ in where they begin. Each has a reader of its own:
  on one that had just read 100,500 commits, the short way was seen to take half a second longer.
  The stream has its partition to itself, or the way from the start would be longer still. From the
  start, the time goes into fetching and decoding 100,500 commits; from the snapshot, into one
  look-up in MongoDB and some round trips to Kafka (the ends of the partitions, a seek, fetches
  until the end is known). Kafka gives out whole batches, so a
  client also unpacks what lies before the snapshot in its batch: the long stream is written by a
  handler that takes 500 commands at a time (``batch_size``); with 4,000, runs differed from 34 to
  160. And the factor says as much about the client as about
  snapshots: confluent-kafka reads 100,500 commits in 0.4 s, and needs 0.2 s to find that a
  partition has ended.
- *restart ratio*: a handler of 200,000 streams takes over all partitions of a log of 200,000
  commits, and of one of 1,000,000 on as many streams. In both, 5,000 commits, each of a stream of
  its own, lie beyond the checkpoint. A restart runs from making the handler to owning and having
  replayed all partitions; it goes into joining the group, and into replaying the tail: fetching,
  decoding, loading its states in batches. It saves nothing here, so that each restart finds the
  same tail. ``replay_s`` is the part without the join. The states of the longer log remember five
  command ids instead of one, so the documents that are loaded are a little larger there.

The servers hold what was written last in their caches, in both arms of both ratios: nothing here is
read from a cold disk. The topics are filled by a real handler, with confluent-kafka where it is
installed, since that is three times as fast; what is measured runs on the client that was asked
for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import Struct

from labkit import stack
from labkit.errors import UsageError
from labkit.experiments.bench.filling import NEVER, fill_client, filling, handler_of
from labkit.experiments.demo import Progress
from labkit.experiments.results import load_average, machine, versions
from labkit.lab import Lab
from labkit.log.event_log import EventLog
from labkit.messages import Command
from labkit.run.worker import calm_gc
from labkit.services.catalog import ChangePrice, Entry, ListProduct
from labkit.services.services import CONTEXTS
from labkit.write.handler import Recovered

CATALOG = CONTEXTS["catalog"]
PRODUCT = "pen"


class Sizes(Struct, frozen=True):
    """How much of everything; ``rounds`` count, one more before them does not."""

    events: int = 100_000
    snapshot_every: int = 1_000
    events_after: int = 500
    batch_size: int = 500
    streams: int = 200_000
    times_longer: int = 5
    tail: int = 5_000
    rounds: int = 5

    def scaled(self, scale: float) -> Sizes:
        """The same shape, smaller. Raises ``UsageError``."""
        if not 0.001 <= scale <= 1:
            raise UsageError(f"--scale must be from 0.001 to 1, got {scale:g}")
        return msgspec.structs.replace(
            self,
            events=round(self.events * scale),
            snapshot_every=round(self.snapshot_every * scale),
            events_after=max(1, round(self.events_after * scale)),
            streams=round(self.streams * scale),
            tail=round(self.tail * scale),
        )


def restart(
    name: str,
    client: str,
    sizes: Sizes,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Both parts on real servers; the result is the JSON.

    Starts servers that are not up, and stops what it started. Raises ``StackError`` and
    ``TimedOut`` where they fail.
    """
    calm_gc()
    with stack.borrowed(name, report) as servers:
        found: dict[str, Any] = {
            "bench": "restart",
            "client": client,
            "fill_client": fill_client(client),
            "sizes": msgspec.to_builtins(sizes),
            "streams": sizes.streams,
            "machine": machine(),
            "load_average_before": load_average(),
            "stack": servers.kind,
        }
        with _lab(name, client) as lab:
            found["versions"] = versions(
                lab.server_versions(), "kafka-python", fill_client(lab.settings.client)
            )
            report(f"run {lab.run}: one stream of {sizes.events + sizes.events_after:,} events")
            found |= _long_stream(lab, sizes, progress)
        with _lab(name, client) as short, _lab(name, client) as long:
            report(f"runs {short.run} and {long.run}: {sizes.streams:,} streams each")
            found |= _restarts(short, long, sizes, progress)
        found["load_average_after"] = load_average()
    found["same_state"] = found["snapshots"]["same_state"] and found["restarts"]["same_state"]
    return found


# --- one long stream


def _long_stream(lab: Lab, sizes: Sizes, progress: Progress) -> dict[str, Any]:
    total = sizes.events + sizes.events_after
    commands = (
        ChangePrice(PRODUCT, n) if n else ListProduct(PRODUCT, "a pen", n) for n in range(total)
    )
    with filling(CATALOG, lab) as handle:
        began = time.monotonic()
        handle(
            commands,
            total,
            lambda done: progress("events", done, total),
            sizes.snapshot_every,
            batch_size=sizes.batch_size,
        )
        filled = time.monotonic() - began
    stream = ChangePrice(PRODUCT, 0).stream
    readers = {snapshots: _reader(lab) for snapshots in (True, False)}
    times: dict[bool, list[float]] = {True: [], False: []}
    states: list[Entry] = []
    rounds = 1 + sizes.rounds
    for number in range(rounds):
        for snapshots in (True, False) if number % 2 else (False, True):
            began = time.perf_counter()
            states.append(readers[snapshots].state(stream, snapshots=snapshots))
            times[snapshots].append(time.perf_counter() - began)
        progress("states", number + 1, rounds)
    for reader in readers.values():
        reader.close()
    fast, slow = times[True][1:], times[False][1:]
    taken = lab.store.count(CATALOG.snapshots)
    return {
        "snapshot_speedup": round(statistics.median(slow) / statistics.median(fast), 1),
        "snapshots": {
            "events": total,
            "taken": taken,
            "fill_s": round(filled, 1),
            "from_snapshot_s": _seconds(fast),
            "from_start_s": _seconds(slow),
            "first_round_s": {
                "from_snapshot": round(times[True][0], 4),
                "from_start": round(times[False][0], 4),
            },
            "same_state": taken == total // sizes.snapshot_every
            and all(state == Entry("a pen", total - 1) for state in states),
        },
    }


def _reader(lab: Lab) -> EventLog:
    source = lab.broker.source(lab.topic_name("catalog.events"))
    return EventLog(CATALOG, source, lab.store)


# --- a restart


class _Restart(Struct):
    """One take-over of all partitions: seconds in all, those of the replay, commits replayed."""

    seconds: float
    replay: float
    commits: int
    same: bool


def _restarts(short: Lab, long: Lab, sizes: Sizes, progress: Progress) -> dict[str, Any]:
    fill: dict[str, float] = {}
    for what, lab, times in (("short log", short, 1), ("long log", long, sizes.times_longer)):
        began = time.monotonic()
        _fill(lab, sizes, times, what, progress)
        fill[what] = round(time.monotonic() - began, 1)
    found: dict[str, list[_Restart]] = {"short_log": [], "long_log": []}
    rounds = 1 + sizes.rounds
    for number in range(rounds):
        arms = [("short_log", short, 1), ("long_log", long, sizes.times_longer)]
        for arm, lab, times in arms if number % 2 else reversed(arms):
            found[arm].append(_take_over(lab, sizes, times))
        progress("restarts", number + 1, rounds)
    every = [one for arm in found.values() for one in arm]
    counted = {arm: restarts[1:] for arm, restarts in found.items()}
    whole = {arm: statistics.median(r.seconds for r in rs) for arm, rs in counted.items()}
    replay = {arm: statistics.median(r.replay for r in rs) for arm, rs in counted.items()}
    return {
        "restart_s": {arm: round(seconds, 4) for arm, seconds in whole.items()},
        "restart_ratio": round(whole["long_log"] / whole["short_log"], 3),
        "replay_s": {arm: round(seconds, 4) for arm, seconds in replay.items()},
        "replay_ratio": round(replay["long_log"] / replay["short_log"], 3),
        "restarts": {
            "commits": {
                "short_log": sizes.streams + sizes.tail,
                "long_log": sizes.streams * sizes.times_longer + sizes.tail,
            },
            "saved_streams": {"short_log": _saved(short), "long_log": _saved(long)},
            "replayed": sorted({one.commits for one in every}),
            "fill_s": fill,
            "restart_s": {arm: _seconds([r.seconds for r in rs]) for arm, rs in counted.items()},
            "replay_s": {arm: _seconds([r.replay for r in rs]) for arm, rs in counted.items()},
            "first_round_s": {arm: round(rs[0].seconds, 4) for arm, rs in found.items()},
            "same_state": all(one.same and one.commits == sizes.tail for one in every)
            and _saved(short) == _saved(long) == sizes.streams,
        },
    }


def _fill(lab: Lab, sizes: Sizes, times: int, what: str, progress: Progress) -> None:
    """So many commits on every stream, saved; then the tail, handled and not saved."""
    total = sizes.streams * times

    def commands() -> Iterator[Command]:
        for n in range(sizes.streams):
            yield ListProduct(f"p{n}", "a pen", 0)
            for cents in range(1, times):
                yield ChangePrice(f"p{n}", cents)

    def tail() -> Iterator[Command]:
        for n in _tail(sizes):
            yield ChangePrice(f"p{n}", times)

    with filling(CATALOG, lab) as handle:
        handle(commands(), total, lambda done: progress(what, done, total), NEVER)
        handle(tail(), sizes.tail, lambda _: None, NEVER, ids="t", save=False)


def _tail(sizes: Sizes) -> range:
    """The streams of the tail, spread over all."""
    return range(0, sizes.streams, sizes.streams // sizes.tail)[: sizes.tail]


def _take_over(lab: Lab, sizes: Sizes, times: int) -> _Restart:
    parts: list[Recovered] = []
    began = time.perf_counter()
    handler = handler_of(
        CATALOG, lab, lab, NEVER, report=parts.append, flush_streams=NEVER, flush_seconds=NEVER
    )
    try:
        handler.join(lab.partitions)
        seconds = time.perf_counter() - began
        streams = handler._streams
        same = len(streams) == sizes.tail and all(
            (kept := streams.get(f"product-p{n}")) is not None
            and (kept.version, kept.state) == (times + 1, Entry("a pen", times))
            for n in _tail(sizes)
        )
    finally:
        handler.close()
    return _Restart(
        seconds, sum(part.seconds for part in parts), sum(part.commits for part in parts), same
    )


def _saved(lab: Lab) -> int:
    return lab.store.count(CATALOG.states)


# --- what both parts share


@contextmanager
def _lab(name: str, client: str) -> Iterator[Lab]:
    """A run of its own, that is gone afterwards."""
    with Lab(name, client=client, services=["catalog"]) as lab:
        try:
            yield lab
        finally:
            lab.drop()


def _seconds(values: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "each": [round(value, 4) for value in values],
    }
