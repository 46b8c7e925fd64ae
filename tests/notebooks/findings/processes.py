"""The claims of notebook 08, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

from tests.notebooks.findings.handlers_under_stress import FORGETS_IDS

NAME = "08_process_managers"
CLAIMS = ("takes effect once", "StockReleased, once", "No transaction spans two streams")

SHIPPED = "a paid order is shipped, and so are its goods"
NO_STOCK = "the process manager cancels an order without goods"
DEADLINE = "the goods of an unpaid order are released at the deadline"
ONCE = "a command that a killed process manager sends twice takes effect once"
RANDOM = "with random ids a command takes effect twice"
MONEY = "money of an open transfer is on no account, and none is lost"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    return {
        SHIPPED: set(book.value("walked['event'].to_list()"))
        == {"OrderPlaced.v2", "OrderPaid", "OrderShipped"}
        | {"StockReceived", "StockReserved", "StockShipped"},
        NO_STOCK: book.value("refused['command'].to_list()") == ["fulfilment:order-2:reserve"]
        and "OrderCancelled" in book.cell_output_text("no-stock"),
        DEADLINE: book.value("late['outcome'].to_list()") == ["accepted", "scheduled", "accepted"]
        and book.value("back.loc['cd'].to_list()") == [3, 0, 2],
        ONCE: book.value("list(reserve).count('fulfilment:order-4:reserve')") == 2
        and book.value("twice['outcome'].to_list()") == ["accepted", "repeated"],
        RANDOM: book.value("made.loc['grace'].to_list()") == [80, 0],
        MONEY: book.value("money.values.tolist()")
        == [[100, 0, 0], [30, 0, 70], [30, 40, 30], [60, 40, 0]],
    }


NO_RELEASE = """
from labkit.services.fulfilment import Fulfilment
_next = Fulfilment._next
Fulfilment._next = lambda *a: [send for send in _next(*a) if send.step != "release"]
"""

NO_CANCEL = """
from labkit.services.fulfilment import Fulfilment
_next = Fulfilment._next
Fulfilment._next = lambda *a: [send for send in _next(*a) if send.step != "cancel"]
"""

ALL_IDS_ARE_RANDOM = """
from labkit.ports.ids import new_id
from labkit.process.outbox import Outbox
_send = Outbox.send
def _renamed(letter):
    return letter | {"value": letter["value"].replace(letter["_id"], new_id(), 1)}
Outbox.send = lambda self, letters: _send(self, [_renamed(letter) for letter in letters])
"""

RANDOM_IDS = """
from labkit.experiments.verify.planted_bugs import random_process_ids
random_process_ids()
"""

NOTHING_PLANTED = """
from labkit.experiments.verify import planted_bugs
planted_bugs.random_process_ids = lambda: None
"""

TWINS = {
    "a stream forgets the ids of a process": ("parameters", FORGETS_IDS, {ONCE}),
    "no goods are released": ("parameters", NO_RELEASE, {DEADLINE}),
    "no order is cancelled": ("parameters", NO_CANCEL, {NO_STOCK}),
    "every command gets a random id": (
        "parameters",
        ALL_IDS_ARE_RANDOM,
        {SHIPPED, NO_STOCK, DEADLINE, ONCE, MONEY},
    ),
    "a command that is sent again gets a random id": ("parameters", RANDOM_IDS, {ONCE}),
    "the bug is not planted": ("parameters", NOTHING_PLANTED, {RANDOM}),
}
