"""The sustainable rate: the highest that a run offered, and everything held.

Everything: the backlog stayed level, p99 from the intended instant to visible kept its bound, the
generator kept its timetable, Little's law held, and every checker was green. Each *trial* is a
short load of its own, Poisson, on a fresh run (topics, database, workers).

First a heap: commands as fast as the generator can send them, and how fast the workers get through
the middle of it. That is above what an open loop can sustain, since nobody had to send meanwhile.
From there on bisection, until the lowest rate that failed and the highest that held are 10 % apart.
A trial on a shared machine may fail by chance; what was tried stands in the result.

The result is kept under ``LABKIT_HOME/results/sustainable``, and found again by whoever asks for a
share of it on the same machine, with the same versions and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, structs

from labkit import stack
from labkit.experiments.demo import Progress
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.figures import figures
from labkit.experiments.load.offer import Loaded, offer
from labkit.experiments.results import archive, machine, versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.service import Service

KIND = "sustainable"
P99_MS = 500.0
TRIAL_SECONDS, TRIAL_WARM_UP = 5.0, 2.0
HEAP_SECONDS, HEAP_RATE = 0.3, 100_000.0
MOST_TRIALS = 8
#: The search ends where what held and what failed are so near; it begins at this share of the heap.
NEAR, FIRST = 1.10, 0.6


class Crew(Struct, frozen=True, kw_only=True):
    """Who works: the settings of the run (``settings.Settings``), and how many of each."""

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
    """One rate that was tried; ``why`` is empty where everything held."""

    rate: float
    visible_per_second: float
    p99_ms: float
    growth_per_second: float
    little_difference: float
    why: str = ""

    @property
    def held(self) -> bool:
        """Whether everything held."""
        return not self.why


class Sustainable(Struct, frozen=True):
    """``rate`` in commands a second, 0 where none that was tried held; ``folder``: where it is
    kept."""

    rate: float
    trials: list[Trial]
    folder: Path


def sustainable(
    name: str,
    crew: Crew,
    plan: Plan,
    p99_ms: float,
    progress: Progress,
    report: Callable[[str], None],
) -> Sustainable:
    """Search, and keep what was found; of ``plan`` the keys, payload and seed count.

    The servers must be up.
    """
    plan = structs.replace(plan, pattern="poisson", seconds=TRIAL_SECONDS, warm_up=TRIAL_WARM_UP)
    report("searching for the sustainable rate; it is kept for the next time")
    most = heap(name, crew, plan)
    report(f"off a heap the workers do {most:,.0f} commands a second")
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
    return Sustainable(low, trials, _keep(name, crew, plan, p99_ms, low, most, trials))


def heap(name: str, crew: Crew, plan: Plan) -> float:
    """Commands a second while the workers are behind: over the middle of what they do."""
    burst = structs.replace(
        plan, pattern="constant", rate=HEAP_RATE, seconds=HEAP_SECONDS, warm_up=0.0
    )
    with crew.working(name, plan.service) as lab:
        seen = offer(lab, burst, dry=False, checked=False).samples
    visible = seen["visible"].to_numpy()
    low, high = np.interp([0.2, 0.8], [0, 1], [visible[0], visible[-1]])
    first, last = np.searchsorted(visible, [low, high])
    at = seen["at"].to_numpy()
    return float((visible[last] - visible[first]) / (at[last] - at[first]) * 1e9)


def trial(name: str, crew: Crew, plan: Plan, p99_ms: float) -> Trial:
    """One short load, and whether everything held."""
    with crew.working(name, plan.service) as lab:
        loaded = offer(lab, plan, dry=False)
    found = figures(loaded)
    p99 = found["latencies_ms"]["visible"]["p99_ms"]
    backlog = loaded.report["backlog"]
    return Trial(
        plan.rate,
        found["visible_per_second"],
        p99,
        backlog["growth_per_second"],
        loaded.report["little"]["difference"],
        "; ".join(_why(loaded, p99, p99_ms)),
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
    """What the newest of the earlier searches under the same conditions found."""
    wanted = _conditions(name, crew, plan, p99_ms) | {"machine": machine()}
    for file in sorted((stack.home() / "results" / KIND).glob("*/report.json"), reverse=True):
        try:
            found = msgspec.json.decode(file.read_bytes())
            if all(found[field] == value for field, value in _plain(wanted).items()):
                trials = msgspec.convert(found["trials"], list[Trial])
                if found["rate"] > 0:
                    return Sustainable(found["rate"], trials, file.parent)
        except (OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError):
            continue  # not of this version, or half a file: it is searched for anew
    return None


def _conditions(name: str, crew: Crew, plan: Plan, p99_ms: float) -> dict[str, Any]:
    """What a sustainable rate is about."""
    with Lab(name, services=[], **crew.settings) as lab:
        known = versions(lab.server_versions(), lab.settings.client)
        settings = structs.asdict(lab.settings)
    shape = arrivals.shape(plan)
    for field in ("pattern", "rate", "seconds", "warm_up", "seed"):
        del shape[field]
    workers = {"handlers": crew.handlers, "projectors": crew.projectors}
    return {
        "settings": {"lab": settings, "workers": workers, "plan": shape, "p99_ms": p99_ms},
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
