"""Who looks from outside: how many commands are in the system, and when each became visible.

The *system* reaches from the generator's call of ``send`` to the view. A command is in it from the
instant of that call (``sent``; the generator counts it in shared memory) until the checkpoint of
the view covers it, in its partition. Checkpoint and view are written in one transaction, so a query
that comes later sees what the command did. What lies in the client's buffer is in the system, too:
the broker's acknowledgement comes some milliseconds after the topic has the command, so nobody
could tell to the percent how long it was in a system that began there. No offset arithmetic is
needed but this: nothing but commands takes offsets on a commands topic (transactions, and so their
markers, are on the events topic).

Two look, each with connections and clock reads of its own, and neither knows of the other:

- :func:`observe` runs in a process of its own and counts: what is sent, what is visible.
- :class:`Watch` belongs to who listens for the answers, and gives for each command the two ends
  between which it became visible.

So the number in the system (of the first) and the time in it (from the instant in the command to
what the second saw) are not made of the same timestamps, and Little's law says something.
"""

from __future__ import annotations

import time
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

#: Between two looks, in the mean; each pause is drawn, from a half to one and a half of it, so that
#: no rhythm of the system (a batch each 20 ms, say) is met at the same place again and again.
OBSERVE_SECONDS = 0.005
#: What costs more, and is not needed for the number in the system, is looked at each so many looks.
SELDOM = 20

#: What the observer's process sends, a row a look; ``at`` is in monotonic nanoseconds.
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
    """Look until told to stop, and once more; send all looks, and the share of a core they took.

    ``count`` is the generator's, in shared memory.
    """
    rng = Random(0)
    rows: list[tuple[float, ...]] = []
    with Lab(**settings, start=False) as lab:
        calm_gc()
        seen = _look(lab, service, count, None)
        pipe.send_bytes(b"ready")
        began, worked = time.monotonic(), time.process_time()
        while not pipe.poll(OBSERVE_SECONDS * rng.uniform(0.5, 1.5)):
            seen = _look(lab, service, count, None if len(rows) % SELDOM == 0 else seen)
            rows.append(seen)
        rows.append(_look(lab, service, count, None))
        share = (time.process_time() - worked) / (time.monotonic() - began)
        pipe.send_bytes(np.array([[share] * len(COLUMNS), *rows], np.float64).tobytes())
        pipe.poll(None)  # until the parent has read it all


def _look(
    lab: Lab, service: str, count: Any, before: tuple[float, ...] | None
) -> tuple[float, ...]:
    """One row; without ``before`` also what is looked at seldom, else that is repeated.

    What is sent is read before and after the question what is visible: at 5,000 commands a second,
    two counts a millisecond apart differ by five.
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


def samples(data: bytes) -> tuple[pd.DataFrame, float]:
    """What an observer sent: a row a look, and the share of a core that it took.

    Columns: ``at``, ``sent`` (by the generator, until then), ``visible``, ``in_system`` = sent -
    visible, and ``look_ns``, how long the look took. At each twentieth look, standing until the
    next: ``in_topic`` (by its high watermark), ``committed`` (by the handlers' group), and in
    offsets ``handler_lag`` and ``projector_lag``.
    """
    import pandas as pd

    table = np.frombuffer(data, np.float64).reshape(-1, len(COLUMNS))
    found = pd.DataFrame(table[1:], columns=list(COLUMNS))
    found.insert(3, "in_system", found["sent"] - found["visible"])
    return found, float(table[0, 0])


def cost(looks: pd.DataFrame, window: Window) -> dict[str, Any]:
    """How often it looked, and how long a look took."""
    at = looks["at"][looks["at"].between(*window)].to_numpy()
    gaps = np.diff(at) / 1e6 if len(at) > 1 else np.array([np.nan])
    return {
        "asked_interval_ms": OBSERVE_SECONDS * 1e3,
        "interval_ms": round(float(np.mean(gaps)), 2),
        "longest_interval_ms": round(float(np.max(gaps)), 2),
        "look_ms": round(float(looks["look_ns"].median()) / 1e6, 3),
    }


class Watch:
    """Looks of the one who listens: until when a command was not visible, and from when on it was.

    ``look`` as often as possible; ``ends`` afterwards.
    """

    def __init__(self, lab: Lab, service: str) -> None:
        self._lab, self._service = lab, service
        self._before: list[int] = []
        self._after: list[int] = []
        self._reached: list[list[int]] = []

    def look(self) -> int:
        """One look; how many commands are visible."""
        before = time.monotonic_ns()
        reached = self._lab.queries.reached(self._service)
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
