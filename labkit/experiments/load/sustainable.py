"""The sustainable rate: the highest rate at which every condition held.

The conditions: the backlog stays level, p99 from intended to visible keeps its bound, the generator
keeps its timetable, Little's law holds, and no checker is red. Each *trial* is a short Poisson load
on a new run (topics, database, workers).

The search begins with a heap: commands are sent as fast as possible, and the workers' rate is
measured over the middle of the heap. An open loop sustains less, since then the machine also sends.
Bisection follows, until the lowest rate that failed and the highest that held are 10 % apart. A
trial on a shared machine may fail by chance; the result lists all trials.

The result is kept under ``LABKIT_HOME/results/sustainable``, and used again on the same machine
with the same versions and settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, structs

from labkit import stack
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import quotient
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.figures import figures
from labkit.experiments.load.offer import Loaded, offer
from labkit.experiments.processes import fast_client
from labkit.experiments.results import archive, machine, versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.service import Service

KIND = "sustainable"
P99_MS = 500.0
TRIAL_SECONDS, TRIAL_WARM_UP = 5.0, 2.0
HEAP_SECONDS, HEAP_RATE = 0.3, 100_000.0
MOST_TRIALS = 8
#: The search ends when the rates that held and failed are this close; it begins at this share of
#: the heap's rate.
NEAR, FIRST = 1.10, 0.6


class Crew(Struct, frozen=True, kw_only=True):
    """The workers of a trial, and the settings of its run (``settings.Settings``)."""

    handlers: int = 1
    projectors: int = 1
    settings: Mapping[str, Any] = {}

    @contextmanager
    def working(self, name: str, service: str | Service) -> Iterator[Lab]:
        """A new run with its workers; it is dropped afterwards."""
        with scratch_run(name, services=[service], **self.settings) as lab:
            lab.start(self.handlers, self.projectors)
            yield lab


class Trial(Struct, frozen=True):
    """The result at one rate; ``why`` names the conditions that did not hold.

    ``harness_share``: what generator, listener and observer took of the machine.
    """

    rate: float
    visible_per_second: float
    p99_ms: float
    growth_per_second: float
    little_difference: float
    why: str = ""
    harness_share: float = math.nan

    @property
    def held(self) -> bool:
        return not self.why


class Sustainable(Struct, frozen=True):
    """``rate`` in commands a second, 0 if no rate held; ``folder`` holds the result.

    ``heap``: the workers' rate over a heap, which nobody adds to.
    """

    rate: float
    trials: list[Trial]
    folder: Path
    heap: float = math.nan

    def report(self) -> dict[str, Any]:
        """As results of a load say it."""
        return {
            "sustainable_per_second": self.rate,
            "sustainable_from": str(self.folder),
            "heap_per_second": self.heap,
            "sustainable_to_heap": round(quotient(self.rate, self.heap), 3),
        }


def sustainable(
    name: str,
    crew: Crew,
    plan: Plan,
    p99_ms: float,
    progress: Progress,
    report: Callable[[str], None],
) -> Sustainable:
    """Search and keep the result; only the workload, payload and seed of ``plan`` matter.

    The servers must be up.
    """
    plan = structs.replace(plan, pattern="poisson", seconds=TRIAL_SECONDS, warm_up=TRIAL_WARM_UP)
    report("searching for the sustainable rate, which is then kept")
    most = heap(name, crew, plan)
    report(f"the workers handle {most:,.0f} commands a second of a heap")
    trials: list[Trial] = []
    low, high, rate = 0.0, most, most * FIRST
    while len(trials) < MOST_TRIALS and (low == 0 or high / low > NEAR):
        progress("trials", len(trials), MOST_TRIALS)
        trials.append(trial(name, crew, plan.at(rate), p99_ms))
        report(f"{rate:,.0f} a second: {trials[-1].why or 'held'}")
        if trials[-1].held:
            low = rate
        else:
            high = rate
        rate = (low + high) / 2
    progress("trials", MOST_TRIALS, MOST_TRIALS)
    return Sustainable(low, trials, _keep(name, crew, plan, p99_ms, low, most, trials), most)


def heap(name: str, crew: Crew, plan: Plan) -> float:
    """The workers' rate, in commands a second, over the middle of a heap."""
    burst = structs.replace(
        plan, pattern="constant", rate=HEAP_RATE, seconds=HEAP_SECONDS, warm_up=0.0
    )
    with crew.working(name, plan.service) as lab:
        seen = offer(lab, burst, dry=False, checked=False).samples
    visible = seen["visible"].to_numpy()
    low, high = np.interp([0.2, 0.8], [0, 1], [visible[0], visible[-1]])
    # The last look before the middle and the first after it: two, however few there are.
    first, last = np.searchsorted(visible, low, "right") - 1, np.searchsorted(visible, high)
    at = seen["at"].to_numpy()
    return float((visible[last] - visible[first]) / (at[last] - at[first]) * 1e9)


def trial(name: str, crew: Crew, plan: Plan, p99_ms: float) -> Trial:
    with crew.working(name, plan.service) as lab:
        loaded = offer(lab, plan, dry=False)
    found = figures(loaded)
    p99 = found["latencies_ms"]["visible"]["p99_ms"]
    backlog, share = loaded.report["backlog"], loaded.report["cpu"]["machine_share"]
    return Trial(
        plan.rate,
        found["visible_per_second"],
        p99,
        backlog["growth_per_second"],
        loaded.report["little"]["difference"],
        "; ".join(_why(loaded, p99, p99_ms)),
        round(sum(share[role] for role in loaded.report["cpu"]["harness"]), 3),
    )


def _why(loaded: Loaded, p99: float, bound: float) -> Iterator[str]:
    backlog = loaded.report["backlog"]
    if not backlog["ok"]:
        yield f"the backlog grew by {backlog['growth_per_second']:,.0f} a second"
    if p99 > bound:
        yield f"p99 was {p99:,.0f} ms"
    yield from loaded.trouble


# --- what is kept


def kept(name: str, crew: Crew, plan: Plan, p99_ms: float) -> Sustainable | None:
    """The newest result under the same conditions."""
    wanted = _conditions(name, crew, plan, p99_ms) | {"machine": machine()}
    for file in sorted((stack.home() / "results" / KIND).glob("*/report.json"), reverse=True):
        try:
            found = msgspec.json.decode(file.read_bytes())
            if all(found[field] == value for field, value in _plain(wanted).items()):
                trials = msgspec.convert(found["trials"], list[Trial])
                if found["rate"] > 0:
                    return Sustainable(found["rate"], trials, file.parent, found["heap_per_second"])
        except (OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError):
            continue  # another version, or half a file: search again
    return None


def _conditions(name: str, crew: Crew, plan: Plan, p99_ms: float) -> dict[str, Any]:
    """The conditions that a sustainable rate belongs to."""
    with scratch_run(name, services=[], start=False, **crew.settings) as lab:
        known = versions(lab.server_versions(), lab.settings.client, fast_client())
        settings = structs.asdict(lab.settings)
    shape = arrivals.shape(plan)
    for field in ("pattern", "rate", "seconds", "warm_up", "seed"):
        del shape[field]
    workers = {"handlers": crew.handlers, "projectors": crew.projectors}
    return {
        "settings": {"lab": settings, "workers": workers, "plan": shape, "p99_ms": p99_ms},
        "harness_client": fast_client(),
        "versions": known,
    }


def _keep(
    name: str,
    crew: Crew,
    plan: Plan,
    p99_ms: float,
    rate: float,
    most: float,
    trials: list[Trial],
) -> Path:
    import pandas as pd

    report = _conditions(name, crew, plan, p99_ms)
    report |= {"seed": plan.seed, "rate": rate, "heap_per_second": most}
    report |= {"trials": msgspec.to_builtins(trials)}
    return archive(KIND, report, {"trials": pd.DataFrame([structs.asdict(t) for t in trials])})


def _plain(value: Any) -> Any:
    """As it stands in the JSON."""
    return msgspec.json.decode(msgspec.json.encode(value))
