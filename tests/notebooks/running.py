"""Run a notebook, and say which of its findings hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from testbook import testbook
from testbook.client import TestbookNotebookClient

from tests.notebooks.answers import START, STEPS, with_answers
from tests.notebooks.findings import (
    consistency_lag,
    decide_and_evolve,
    handlers_under_stress,
    processes,
    projections,
    queries,
    reading_your_own_writes,
    simulate_and_shrink,
    streams,
    the_event_log,
    throughput,
)

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
MORE = [
    decide_and_evolve,
    the_event_log,
    handlers_under_stress,
    projections,
    queries,
    reading_your_own_writes,
    processes,
    streams,
    consistency_lag,
    throughput,
    simulate_and_shrink,
]
NAMES = [START, STEPS, *(one.NAME for one in MORE)]

CELL_SECONDS = 120
#: Smaller parameters for real servers, with the same findings.
SMALLER = {
    handlers_under_stress.NAME: "BURST = 80",
    projections.NAME: "ORDERS, BATCH = 400, 40",
    reading_your_own_writes.NAME: "TRIES = 6",
    consistency_lag.NAME: "SECONDS = 6",
    throughput.NAME: "SIZES, COMMANDS, ROUNDS, WORKERS = (1_000,), 600, 2, ()\n"
    "LOADS, SECONDS = (0.05,), 4",
    simulate_and_shrink.NAME: "SEEDS, TRIED, ROW = 100, 30, 20",
}
#: Those that measure nothing: no test needs more of them in memory either.
SMALLER_IN_MEMORY = {simulate_and_shrink.NAME}

# --- running a notebook


def load(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    """The one cell that has the tag."""
    (cell,) = [c for c in notebook.cells if tag in c.metadata.get("tags", ())]
    return cell


@contextmanager
def run(
    name: str,
    backend: str,
    planted: str = "",
    *,
    after: str = "parameters",
    answered: bool = False,
) -> Iterator[TestbookNotebookClient]:
    """A notebook that ran from its first cell to its last; its kernel is still alive.

    ``planted`` is code that runs right after the cell tagged ``after``; ``answered`` tries all
    answers to the exercise in the end.
    """
    notebook = load(name)
    if answered:
        with_answers(notebook, name)
    settings = {"resources": {"metadata": {"path": str(FOLDER)}}, "timeout": CELL_SECONDS}
    with testbook(notebook, execute=False, **settings) as book:
        book.inject(planted or "pass", after=after, run=False)
        small = backend == "kafka" or name in SMALLER_IN_MEMORY
        smaller = SMALLER.get(name, "") if small else ""
        book.inject(f"BACKEND = {backend!r}\n{smaller}", after="parameters", run=False)
        # testbook(execute=True) would leak the kernel when a cell fails.
        book.execute()
        yield book


# --- the findings: claim -> whether it holds

Findings = dict[str, bool]


def findings_of_start(book: TestbookNotebookClient) -> Findings:
    retry = book.value("retry_commits[['command id', 'outcome', 'version']].values.tolist()")
    places = book.value(
        "[[film.trace.partition, film.trace.command_offset], [token.partition, token.offset]]"
    )
    (picture,) = book.cell_execute_result("film")
    return {
        "the CRUD shop has the order twice": book.value("crud_orders.values.tolist()")
        == [["ada", "cd", 1599]] * 2,
        "labkit has it once": book.value("labkit_orders['_id'].to_list()") == ["order-1"],
        "both requests arrived, and the second is a known repeat": [r[1:] for r in retry]
        == [["accepted", 1], ["repeated", 1]]
        and retry[0][0] == retry[1][0],
        "the client gets the answer of the first attempt": "is told: accepted"
        in book.cell_output_text("retry"),
        "the topic keeps three commands, the view two orders": (
            book.value("sorted(sent_commands['order'])"),
            book.value("sorted(view['_id'])"),
        )
        == (["order-1", "order-1", "order-2"], ["order-1", "order-2"]),
        "the film is that of the order": places[0] == places[1]
        and "PlaceOrder order-2" in picture["image/svg+xml"],
    }


def findings_of_steps(book: TestbookNotebookClient) -> Findings:
    seen: dict[str, dict[str, int]] = book.value("look.history")
    story = book.value("story[['command id', 'outcome']].values.tolist()")

    def at(when: str, **expected: int) -> bool:
        return {place: seen[when][place] for place in expected} == expected

    def outcomes(command_id: str) -> list[str]:
        return [outcome for id, outcome in story if id == command_id]

    return {
        "a sent command is stored, and no handler has decided": at(
            "sent", commands=1, unread=1, commits=0, state=0, view=0
        ),
        "a handled command has its commit, and the view does not show it": at(
            "handled", commands=1, unread=0, commits=1, hidden=0, state=1, view=0
        ),
        "a projected commit is in the view": at("projected", commits=1, view=1),
        "the view's checkpoint covers the command": book.value(
            "int(checkpoints[checkpoints['id'].str.startswith('orders.view')]['command'].max())"
        )
        == 0,
        "a repeat changes neither state nor view": at("repeated", commits=2, state=1, view=1)
        and outcomes("place-1") == ["accepted", "repeated"],
        "killed after the transaction: the commit stands, the saved state is behind": at(
            "killed after the transaction", commits=3, hidden=0, unread=0, state=1, view=1
        ),
        "the successor knows the commits of its predecessor": at(
            "the successor", commits=4, hidden=0, unread=0, state=2, view=2
        )
        and outcomes("pay-1") == ["accepted", "repeated"],
        "killed inside the transaction: a record that no reader gets": at(
            "killed inside the transaction", commits=4, hidden=1, unread=1, state=2, view=2
        )
        and "applied 0 commits" in book.cell_output_text("crash-inside"),
        "the successor handles that command once": at(
            "the second successor", commits=5, hidden=0, unread=0, state=3, view=3
        )
        and outcomes("ship-1") == ["accepted"],
        "a projector killed after its transaction counts nothing twice": (
            book.value("counts"),
            book.value("applied_again"),
        )
        == ([1, 0, 0], 0),
        "no reader ignored a commit": book.value("ignored") == 0,
    }


FINDINGS: dict[str, Callable[[TestbookNotebookClient], Findings]] = {
    START: findings_of_start,
    STEPS: findings_of_steps,
    **{one.NAME: one.findings for one in MORE},
}


def red(name: str, book: TestbookNotebookClient) -> set[str]:
    """The findings that do not hold."""
    return {finding for finding, holds in FINDINGS[name](book).items() if not holds}
