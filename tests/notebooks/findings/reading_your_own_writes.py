"""The claims of notebook 07, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

NAME = "07_reading_your_own_writes"
CLAIMS = ("a stale read", "promises nothing", "its own write")

STALE = "an accepted order is not shown before it is projected"
WAYS = "three strategies wait for their goals, and none shows an old state"
VAIN = "a time-out names its goal, and how far the view is"
TOKEN = "a token is enough from the acknowledgement on"
ANOTHER = "linearizable shows another client's write, and one's own token does not"
SESSION = "a session shows its own write by default"
BACK = "without a session a reader goes back, with one it waits"

# On real servers only.
PROMISED = "under load no read breaks its promise, and none times out"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    vain: dict[str, str] = book.value("said")
    goals = {"token": "command 0 of p", "version": "version 1 of 'order-2'", "linearizable": "posi"}
    found = {
        STALE: book.value("list(shown.items())")
        == [
            ["acknowledged: it is stored", "no such order"],
            ["accepted: it is in the log", "no such order"],
            ["projected: it is in the view", "placed"],
        ],
        WAYS: book.value("matrix.T.to_dict('list')")
        == {
            "eventual": ["no such order", "no such order", "placed"],
            "token": ["times out", "times out", "placed"],
            "version": ["times out", "times out", "placed"],
            "linearizable": ["no such order", "times out", "placed"],
        },
        VAIN: set(vain) == set(goals)
        and all(f"did not reach {goal}" in vain[strategy] for strategy, goal in goals.items())
        and all("within 0.3 s, it is at" in message for message in vain.values()),
        TOKEN: book.value("[status(at_once), status(waited)]") == ["no such order", "placed"],
        ANOTHER: book.value("[own, everybodys]") == ["unpaid", "paid"],
        SESSION: book.value("mine") == ["order-1", "order-2", "order-3", "order-4"],
        BACK: book.value("[plain, steady]") == [["paid", "unpaid"], ["paid", "paid"]]
        and "it is at" in book.cell_output_text("monotonic"),
    }
    return found | (under_load(book) if book.value("BACKEND") == "kafka" else {})


def under_load(book: TestbookNotebookClient) -> dict[str, bool]:
    """From the rows, not from the displayed table."""
    promised = "tries[tries['strategy'] != 'eventual']"
    counted = f"{promised}[['stale', 'timed_out']].sum().to_list()"
    others = book.value(f"int({promised}['by_another'].sum())")
    asked = book.value(f"sorted({promised}['strategy'].value_counts().to_dict().items())")
    tries = book.value("TRIES")
    return {
        PROMISED: book.value(counted) == [0, 0]
        and asked == [[way, tries] for way in ("linearizable", "token", "version")]
        and others == tries // 2,
    }


TOLD_WHEN_SHOWN = """
from labkit.write.handler import Handler
_step = Handler.step
def step(handler, *wait):
    made = _step(handler, *wait)
    project(lab)
    return made
Handler.step = step
"""

NOBODY_WAITS = """
from labkit.experiments.verify.planted_bugs import no_wait
no_wait()
"""

ASKS_FOR_NOTHING = """
from labkit.read.queries import Queries as _Queries
_Queries._goals = lambda *_: []
"""

SAYS_NOTHING = """
from labkit.read import queries as _queries
_queries.words = lambda goal: "its goal"
"""

ONE_TOO_LOW = """
from labkit.write.bus import Sent as _Sent
_token = _Sent.token
def token(sent, *wait):
    found = _token(sent, *wait)
    return found._replace(offset=found.offset - 1)
_Sent.token = token
"""

NO_ENDS = """
from labkit.lab import Lab as _Lab
_Lab._watermarks = lambda lab, service: {}
"""

FORGETS_ITS_WRITES = """
from labkit.read.sessions import Session as _Session
_Session.wrote = lambda session, goal: None
"""

FORGETS_ITS_READS = """
from labkit.read.sessions import Session as _Session
_turn_to = _Session.turn_to
def turn_to(session, queries):
    _turn_to(session, queries)
    session._floor.clear()
_Session.turn_to = turn_to
"""

TWINS = {
    "a handler also projects": ("set-up", TOLD_WHEN_SHOWN, {STALE, WAYS, VAIN, ANOTHER}),
    "a query ignores the freshness": (
        "parameters",
        ASKS_FOR_NOTHING,
        {WAYS, VAIN, TOKEN, ANOTHER},
    ),
    "a time-out does not name its goal": ("parameters", SAYS_NOTHING, {VAIN}),
    "tokens are one too low": ("parameters", ONE_TOO_LOW, {WAYS, VAIN}),
    "linearizable knows no ends of the log": ("parameters", NO_ENDS, {WAYS, VAIN, ANOTHER}),
    "a session forgets its writes": ("parameters", FORGETS_ITS_WRITES, {SESSION, BACK}),
    "a session forgets its reads": ("parameters", FORGETS_ITS_READS, {BACK}),
}

SERVER_TWINS = {
    "no query waits under load": ("monotonic", NOBODY_WAITS, {PROMISED}),
}
