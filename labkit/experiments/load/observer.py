"""Observers: the number of commands in the system, and when each command became visible.

The *system* reaches from the generator's call of ``send`` to the view. A command enters it at that
call (``sent``; the generator counts in shared memory) and leaves it when the view's checkpoint
covers the command, in its partition. Checkpoint and view are written in one transaction, so a later
query sees the command's effect. The client's buffer is part of the system: the broker's
acknowledgement comes some milliseconds after the topic has the command, which is too inexact a
beginning. The arithmetic of offsets is simple: on a commands topic only commands take offsets
(transactions, and so their markers, are on the events topic).

There are two observers, each with its own connections and clock reads:

- :func:`observe` runs in a separate process and counts the sent and the visible commands.
- :class:`Watch` belongs to the listener and gives for each command the two instants between which
  it became visible.

So the number in the system (by the first) and the time in it (by the second) come from different
timestamps, and Little's law is a real test.
"""

from __future__ import annotations

import os
import time
from array import array
from multiprocessing.connection import Connection
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.experiments.load.steady import Window
from labkit.lab import Lab
from labkit.run.worker import calm_gc

if TYPE_CHECKING:
    import pandas as pd

#: Mean time between two looks. Pauses are drawn from a half to one and a half of it, so that looks
#: do not keep step with the system (with a batch each 20 ms, for example). In simulated runs of 5 s
#: the mean number in the system was off by at most 1 % (of 150 runs), with 20 ms by 2.2 %.
OBSERVE_SECONDS = 0.010
#: The expensive columns, which the number in the system does not need, are read every n-th look.
SELDOM = 10

#: The columns of the observer's table, one row for each look; ``at`` is in monotonic nanoseconds.
COLUMNS = (
    "at",
    "sent",
    "visible",
    "look_ns",
    "in_topic",
    "committed",
    "handler_lag",
    "projector_lag",
)


def observe(pipe: Connection, settings: dict[str, Any], service: str, count: Any) -> None:
    """Say the pid, look until told to stop, and once more; send all looks.

    ``count`` is the generator's, in shared memory.
    """
    rng = Random(0)
    looks, rows = 0, array("d")
    with Lab(**settings, start=False) as lab:
        calm_gc()
        seen = _look(lab, service, count, None)
        pipe.send_bytes(str(os.getpid()).encode())
        while not pipe.poll(OBSERVE_SECONDS * rng.uniform(0.5, 1.5)):
            seen = _look(lab, service, count, None if looks % SELDOM == 0 else seen)
            looks += 1
            rows.extend(seen)
        rows.extend(_look(lab, service, count, None))
        pipe.send_bytes(rows.tobytes())
        pipe.poll(None)  # until the parent has read it all


def _look(
    lab: Lab, service: str, count: Any, before: tuple[float, ...] | None
) -> tuple[float, ...]:
    """One row; without ``before`` with the expensive columns, else these are repeated from it.

    The sent commands are counted before and after the visible ones: at 5,000 commands a second, two
    counts one millisecond apart differ by five.
    """
    began, sent = time.monotonic_ns(), count.value
    checkpoints = lab.queries.checkpoints(service).values()
    ended, more = time.monotonic_ns(), count.value
    visible = sum(checkpoint.command + 1 for checkpoint in checkpoints)
    if before is None:
        topic = lab.topic_name(f"{service}.commands")
        reached = lab.log_broker.committed(topic, lab.of.group("handler", service))
        in_topic, committed = sum(lab.ends(f"{service}.commands").values()), sum(reached.values())
        position = sum(checkpoint.position for checkpoint in checkpoints)
        written = sum(lab.ends(f"{service}.events").values())
        lags = in_topic - committed, written - position
        seldom: tuple[float, ...] = (in_topic, committed, *lags)
    else:
        seldom = before[4:]
    return ((began + ended) / 2, (sent + more) / 2, visible, ended - began, *seldom)


def samples(data: bytes) -> pd.DataFrame:
    """An observer's looks, one row each.

    Columns: ``at``, ``sent`` (by the generator, until then), ``visible``, ``in_system`` = sent -
    visible, and ``look_ns``, how long the look took. Read at every tenth look and repeated
    until the next: ``in_topic`` (by its high watermark), ``committed`` (by the handlers' group),
    and in offsets ``handler_lag`` and ``projector_lag``.
    """
    import pandas as pd

    table = np.frombuffer(data, np.float64).reshape(-1, len(COLUMNS))
    found = pd.DataFrame(table, columns=list(COLUMNS))
    found.insert(3, "in_system", found["sent"] - found["visible"])
    return found


def cost(looks: pd.DataFrame, window: Window) -> dict[str, Any]:
    """How often the observer looked, and how long a look took."""
    at = looks["at"][looks["at"].between(*window)].to_numpy()
    gaps = np.diff(at) / 1e6 if len(at) > 1 else np.array([np.nan])
    return {
        "asked_interval_ms": OBSERVE_SECONDS * 1e3,
        "interval_ms": round(float(np.mean(gaps)), 2),
        "longest_interval_ms": round(float(np.max(gaps)), 2),
        "look_ms": round(float(looks["look_ns"].median()) / 1e6, 3),
    }


class Watch:
    """The listener's looks, which bound the instant at which each command became visible.

    Call ``look`` as often as possible, and ``ends`` afterwards. Of looks that saw the same, the
    beginning of the last and the end of the first are kept: a quiet hour takes no memory.
    """

    def __init__(self, lab: Lab, service: str) -> None:
        self._lab, self._service = lab, service
        self._before, self._after = array("q"), array("q")
        self._reached: list[list[int]] = []

    def look(self) -> int:
        """Look once; returns the number of visible commands."""
        before = time.monotonic_ns()
        reached = self._lab.queries.reached(self._service)
        after = time.monotonic_ns()
        row = [reached.get(partition, -1) for partition in range(self._lab.partitions)]
        if self._reached and row == self._reached[-1]:
            self._before[-1] = before
        else:
            self._before.append(before)
            self._after.append(after)
            self._reached.append(row)
        return sum(row) + len(row)

    def ends(
        self, partitions: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For the command at each place: the start of the last look that missed it, and the end of
        the first look that saw it; NaN if there was no such look."""
        before, after = np.array(self._before, np.float64), np.array(self._after, np.float64)
        reached = np.array(self._reached).reshape(len(before), -1)
        stale, fresh = np.full(len(offsets), np.nan), np.full(len(offsets), np.nan)
        for partition in range(reached.shape[1]):
            mine = partitions == partition
            first = np.searchsorted(reached[:, partition], offsets[mine])
            fresh[mine] = np.append(after, np.nan)[first]
            stale[mine] = np.append(np.nan, before)[first]
        return stale, fresh
