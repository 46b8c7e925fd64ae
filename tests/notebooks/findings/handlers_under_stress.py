"""The claims of notebook 04, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

NAME = "04_handlers_under_stress"
CLAIMS = ("lost", "twice", "once")

TIMER = "a timer handles all in batches of three, in the order of each partition"
WAITS = "a scheduled command survives its handler"
LEVELS = "at most once loses, at least once repeats, exactly once does neither"
PARKED = "poison parks its own stream, in order, and no other stream"
RELEASED = "waiting commands take effect when the poison is dropped"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    levels = book.value("levels['commits for place-1'].to_dict()")
    rang = book.value("[places for _, places in rang]")
    places = [place.split("/") for batch in rang for place in batch]
    by_partition: dict[str, list[int]] = {}
    for partition, offset in places:
        by_partition.setdefault(partition, []).append(int(offset))
    return {
        TIMER: [len(batch) for batch in rang] == [3, 3, 3, 1]
        and all(offsets == sorted(offsets) for offsets in by_partition.values()),
        WAITS: book.value("waited['outcome'].to_list()") == ["accepted", "scheduled", "accepted"],
        LEVELS: levels
        == {
            "at_most_once": "none",
            "at_least_once": "accepted, repeated",
            "exactly_once": "accepted",
        },
        PARKED: sorted(book.value("poisoned[['order', 'outcome']].tail(4).values.tolist()"))
        == [["order-1", "parked"]] * 2 + [["order-2", "accepted"]] * 2
        and book.value("parked[['stream', 'waiting']].values.tolist()") == [["order-1", 2]]
        and book.value("waiting['command'].to_list()") == ["", "ShipOrder"],
        RELEASED: book.value("story[['outcome', 'events']].tail(2).values.tolist()")
        == [["dropped", "none"], ["accepted", "OrderShipped"]],
    }


FORGETS_IDS = """
from labkit.write.stream_state import StreamState
_take = StreamState.take
def take(stream, commit, evolve):
    _take(stream, commit, evolve)
    stream.seen.clear()
StreamState.take = take
"""

FORGETS_WHAT_WAITS = """
from labkit.adapters.memory_store import MemoryStore
from labkit.adapters.mongo import MongoStore
for _store in (MemoryStore, MongoStore):
    def find(store, collection, where, *arguments, _find=_store.find, **options):
        return [] if "waiting" in where else _find(store, collection, where, *arguments, **options)
    _store.find = find
"""

#: Neither by its id nor by its offset.
KNOWS_NO_REPEAT = f"""{FORGETS_IDS}
from msgspec import structs
from labkit.write import handler as handlers
_decide = handlers.decide
handlers.decide = lambda arrival, clock: _decide(structs.replace(arrival, again=False), clock)
"""

TAKES_FIVE = """
from labkit.write.handler import Handler
_init = Handler.__init__
def init(handler, *arguments, **options):
    _init(handler, *arguments, **{**options, "batch_size": 5})
Handler.__init__ = init
"""

NO_ROOM = """
from labkit.write import decisions
decisions.MAX_WAITING = 1
"""

DROPS_NOTHING = """
from labkit.lab import Lab
Lab.drop_dead_letter = Lab.replay
"""

TWINS = {
    "a handler detects no repeat": ("parameters", KNOWS_NO_REPEAT, {LEVELS}),
    "a new handler forgets the waiting commands": (
        "parameters",
        FORGETS_WHAT_WAITS,
        {WAITS, PARKED, RELEASED},
    ),
    "batches are too large": ("parameters", TAKES_FIVE, {TIMER}),
    "no command may wait behind the poison": ("parameters", NO_ROOM, {PARKED, RELEASED}),
    "a drop is only a replay": ("parameters", DROPS_NOTHING, {RELEASED}),
}
