"""Who looks from outside: how many commands are in the system, and when each became visible.

The *system* begins at the commands topic and ends at the view. A command is in it from the instant
at which the topic's high watermark covers it, to the instant at which the checkpoint of the view
covers it, in its partition. Checkpoint and view are written in one transaction, so a query that
comes later sees what the command did. No offset arithmetic is needed but this: nothing but commands
takes offsets on a commands topic (its transactions are on the events topic, where markers do).

Two look, each with connections and clock reads of its own, and neither knows of the other:

- :func:`observe` runs in a process of its own and counts: what is in the topic, what is visible.
- :class:`Watch` belongs to who listens for the answers, and gives for each command the two ends
  between which it became visible.

So the number in the system (of the first) and the time in it (of the second) are not made of the
same timestamps, and Little's law says something.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.lab import Lab
from labkit.runtime import calm_gc

if TYPE_CHECKING:
    import pandas as pd

#: Between two looks, in the mean; each pause is drawn, from a half to one and a half of it, so that
#: no rhythm of the system (a batch each 20 ms, say) is met at the same place again and again.
OBSERVE_SECONDS = 0.010
#: What costs more, and is not needed for the number in the system, is looked at each so many looks.
SELDOM = 10

#: What the observer's process sends, a row a look; instants are monotonic nanoseconds.
COLUMNS = (
    "sent_at",
    "sent",
    "at",
    "visible",
    "look_ns",
    "committed",
    "handler_lag",
    "projector_lag",
)


def observe(pipe: Connection, settings: dict[str, Any], context: str) -> None:
    """Look until told to stop; then send all looks, and the share of a core that they took."""
    rng = Random(0)
    rows: list[tuple[float, ...]] = []
    with Lab(**settings, start=False) as lab:
        calm_gc()
        seen = _look(lab, context, None)
        pipe.send_bytes(b"ready")
        began, worked = time.monotonic(), time.process_time()
        while not pipe.poll(OBSERVE_SECONDS * rng.uniform(0.5, 1.5)):
            seen = _look(lab, context, None if len(rows) % SELDOM == 0 else seen)
            rows.append(seen)
        share = (time.process_time() - worked) / (time.monotonic() - began)
        pipe.send_bytes(np.array([[share] * len(COLUMNS), *rows], np.float64).tobytes())
        pipe.poll(None)  # until the parent has read it all


def _look(lab: Lab, context: str, before: tuple[float, ...] | None) -> tuple[float, ...]:
    """One row; without ``before`` also what is looked at seldom, else that is repeated.

    Each count has an instant of its own, the middle of its question: at 5,000 commands a second,
    two counts a millisecond apart differ by five.
    """
    began = time.monotonic_ns()
    sent = sum(lab.ends(f"{context}.commands").values())
    between = time.monotonic_ns()
    checkpoints = lab.queries.checkpoints(context).values()
    ended = time.monotonic_ns()
    visible = sum(checkpoint.command + 1 for checkpoint in checkpoints)
    if before is None:
        topic = lab.topic_name(f"{context}.commands")
        reached = lab.log_broker.committed(topic, lab.group("handler", context))
        committed = sum(reached.values())
        position = sum(checkpoint.position for checkpoint in checkpoints)
        written = sum(lab.ends(f"{context}.events").values())
        seldom: tuple[float, ...] = (committed, sent - committed, written - position)
    else:
        seldom = before[-3:]
    at = (began + between) / 2, float(sent), (between + ended) / 2, float(visible)
    return (*at, float(ended - began), *map(float, seldom))


def samples(data: bytes) -> tuple[pd.DataFrame, float]:
    """What an observer sent: a row a look, and the share of a core that it took.

    Columns: ``at``, ``sent`` (commands in the topic then: interpolated between the two counts of
    the watermarks around it), ``visible``, ``in_system`` = sent - visible, ``committed`` (by the
    handlers' group), ``handler_lag`` and ``projector_lag`` in offsets, ``look_ns``. The last four
    but one are looked at each tenth time, and stand until the next.
    """
    import pandas as pd

    table = np.frombuffer(data, np.float64).reshape(-1, len(COLUMNS))
    raw = pd.DataFrame(table[1:], columns=list(COLUMNS))
    sent = np.interp(raw["at"], raw["sent_at"], raw["sent"])
    found = raw.assign(sent=sent, in_system=sent - raw["visible"])
    order = ["at", "sent", "committed", "visible", "in_system", "handler_lag", "projector_lag"]
    # After its last count of the watermarks nothing is known: that look is dropped.
    return found[[*order, "look_ns"]].iloc[:-1], float(table[0, 0])


class Watch:
    """Looks of the one who listens: until when a command was not visible, and from when on it was.

    ``look`` as often as possible; ``ends`` afterwards.
    """

    def __init__(self, lab: Lab, context: str) -> None:
        self._lab, self._context = lab, context
        self._before: list[int] = []
        self._after: list[int] = []
        self._reached: list[list[int]] = []

    def look(self) -> int:
        """One look; how many commands are visible."""
        before = time.monotonic_ns()
        reached = self._lab.queries.reached(self._context)
        self._after.append(time.monotonic_ns())
        self._before.append(before)
        row = [reached.get(partition, -1) for partition in range(self._lab.partitions)]
        self._reached.append(row)
        return sum(row) + len(row)

    def ends(
        self, partitions: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For the command at each place: the begin of the last look that missed it, and the end of
        the first that saw it. NaN: there was no such look."""
        before, after = np.array(self._before, np.float64), np.array(self._after, np.float64)
        reached = np.array(self._reached).reshape(len(before), -1)
        stale, fresh = np.full(len(offsets), np.nan), np.full(len(offsets), np.nan)
        for partition in range(reached.shape[1]):
            mine = partitions == partition
            first = np.searchsorted(reached[:, partition], offsets[mine])
            fresh[mine] = np.append(after, np.nan)[first]
            stale[mine] = np.append(np.nan, before)[first]
        return stale, fresh
