"""Answers to the exercises of the notebooks: what each check must accept, and what it must not.

An answer is an edit: the text to replace in the stub or in the solution, and what stands there
instead. Other parts of the answer stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import nbformat
from nbformat.v4 import new_code_cell

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

START, STEPS = "00_start_here", "01_one_command_step_by_step"

STUB, SOLUTION = "exercise", "solution"
#: What the answer is made from, the text to replace, what replaces it.
Edit = tuple[str, str, str]

WRONG: dict[str, list[Edit]] = {
    START: [
        (SOLUTION, "id=command_id", "id=new_id()"),
        (SOLUTION, "insist(lambda: link.call", "(lambda call: call())(lambda: link.call"),
        # Twice, whatever the link does.
        (
            SOLUTION,
            "return insist(lambda: link.call(lab.bus.execute, ",
            "return [lab.bus.execute(PayOrder(order_id, cents), id=command_id) for _ in 'ab'][0]\n"
            "    return insist(lambda: link.call(lab.bus.execute, ",
        ),
        (STUB, "...  # your code", "return lab.bus.execute(PayOrder(order_id, cents))"),
        (STUB, "...  # your code", "return 'accepted'"),
    ],
    STEPS: [
        (STUB, "HANDLER_COMMITTED", "HANDLER_PRODUCED"),
        (STUB, "HANDLER_COMMITTED", "HANDLER_OFFSETS"),
        (STUB, "Failpoint.HANDLER_COMMITTED", "'nowhere'"),
        # Nobody is killed.
        (SOLUTION, 'killed = lab.crash("handler", at)\n', ""),
    ],
    decide_and_evolve.NAME: [
        (STUB, "total = reduce(kept, everything, 0)", "total = 9_000"),
        (STUB, "return cents  # your code", "return 9_000"),
        (SOLUTION, "cents - event.refund", "cents"),
        (SOLUTION, " | orders.OrderReturned()", ""),
        (SOLUTION, "orders.OrderCancelled() | ", ""),
        (STUB, "return cents  # your code", "return None"),
    ],
    the_event_log.NAME: [
        (STUB, "first_rich = 1 ", "first_rich = 0 "),
        (STUB, "first_rich = 1 ", "first_rich = DEPOSITS "),
        (STUB, "first_rich = 1 ", "first_rich = 10**9 "),
        (STUB, "first_rich = 1 ", "first_rich = 'many' "),
        (SOLUTION, "> 50_000", "> 51_000"),
        (SOLUTION, "> 50_000", "> 500"),
    ],
    handlers_under_stress.NAME: [
        (SOLUTION, "range(2)", "range(1)"),
        # The payment is dropped, too, and sent again.
        (
            SOLUTION,
            "for _ in range(2):\n    lab.drop_dead_letter(order)\n    work(lab)",
            "work(lab)\nfor _ in range(3):\n    if len(lab.dead_letters()):\n"
            "        lab.drop_dead_letter(order)\nlab.bus.send(PayOrder(order, 1599)).token()\n"
            "work(lab)",
        ),
        (SOLUTION, 'id=f"pay-{order}").token()', 'id="lost").token()'),
        (STUB, "lab.replay(order)  # is that enough?", ""),
    ],
    projections.NAME: [
        (STUB, '# Here: give the order a field "big", True or False.', 'document["big"] = True'),
        (SOLUTION, 'lab.rebuild_view("orders.view", keep=0)', ""),
        (SOLUTION, ">= 3", "> 3"),
        (SOLUTION, 'document["quantity"] >= 3', '"yes"'),
        (SOLUTION, 'document["quantity"] >= 3', 'document["_id"] == "big-1"'),
    ],
    queries.NAME: [
        (STUB, "limit=2", "limit=100"),
        (STUB, '[row["_id"] for row in page.rows]  # and the next page?', "list(CENTS)"),
        (SOLUTION, "limit=2, cursor=page.cursor", "limit=4, cursor=page.cursor"),
        (SOLUTION, "while page.cursor", "if page.cursor"),
    ],
    reading_your_own_writes.NAME: [
        (STUB, "return laptop.ask(OrderById(order))", 'return {"_id": "order-5"}'),
        (STUB, "return laptop.ask(OrderById(order))", "return True"),
        (STUB, "laptop.ask(OrderById(order))", 'laptop.ask(OrderById("order-1"))'),
    ],
    processes.NAME: [
        (STUB, "range(2)", "range(1)"),
        (STUB, "new_id()", '"bonus"'),
        (STUB, "id=new_id()", 'id="bonus:1997-01:ada"'),
        (SOLUTION, "Deposit(customer, 5)", "Deposit(customer, 10)"),
        (SOLUTION, "lab.bus.send", "# lab.bus.send"),
    ],
    streams.NAME: [
        (STUB, "grace = 0", "grace = 1"),
        (STUB, "grace = 0", "grace = 60"),
        (STUB, "grace = 0", "grace = -1"),
        (STUB, "grace = 0", "grace = 'two'"),
        (SOLUTION, "    grace += 1", "    grace += 1\ngrace -= 0.5"),
    ],
    consistency_lag.NAME: [
        (STUB, "mean()", "median()"),
        (STUB, 'lag["fresh_ms"].mean()', "1e9"),
        (STUB, 'lag["fresh_ms"].mean()', 'lag["fresh_ms"].max() * 2'),
        (SOLUTION, "fresh_ms", "stale_ms"),
        (SOLUTION, "0.999", "0.9"),
        (STUB, 'lag["fresh_ms"].mean()', "None"),
    ],
    throughput.NAME: [
        (STUB, "best = max(", "best = 12 or max("),
        (STUB, "best = max(", "best = 5 or max("),
        (STUB, "best = max(", "best = [6] or max("),
        (SOLUTION, "fit(theirs).law.peak", "fit(theirs).law.rate"),
    ],
    simulate_and_shrink.NAME: [
        (SOLUTION, 'stop_part(lab, "handler")', "work(lab)"),
        # Nothing was saved: a handler that dies so early leaves its ids in the log alone.
        (STUB, "work(lab)  # decides, and saves the state", "lab.handler.step(1)"),
        # Fails with the mended code, too; passes always; is about another command.
        (SOLUTION, "return once(order, id)", "return not once(order, id)"),
        (SOLUTION, "return once(order, id)", "return True"),
        (SOLUTION, "return once(order, id)", "return once(order, new_id())"),
    ],
}
RIGHT: dict[str, list[Edit]] = {
    START: [(SOLUTION, "new_id()  # once", 'f"pay {order_id}"  # once')],
    STEPS: [
        (SOLUTION, "HANDLER_DECIDED", "HANDLER_CLAIMED"),
        (SOLUTION, "HANDLER_DECIDED", "HANDLER_POLLED"),
    ],
    decide_and_evolve.NAME: [(SOLUTION, "return cents + event.cents", "cents += event.cents")],
    the_event_log.NAME: [
        (SOLUTION, "low, first_rich = 1, DEPOSITS + 1", "low, first_rich = 1, 1_000")
    ],
    handlers_under_stress.NAME: [
        (SOLUTION, "for _ in range(2)", "lab.replay(order)\nwork(lab)\nfor _ in (1, 2)")
    ],
    projections.NAME: [(SOLUTION, ">= 3", "> 2")],
    queries.NAME: [(SOLUTION, "while page.cursor", "while len(page.rows) == 2")],
    reading_your_own_writes.NAME: [
        (STUB, "OrderById(order))", 'OrderById(order), fresh=Fresh("token", (token,)))')
    ],
    processes.NAME: [(SOLUTION, 'f"bonus:{month}"', 'f"bonus:{month}:{customer}"')],
    streams.NAME: [(SOLUTION, "grace = 0", "grace = 2")],
    consistency_lag.NAME: [
        (SOLUTION, ', interpolation="higher"', ""),
        (SOLUTION, 'quantile(0.999, interpolation="higher")', "max()"),
    ],
    throughput.NAME: [
        (STUB, "best = max(", "best = 6 or max("),
        (STUB, "best = max(", "best = 7 or max("),
    ],
    simulate_and_shrink.NAME: [
        (
            SOLUTION,
            'stop_part(lab, "handler")',
            'lab.handler.flush()\n    stop_part(lab, "handler")',
        ),
    ],
}


def code_of(notebook: nbformat.NotebookNode, base: str) -> str:
    """The code of the stub, or of the solution."""
    (cell,) = [c for c in notebook.cells if base in c.metadata.get("tags", ())]
    if base == STUB:
        return str(cell.source)
    (code,) = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
    return str(code).rstrip()


def edited(notebook: nbformat.NotebookNode, edit: Edit) -> str:
    base, old, new = edit
    code = code_of(notebook, base)
    assert code.count(old) == 1, f"{old!r} must be in the {base} once"
    return code.replace(old, new)


def answers(notebook: nbformat.NotebookNode, name: str) -> Iterator[tuple[str, bool]]:
    """The cells to try in turn, and whether each is right: wrong ones, right ones twice, wrong
    ones again, since an answer of before must not count."""
    stub, solution = (code_of(notebook, base) for base in (STUB, SOLUTION))
    wrong = [(edited(notebook, edit), False) for edit in WRONG[name]]
    right = [(edited(notebook, edit), True) for edit in RIGHT[name]]
    yield from wrong
    yield from [(solution, True), (solution, True), *right, (stub, False)]
    yield from wrong


def with_answers(notebook: nbformat.NotebookNode, name: str) -> None:
    """Let a notebook try all answers before its last cell, and run the check twice after each."""
    (check,) = [c for c in notebook.cells if "check" in c.metadata.get("tags", ())]
    tried = []
    for number, (code, right) in enumerate(answers(notebook, name)):
        may_fail = [] if right else ["raises-exception"]
        tried.append(new_code_cell(code, metadata={"tags": may_fail}))
        for time in (1, 2):
            said = {"tags": [f"answer-{number}-{time}"]}
            tried.append(new_code_cell(check.source, metadata=said))
    strict = f'import os\nos.environ["LABKIT_STRICT"] = "1"\n{check.source}'
    tags = {"tags": ["strict", "raises-exception"]}
    tried.append(new_code_cell(strict, metadata=tags))
    notebook.cells[-1:-1] = tried
