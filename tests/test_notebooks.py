"""The notebooks: their findings on real servers and in memory, their exercises, their form.

A finding is a claim of a notebook, asserted on the values that its cells computed. Each finding has
a twin: the same notebook with a bug planted into labkit, in which the finding must turn red.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pymongo
import pytest
from nbclient.exceptions import CellExecutionError
from testbook import testbook
from testbook.client import TestbookNotebookClient

from labkit import stack
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.lab import Lab
from labkit.services.orders import PlaceOrder
from tests.findings import (
    consistency_lag,
    decide_and_evolve,
    handlers_under_stress,
    processes,
    projections,
    queries,
    reading_your_own_writes,
    streams,
    the_event_log,
    throughput,
)

FOLDER = Path(__file__).parent.parent / "notebooks"
START = "00_start_here"
STEPS = "01_one_command_step_by_step"
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
]
NAMES = [START, STEPS, *(one.NAME for one in MORE)]

MAX_CELLS, MAX_LINES, MAX_CELL_LINES = 30, 120, 15
CELL_SECONDS = 120
#: Smaller parameters for real servers, with the same findings.
SMALLER = {
    handlers_under_stress.NAME: "BURST = 80",
    projections.NAME: "ORDERS, BATCH = 400, 40",
    reading_your_own_writes.NAME: "TRIES = 6",
    consistency_lag.NAME: "SECONDS = 6",
    throughput.NAME: "SIZES, COMMANDS, ROUNDS, WORKERS = (1_000,), 600, 2, ()\n"
    "LOADS, SECONDS = (0.05,), 4",
}

# --- running a notebook


def load(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    """The one cell that has the tag."""
    (cell,) = [c for c in notebook.cells if tag in c.metadata.get("tags", ())]
    return cell


def solve(notebook: nbformat.NotebookNode) -> None:
    """Put the solution into the stub, and remove the tag that lets the stub fail."""
    (solution,) = re.findall(r"```python\n(.*?)```", tagged(notebook, "solution").source, re.DOTALL)
    stub = tagged(notebook, "exercise")
    stub.source = solution.rstrip()
    stub.metadata.tags = ["exercise"]


@contextmanager
def run(
    name: str,
    backend: str,
    planted: str = "",
    *,
    after: str = "parameters",
    solved: bool = False,
) -> Iterator[TestbookNotebookClient]:
    """A notebook that ran from its first cell to its last; its kernel is still alive.

    ``planted`` is code that runs right after the cell tagged ``after``.
    """
    notebook = load(name)
    if solved:
        solve(notebook)
    settings = {"resources": {"metadata": {"path": str(FOLDER)}}, "timeout": CELL_SECONDS}
    with testbook(notebook, execute=False, **settings) as book:
        book.inject(planted or "pass", after=after, run=False)
        smaller = SMALLER.get(name, "") if backend == "kafka" else ""
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


#: Long measurements, which other tests would disturb.
LONG = {consistency_lag.NAME, throughput.NAME}


@pytest.mark.servers
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in NAMES]
)
def test_findings_on_real_servers(name: str, servers: stack.Servers) -> None:
    with run(name, "kafka") as book:
        assert red(name, book) == set()
        assert book.cell_output_text("check").startswith("Not yet. Hint: ")
        own = book.value("lab.topic_name('')")
        if name == START:  # two servers, two workers
            shown = book.cell_output_text("servers")
            assert servers.bootstrap in shown
            assert len(re.findall(r"process \d+", shown)) == 2
        if name == STEPS:
            shown = book.cell_output_text("crash-after")
            assert re.search(r"process \d+ died at handler\.committed by signal 9", shown)
    assert left_behind(servers, own) == []


def left_behind(servers: stack.Servers, own: str, timeout: float = 20.0) -> list[str]:
    """Topics and databases that a dropped run left; Kafka deletes in the background."""
    broker = KafkaPythonBroker(servers.bootstrap)
    deadline = time.monotonic() + timeout
    try:
        while topics := [topic for topic in broker.topics() if topic.startswith(own)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    finally:
        broker.close()
    with pymongo.MongoClient[dict[str, Any]](servers.mongo_uri) as client:
        database = own.removesuffix(".").replace(".", "_")
        return topics + [found for found in client.list_database_names() if found == database]


@pytest.mark.servers
def test_a_reader_may_pause_between_two_steps(
    servers: stack.Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that pauses for a minute loses its place in its group, and every step still works.

    The test does not wait: it treats every step as too late.
    """
    monkeypatch.setattr("labkit.run.by_hand.IDLE_SECONDS", -1.0)
    with Lab("lab", services=["orders"], partitions=1) as lab:
        for number in (1, 2):
            lab.bus.send(PlaceOrder(f"order-{number}", "ada", "1997-01-31", 1, 1599)).token()
            assert [commit.outcome for commit in lab.handler.step(10)] == ["accepted"]
            assert lab.projector.step(10) == 1
        assert set(lab.collection("orders.checkpoints")["epoch"]) == {2}
        lab.drop()


@pytest.mark.parametrize("name", NAMES)
def test_findings_in_memory(name: str) -> None:
    with run(name, "memory") as book:
        found = FINDINGS[name](book)
        assert book.cell_output_text("check").startswith("Not yet. Hint: ")
    assert {finding for finding, holds in found.items() if not holds} == set()
    twins = set().union(*(reds for of, _, _, reds in TWINS.values() if of == name))
    assert set(found) == twins, "every finding has a twin in which it turns red"


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_solves_the_exercise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_STRICT", "1")
    with run(name, "memory", solved=True) as book:
        assert book.cell_output_text("check").startswith("Solved. ")
        assert red(name, book) == set()


@pytest.mark.parametrize("name", NAMES)
def test_an_open_exercise_fails_a_strict_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_STRICT", "1")
    with pytest.raises(CellExecutionError, match="not yet: "), run(name, "memory"):
        pass


# --- the twins: a bug, and exactly the findings that it turns red

FORGETS_IDS = """
from labkit.write.stream_state import StreamState
_take = StreamState.take
def take(stream, commit, evolve):
    _take(stream, commit, evolve)
    stream.seen.clear()
StreamState.take = take
"""

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

SUMS_BEFORE_THE_CHECKPOINT = """
from labkit.adapters.memory_store import MemoryStore
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Writes
_advance = MemoryStore.advance
def advance(store, checkpoints, moves, writes):
    sums, rest = Writes(), Writes()
    for kind in ("inserts", "replaces"):
        for collection, documents in getattr(writes, kind).items():
            early = collection == "orders.view.customers"
            getattr(sums if early else rest, kind)[collection] = documents
    _advance(store, checkpoints, [], sums)
    if sums.replaces:
        hit(Failpoint.PROJECTOR_ADVANCED)  # dies between the two writes
    _advance(store, checkpoints, moves, rest)
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

SERVER_TWINS = {
    bug: (one.NAME, *twin)
    for one in (the_event_log, reading_your_own_writes, streams, consistency_lag, throughput)
    for bug, twin in one.SERVER_TWINS.items()
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", TWINS)
def test_a_planted_bug_turns_its_findings_red(bug: str) -> None:
    name, after, code, expected = TWINS[bug]
    with run(name, "memory", code, after=after) as book:
        assert red(name, book) == expected


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize("bug", SERVER_TWINS)
def test_a_planted_bug_on_real_servers(bug: str, servers: stack.Servers) -> None:
    """On a busy machine measured findings may be red, too."""
    name, after, code, expected = SERVER_TWINS[bug]
    with run(name, "kafka", code, after=after) as book:
        assert red(name, book) >= expected


# --- the form


@pytest.mark.parametrize("name", NAMES)
def test_form(name: str) -> None:
    notebook = load(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = [len(cell.source.splitlines()) for cell in code]
    assert len(notebook.cells) <= MAX_CELLS
    assert sum(lines) <= MAX_LINES
    assert max(lines) <= MAX_CELL_LINES
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    assert notebook.metadata.language_info == {"name": "python"}
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert {cell.execution_count for cell in code} == {None}
    assert tagged(notebook, "parameters").source.startswith('BACKEND = "kafka"  # ')
    assert all("  # " in line for line in tagged(notebook, "parameters").source.splitlines())
    assert "raises-exception" in tagged(notebook, "exercise").metadata.tags
    assert tagged(notebook, "check").source.count("check(") == 1
    assert tagged(notebook, "solution").source.startswith("<details>")
    assert code[-1].source == "lab.drop()"
    assert notebook.cells[-1] is code[-1]


@pytest.mark.parametrize("name", NAMES)
def test_words(name: str) -> None:
    notebook = load(name)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    text = "\n\n".join(prose)
    title = prose[0].splitlines()[0]
    assert re.match(r"# [A-Z][a-z]+ (one|a|an|the) ", title), f"not a verb, then an object: {title}"
    for part in ("What you will do:", "What you will learn:", "What you need:", "Minutes:"):
        assert f"*{part}*" in prose[0]
    for heading in ("## On your own", "## In practice", "## Further reading"):
        assert text.count(f"\n{heading}\n") == 1
    assert text.count("A common misconception") == 1
    assert text.count("*Predict:*") >= 4
    (stated,) = re.findall(r"some ([\d,]+) words", prose[0])
    assert abs(int(stated.replace(",", "")) / len(text.split()) - 1) < 0.1
    for link in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (FOLDER / link).exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_shows_a_picture_of_the_finding(name: str) -> None:
    (picture,) = re.findall(r"!\[.{40,}\]\((figures/.+\.svg)\)", load(name).cells[0].source)
    root = ElementTree.parse(FOLDER / picture).getroot()
    words = " ".join("".join(root.itertext()).split())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    # The picture shows what the findings above assert.
    claims = {START: ("2 orders", "1 order"), STEPS: ("nobody may read it", "once")}
    for claim in (claims | {one.NAME: one.CLAIMS for one in MORE})[name]:
        assert claim in words


@pytest.mark.parametrize("name", NAMES)
def test_committed_as_nbstripout_leaves_it(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "nbstripout", "--verify", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
