"""The claims of notebook 09, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

NAME = "09_streams"
CLAIMS = ("late records", "€ 45 = € 15 in its window + € 30 late", "says nothing twice")

JUDGED = "each record is an order or a reject, and the orders are those of pandas"
WINDOWS = "windows and late records add up to the figures of pandas, minute by minute"
DEALT = "the reading order makes records late that no register delayed"
HOPPING = "each order counts in two hopping windows"
JOINED = "settlements do not depend on the reading order, and equal those of pandas"

# On real servers only.
EQUAL = "the documents of Quix equal pandas after a pipeline was killed"
ONCE = "no total is written twice after a pipeline was killed"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    late, late_by_id = book.value("[len(late), len(late_by_id)]")
    found = {
        JUDGED: book.value("len(orders) + len(rejects) == len(raw)")
        and book.value("[order.id for order in orders] == by_pandas['id'].to_list()")
        and book.value("len(rejects)") > 10,
        WINDOWS: book.value(
            "bool((minutes['windows'] + minutes['late'] == minutes['pandas']).all())"
        )
        and late > 10,
        DEALT: late_by_id > 5 * late,
        HOPPING: book.value("counted == 2 * len(orders)"),
        JOINED: book.value("orders_first == payments_first")
        and book.value("by_hand.to_dict() == joined['status'].value_counts().to_dict()"),
    }
    return found | (on_kafka(book) if book.value("BACKEND") == "kafka" else {})


def on_kafka(book: TestbookNotebookClient) -> dict[str, bool]:
    return {
        EQUAL: book.value("bool((compared['Quix Streams'] == compared['pandas']).all())"),
        ONCE: book.value("twice") == 0 and 0 < book.value("half") < book.value("len(said)"),
    }


NO_RULES = """
import labkit.streams.sales
labkit.streams.sales.broken_rule = lambda found: ""
"""

DROPS_LATE_ONES = """
_add_up = add_up
add_up = lambda orders, window: (_add_up(orders, window)[0], [])
"""

ONE_PARTITION = "partition_of = lambda key, partitions: 0"

TUMBLES = """
_starts = Window.starts
Window.starts = lambda window, at: _starts(window, at)[-1:]
"""

ONLY_WHAT_WAS_READ_BEFORE = """
import labkit.streams.sales
_settle = labkit.streams.sales.settle
def settle(known, came):
    return _settle(None if isinstance(came, Order) else known, came)
labkit.streams.sales.settle = settle
"""

TWINS = {
    "there are no rules": ("set-up", NO_RULES, {JUDGED, WINDOWS, JOINED}),
    "late records are dropped": ("set-up", DROPS_LATE_ONES, {WINDOWS, DEALT, HOPPING}),
    "all records are in one partition": ("set-up", ONE_PARTITION, {DEALT}),
    "a hopping window tumbles": ("set-up", TUMBLES, {HOPPING}),
    "a join matches earlier records only": (
        "set-up",
        ONLY_WHAT_WAS_READ_BEFORE,
        {JOINED},
    ),
}

AT_LEAST_ONCE = '''
import sys
from types import SimpleNamespace
_subprocess = registers.subprocess
PROGRAM = """
import os, runpy, time
from labkit.streams import streams
streams.GUARANTEE = "at-least-once"
kill = os.kill
os.kill = lambda *call: (time.sleep(1), kill(*call))  # its open records are sent by then
runpy.run_module("labkit.experiments.sales", run_name="__main__", alter_sys=True)
"""
def popen(command, **options):
    return _subprocess.Popen([sys.executable, "-c", PROGRAM, *command[3:]], **options)
registers.subprocess = SimpleNamespace(Popen=popen, PIPE=_subprocess.PIPE)
'''

LATE_ONES_VANISH = """
from labkit.streams import pipelines as quix
quix.Missed.note = lambda *_, **__: False
"""

SERVER_TWINS = {
    "the pipelines are at-least-once": ("set-up", AT_LEAST_ONCE, {ONCE}),
    "late records vanish on the stream": ("set-up", LATE_ONES_VANISH, {EQUAL}),
}
