"""The claims of notebook 11, and the planted bugs that turn each claim red; none asserts a time."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls
from testbook.client import TestbookNotebookClient

NAME = "11_throughput"
CLAIMS = ("no rate", "a checker is red", "interval")

BATCHES = "larger batches need fewer transactions, with one marker each"
COST = "the cost of a batch is fitted to all sizes, and no part of it is negative"
FITTED = "a fit recovers the law of the simulated runs, within its intervals"
PEAK = "a fit recovers the peak of the law"

# On real servers only.
GREEN = "every checker is green in every run that counts, and each arm has a rate"
THROWN = "checkers detect a handler that forgets ids in every run, and it has no rate"
LITTLE = "Little's law holds within 5 % in the open loop, and the checkers are green"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    orders = book.value("ORDERS")
    counted = book.value("batches.reset_index()[['batch size', 'commits', 'markers']].T.to_dict()")
    sizes, ms, cost = book.value("[sizes.tolist(), ms.tolist(), [a, b]]")
    law = book.value("recovered.astype(float).fillna(0).T.to_dict('list')")
    found = {
        BATCHES: all(
            row["commits"] == orders and 0 <= row["markers"] - -(-orders // row["batch size"]) <= 2
            for row in counted.values()
        ),
        COST: min(cost) >= 0 and np.allclose(cost, cost_of_a_batch(sizes, ms)),
        FITTED: all(low <= true <= high for true, _, low, high in law.values()),
        PEAK: abs(law["peak"][1] / law["peak"][0] - 1) < 0.15,
    }
    return found | (on_kafka(book) if book.value("BACKEND") == "kafka" else {})


def cost_of_a_batch(sizes: list[float], ms: list[float]) -> list[float]:
    """``a`` and ``b`` of ``a + b n``, by the relative distances of all points."""
    weighted = np.array([[1 / at, size / at] for size, at in zip(sizes, ms, strict=True)])
    return [float(part) for part in nnls(weighted, np.ones(len(sizes)))[0]]


def on_kafka(book: TestbookNotebookClient) -> dict[str, bool]:
    honest = "swept.runs[swept.runs['arm'] != cheat.name]"
    cheating = "swept.runs[swept.runs['arm'] == cheat.name]"
    rates = "swept.arms.set_index('arm')['commands_per_second']"
    found = {
        GREEN: book.value(f"bool({honest}['green'].all())")
        and book.value(f"bool({rates}.drop(cheat.name).notna().all())"),
        THROWN: book.value(f"{cheating}['red'].str.contains('C2').to_list()")
        == [True] * book.value("ROUNDS")
        and book.value(f"bool(np.isnan({rates}[cheat.name]))"),
    }
    if book.value("LOADS"):
        found[LITTLE] = book.value("[len(row['red checkers']) for row in rows]") == [0] * len(
            book.value("LOADS")
        ) and book.value("all(row['difference'] <= 0.05 for row in rows)")
    return found


ONE_AT_A_TIME = """
from labkit.write.handler import Handler
_init = Handler.__init__
Handler.__init__ = lambda self, *a, **options: _init(self, *a, **options | {"batch_size": 1})
"""

TWO_POINTS = """
_nnls = nnls
nnls = lambda parts, ones: (np.linalg.solve(parts[[0, -1]], ones[[0, -1]]), 0)
"""

NO_COHERENCY = """
from labkit.experiments.bench import scaling as _scaling
_solve = _scaling._solve
def solve(n, rates):
    law = _solve(n, rates)
    return _scaling.Law(law.rate, law.sigma + law.kappa, 0.0)
_scaling._solve = solve
"""

TWINS = {
    "a handler takes one command at a time": ("set-up", ONE_AT_A_TIME, {BATCHES}),
    "a line goes through two of three points": ("set-up", TWO_POINTS, {COST}),
    "a fit ignores coherency": ("set-up", NO_COHERENCY, {FITTED, PEAK}),
}

#: The bugs below need no loads.
NO_LOADS = "LOADS = ()\n"

CHECKERS_SLEEP = (
    NO_LOADS
    + """
from labkit.experiments.bench import drain as _drain
_drain.check = lambda evidence, history: {}
"""
)

ALL_FORGET_IDS = (
    NO_LOADS
    + """
import os
os.environ["LABKIT_PLANT"] = "no-dedupe"
"""
)

COUNTS_SOME_TWICE = """
from labkit.experiments.load import offer as _load
_samples = _load.samples
def samples(data):
    looks = _samples(data)
    return looks.assign(in_system=1.3 * looks["in_system"])
_load.samples = samples
"""

SERVER_TWINS = {
    "the checkers of a drain check nothing": ("parameters", CHECKERS_SLEEP, {THROWN}),
    "every handler forgets the ids": ("parameters", ALL_FORGET_IDS, {GREEN}),
    "the observer counts some twice": ("parameters", COUNTS_SOME_TWICE, {LITTLE}),
}
