"""An independent reader during a load: it reads documents and records when they appear.

The load looks at the view's checkpoints (``observer.py``). From these it knows when each command
became visible, since a checkpoint and its documents are written in one transaction. The probe does
not rely on that. It knows the ids of future streams and reads some of them repeatedly. So it has
two bounds for each: the start of the last read without it, and the end of the first read with it.
"""

from __future__ import annotations

import itertools
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import UsageError
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.offer import Loaded, Visible, offer
from labkit.experiments.processes import harness_of, hear, process
from labkit.lab import Lab
from labkit.read.generations import Serving
from labkit.read.projection import streams_of
from labkit.run.worker import calm_gc

if TYPE_CHECKING:
    import pandas as pd

#: At most this many commands a second are probed, and this many documents are read at once.
PROBES_A_SECOND = 200
ASKED = 64
#: From one read to the next.
PAUSE_SECONDS = 0.002


def probed(
    lab: Lab, plan: Plan, progress: Visible = lambda *_: None, **options: Any
) -> tuple[Loaded, pd.DataFrame]:
    """``load.offer`` with a probe, and a row for each document: ``stream``, ``stale``, ``visible``.

    Instants are monotonic nanoseconds, NaN where no read missed it. The ``options`` are those of
    ``offer``. Raises what that raises, and ``UsageError`` if commands write to a stream again.
    """
    import pandas as pd

    if not can_probe(plan):
        raise UsageError(
            f"a probe needs a new stream for each command, and workload {plan.named!r} has others"
        )
    with process(probe, harness_of(lab), plan) as prober:
        hear(lab, prober)
        loaded = offer(lab, plan, progress, **options)
        prober.send_bytes(b"stop")
        rows = np.frombuffer(hear(lab, prober), np.float64).reshape(-1, 3)
    names = _streams(plan)
    streams = [names[int(number)] for number in rows[:, 0]]
    return loaded, pd.DataFrame({"stream": streams, "stale": rows[:, 1], "visible": rows[:, 2]})


def can_probe(plan: Plan) -> bool:
    """Whether each command of the plan begins a stream."""
    names = _streams(plan)
    return len(set(names)) == len(names) and not arrivals.opening(plan, 1)


def probe(pipe: Connection, settings: dict[str, Any], plan: Plan) -> None:
    """Read until told to stop; then send a row for each document: number, stale, visible."""
    rows: list[tuple[float, float, float]] = []
    stride = max(1, round(plan.rate / PROBES_A_SECOND))
    with Lab(**settings, start=False) as lab:
        coming = ((number, id) for number, id in enumerate(_streams(plan)) if number % stride == 0)
        collection = streams_of(plan.service)
        calm_gc()
        asked: dict[str, int] = {}
        before = np.nan
        pipe.send_bytes(b"ready")
        while not pipe.poll(PAUSE_SECONDS):
            new = {id: number for number, id in itertools.islice(coming, ASKED - len(asked))}
            asked |= new
            now = time.monotonic_ns()
            with lab.store.snapshot() as reads:
                found = Serving(reads).load(collection, list(asked))
            after = float(time.monotonic_ns())
            rows += [(asked.pop(id), np.nan if id in new else before, after) for id in found]
            before = float(now)
        pipe.send_bytes(np.array(rows, np.float64).tobytes())
        pipe.poll(None)  # until the parent has read it all


def _streams(plan: Plan) -> list[str]:
    count = len(arrivals.instants(plan))
    return [command.stream for command in arrivals.commands(plan, count)]
