"""The claims of notebook 14, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

from tests.notebooks.findings.handlers_under_stress import FORGETS_IDS

NAME = "14_simulate_and_shrink"
CLAIMS = ("Two tests pass", "its id is saved", "is refused", "all reachable states are good")

TESTS = "both tests pass, and the bug is there"
FOUND = "a seed finds that one command got two answers"
ONE = "the shrunk day is calm but for one crash"
SAVED = "the id is saved before the crash"
SUCCESSOR = "the successor refuses the repeat, with the bug only"
MENDED = "with the mended code the tape and all seeds are good"
PROOF = "all states of a small case are good"
LIMIT = "the same search finds a bug that its case can show, and no other"
OWN = "no seed breaks a service of one's own"
TABLE = "exactly once shows no anomaly, at least once a second version, at most once a loss"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    rows = book.value(
        "[(r.delivery, [n for n, c in r.cells.items() if c.seed is not None]) for r in table.rows]"
    )
    shown = {delivery: set[str]() for delivery, _ in rows}
    for delivery, anomalies in rows:
        shown[delivery] |= set(anomalies)
    return {
        TESTS: book.value("[sent_twice, killed]") == [True, True],
        FOUND: book.value("story.checker") == "C2"
        and book.value("[side.names for side in story.sides]") == [["first", "second"]],
        ONE: book.value("[event.text[:9] for event in faults]") == ["is killed"],
        SAVED: book.value("[known[:2] for known in state['seen'].iloc[-1]]")
        == [["c1", "accepted"]],
        SUCCESSOR: book.value("[[row[1] for row in rows] for rows in (wrong, right)]")
        == [["refused"], ["repeated"]],
        MENDED: book.value("mended.good and others.good"),
        PROOF: book.value("proof.complete and proof.good"),
        LIMIT: book.value("[its.good for its in proofs.values()]") == [True, False],
        OWN: book.value("own.good and own.seeds == SEEDS"),
        TABLE: shown["exactly_once"] == set()
        and "C6" in shown["at_least_once"]
        and "C1" in shown["at_most_once"],
    }


IDS_ARE_LOST_ON_THE_WAY = """
from labkit.ports.ids import new_id as other_id
from labkit.write.bus import CommandBus
_send = CommandBus.send
def send(bus, command, id=None, **options):
    return _send(bus, command, id=other_id() if (id or "").startswith("place-") else id, **options)
CommandBus.send = send
"""

NOBODY_LOOKS_FOR_DUPLICATES = """
from labkit.experiments.verify import checkers
from labkit.experiments.verify.verdict import verdict
checkers.duplicates = lambda operations, evidence: verdict(1, [])
"""

TOLD_AS_A_PAUSE = """
from labkit.simulation import faults as kinds
kinds._TOLD["kill"] = kinds._TOLD["pause"]
"""

IDS_ARE_NOT_SAVED = """
from labkit.write.stream_state import StreamState
_saved = StreamState.document
StreamState.document = lambda *given: _saved(*given) | {"seen": []}
"""

#: As a bug of the ladder, by its name.
NOT_PLANTED = """
from msgspec import structs
from labkit.simulation import ladder
ladder.BUGS["{name}"] = structs.replace(ladder.BUGS["{name}"], plant=lambda: None)
"""

PLANTED_FOR_GOOD = """
from labkit.simulation.ladder import bug
bug("ids-forgotten").plant()
"""

TWINS = {
    "the ids of a client are lost on the way": ("parameters", IDS_ARE_LOST_ON_THE_WAY, {TESTS}),
    "nobody looks for duplicates": ("parameters", NOBODY_LOOKS_FOR_DUPLICATES, {FOUND}),
    "a crash is told as a pause": ("parameters", TOLD_AS_A_PAUSE, {ONE}),
    "no ids are saved": ("found", IDS_ARE_NOT_SAVED, {SAVED, SUCCESSOR, MENDED, OWN, TABLE}),
    "the ladder's bug is gone": (
        "found",
        NOT_PLANTED.format(name="ids-forgotten"),
        {SUCCESSOR},
    ),
    "the ladder's bug stays": ("branch", PLANTED_FOR_GOOD, {MENDED, OWN, TABLE}),
    "a stream forgets its ids, in a search": ("mended", FORGETS_IDS, {PROOF, LIMIT, OWN, TABLE}),
    "the second bug is gone": ("proof", NOT_PLANTED.format(name="no-dedupe"), {LIMIT}),
}
