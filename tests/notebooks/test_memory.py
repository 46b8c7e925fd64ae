"""The notebooks in memory: their findings, their exercises, and a twin for each finding.

A twin is the same notebook with a bug planted into labkit, in which the finding must turn red.
"""

from __future__ import annotations

import pytest
from testbook.client import TestbookNotebookClient

from tests.notebooks.answers import answers
from tests.notebooks.findings.handlers_under_stress import FORGETS_IDS
from tests.notebooks.findings.projections import SUMS_BEFORE_THE_CHECKPOINT
from tests.notebooks.keeping import on_servers
from tests.notebooks.running import FINDINGS, MORE, NAMES, START, STEPS, load, red, run, tagged


#: Cells that measure and leave it to the next one to show it.
SILENT = {"transactions", "little"}


@pytest.mark.parametrize("name", NAMES)
def test_findings_in_memory(name: str) -> None:
    """And the check of the exercise judges the answer: not its form, and not one of before."""
    with run(name, "memory", answered=True) as book:
        found = FINDINGS[name](book)
        assert last_line(book, "check").startswith("Not yet. Hint: ")
        tried = list(answers(load(name), name))
        for number, (code, right) in enumerate(tried):
            for time in (1, 2):
                said = last_line(book, f"answer-{number}-{time}")
                assert said.startswith("Solved. " if right else "Not yet. Hint: "), (said, code)
        assert "not yet: " in tagged(book.nb, "strict").outputs[-1].evalue
        for cell, real in on_servers(load(name)).items():
            outputs = tagged(book.nb, real.metadata.tags[0]).outputs
            # A busy kernel sends what is printed in pieces.
            shown = "".join(o.text for o in outputs if o.output_type == "stream")
            assert "This cell needs real servers" in shown
            assert ("It showed this on a " in shown) == (cell not in SILENT)
    assert {finding for finding, holds in found.items() if not holds} == set()
    twins = set().union(*(reds for of, _, _, reds in TWINS.values() if of == name))
    assert set(found) == twins, "every finding has a twin in which it turns red"


def last_line(book: TestbookNotebookClient, tag: str) -> str:
    return book.cell_output_text(tag).strip().splitlines()[-1]


# --- the twins: a bug, and exactly the findings that it turns red

SERVER_MAKES_THE_IDS = """
import itertools
from msgspec import structs
from labkit.write.bus import CommandBus
_send, _numbers = CommandBus.send, itertools.count(1)
def send(bus, command, id=None, **options):
    return _send(bus, structs.replace(command, order_id=f"order-{next(_numbers)}"), **options)
CommandBus.send = send
"""

SENDER_DECIDES = """
from labkit.write.bus import CommandBus
_send, _first = CommandBus.send, iter([True])
def send(bus, *arguments, **options):
    sent = _send(bus, *arguments, **options)
    if next(_first, False):
        lab.handler.step(0)
    return sent
CommandBus.send = send
"""

OFFSETS_ARE_NOT_COMMITTED = """
from labkit.adapters.memory import MemoryLog
_commit = MemoryLog.commit
def commit(log, batch, commits):
    group = log._broker.group(log._topic, log._commands_group)
    before = dict(group.offsets)
    ends = _commit(log, batch, commits)
    group.offsets = before
    return ends
MemoryLog.commit = commit
"""

NO_TRANSACTION = """
from labkit.adapters.memory import MemoryBroker
_append = MemoryBroker.append
MemoryBroker.append = lambda broker, *record: _append(broker, *record[:-1], None)
"""

NO_REPLAY = """
from labkit.write.handler import Handler
Handler._replay = lambda *_: None
"""

PROJECTOR_IS_LATE = """
from labkit.read.projector import Projector
_step, _first = Projector.step, iter([True])
Projector.step = lambda self, *wait: 0 if next(_first, False) else _step(self, *wait)
"""

CHECKPOINT_IS_FORGOTTEN = """
from labkit.adapters.memory_store import MemoryStore
_advance = MemoryStore.advance
def advance(store, checkpoints, moves, writes):
    moves = [move for move in moves if not move[0].id.startswith("orders.view")]
    _advance(store, checkpoints, moves, writes)
MemoryStore.advance = advance
"""

#: Notebook, tag of the cell after which the bug is planted, bug, the findings that turn red.
TWINS = {
    "the link loses nothing": (
        START,
        "link",
        "Link.answers_to_lose = 0",
        {
            "the CRUD shop has the order twice",
            "both requests arrived, and the second is a known repeat",
            "the topic keeps three commands, the view two orders",
        },
    ),
    "the handler forgets the ids": (
        START,
        "parameters",
        FORGETS_IDS,
        {
            "both requests arrived, and the second is a known repeat",
            "the client gets the answer of the first attempt",
        },
    ),
    "the server makes the ids": (
        START,
        "parameters",
        SERVER_MAKES_THE_IDS,
        {
            "labkit has it once",
            "both requests arrived, and the second is a known repeat",
            "the topic keeps three commands, the view two orders",
            "the film is that of the order",
        },
    ),
    "the sender decides": (
        STEPS,
        "parameters",
        SENDER_DECIDES,
        {"a sent command is stored, and no handler has decided"},
    ),
    "the offsets are not committed": (
        STEPS,
        "parameters",
        OFFSETS_ARE_NOT_COMMITTED,
        {
            "a handled command has its commit, and the view does not show it",
            "a repeat changes neither state nor view",
            "killed after the transaction: the commit stands, the saved state is behind",
            "the successor knows the commits of its predecessor",
            "killed inside the transaction: a record that no reader gets",
            "the successor handles that command once",
        },
    ),
    "commits are written without a transaction": (
        STEPS,
        "parameters",
        NO_TRANSACTION,
        {
            "killed inside the transaction: a record that no reader gets",
            "the successor handles that command once",
        },
    ),
    "no replay at the start": (
        STEPS,
        "parameters",
        NO_REPLAY,
        {"the successor knows the commits of its predecessor", "no reader ignored a commit"},
    ),
    "the handler forgets the ids, by hand": (
        STEPS,
        "parameters",
        FORGETS_IDS,
        {
            "a repeat changes neither state nor view",
            "the successor knows the commits of its predecessor",
        },
    ),
    "the projector is late": (
        STEPS,
        "parameters",
        PROJECTOR_IS_LATE,
        {"a projected commit is in the view", "the view's checkpoint covers the command"},
    ),
    "the projector forgets its checkpoint": (
        STEPS,
        "parameters",
        CHECKPOINT_IS_FORGOTTEN,
        {"the view's checkpoint covers the command"},
    ),
    "the sums are written before the checkpoint": (
        STEPS,
        "parameters",
        SUMS_BEFORE_THE_CHECKPOINT,
        {"a projector killed after its transaction counts nothing twice"},
    ),
}


for one in MORE:
    assert not TWINS.keys() & one.TWINS.keys(), "two bugs have one name"
    TWINS |= {bug: (one.NAME, *twin) for bug, twin in one.TWINS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("bug", TWINS)
def test_a_planted_bug_turns_its_findings_red(bug: str) -> None:
    name, after, code, expected = TWINS[bug]
    with run(name, "memory", code, after=after) as book:
        assert red(name, book) == expected
