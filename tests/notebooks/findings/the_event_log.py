"""The claims of notebook 03, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

NAME = "03_the_event_log"
CLAIMS = ("all come again", "One key, one partition", "pass over this")

# On real servers only.
PARTITIONS = "equal keys share a partition, which counts its own offsets"
GROUPS = "each group continues at its own committed offset"
DUPLICATE = "a consumer that dies before its commit does everything twice"
REBALANCE = "two members share the partitions, and the last one gets all"
ISOLATION = "a read_committed reader skips aborted records, and waits for open transactions"

HISTORY = "a history has each event, and the refusal"
TRAVEL = "every past state can be read, by version and by instant"
SNAPSHOT = "a fold from the snapshot is the fold from the start"
RACE = "of two writers for one version one wins"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    found = {
        HISTORY: book.value("history['outcome'].to_list()")
        == ["accepted", "accepted", "refused", "accepted"],
        TRAVEL: book.value("[[s.status, s.payment] for s in known]")
        == [["placed", "unpaid"], ["placed", "paid"], ["shipped", "paid"]]
        and (book.value("BACKEND") == "memory" or book.value("before.status") == "placed"),
        SNAPSHOT: book.value("same") is True
        and book.value("snapshots['version'].to_list()") == [1_000],
        RACE: book.value("race['outcome'].to_list()") == ["accepted", "refused"]
        and "expected version 3, it is 4" in book.value("race['reason'].to_list()"),
    }
    return found | (by_hand(book) if book.value("BACKEND") == "kafka" else {})


def by_hand(book: TestbookNotebookClient) -> dict[str, bool]:
    written = book.value("written.values.tolist()")
    places = {key: {p for k, _, p, _ in written if k == key} for key, *_ in written}
    offsets: dict[int, list[int]] = {}
    for _, _, partition, offset in written:
        offsets.setdefault(partition, []).append(offset)
    alone, shared, again = book.value("[alone, shared, again]")
    return {
        PARTITIONS: all(len(found) == 1 for found in places.values())
        and all(some == list(range(len(some))) for some in offsets.values()),
        GROUPS: book.value("[values for _, values in given]")
        == [list(range(6)), [], list(range(6))],
        DUPLICATE: sorted(book.value("letters")) == sorted([*range(6)] * 2),
        REBALANCE: alone == [[0, 1]] == again and sorted(shared) == [[0], [1]],
        ISOLATION: book.value("seen")
        == {
            "read_uncommitted": [10, 20, 30, 40],
            "read_committed": [10],
            "read_committed, later": [10, 30, 40],
        },
    }


NO_REFUSALS = """
from labkit.log.event_log import EventLog
_history = EventLog.history
EventLog.history = lambda *a: [row for row in _history(*a) if row["event"] is not None]
"""

ALWAYS_THE_NEWEST = """
from labkit.log.event_log import EventLog
_state = EventLog.state
EventLog.state = lambda log, stream, *_, snapshots=True, **__: _state(
    log, stream, snapshots=snapshots
)
"""

WRONG_OWNER = """
from msgspec import structs
from labkit.log.snapshots import Snapshot
_load = Snapshot.load.__func__
def load(cls, *arguments):
    found = _load(cls, *arguments)
    return structs.replace(found, state=structs.replace(found.state, owner="somebody"))
Snapshot.load = classmethod(load)
"""

ANY_VERSION = """
from labkit.write.bus import CommandBus
_send = CommandBus.send
def send(bus, command, **options):
    return _send(bus, command, **{**options, "expected_version": None})
CommandBus.send = send
"""

TWINS = {
    "a history leaves out refusals": ("parameters", NO_REFUSALS, {HISTORY, RACE}),
    "time travel goes nowhere": ("parameters", ALWAYS_THE_NEWEST, {TRAVEL}),
    "a snapshot holds a wrong state": ("parameters", WRONG_OWNER, {SNAPSHOT}),
    "the expected version is ignored": ("parameters", ANY_VERSION, {RACE}),
}

CARELESS = """
from kafka import KafkaConsumer
_init = KafkaConsumer.__init__
def init(consumer, *topics, **options):
    _init(consumer, *topics, **{**options, "isolation_level": "read_uncommitted"})
KafkaConsumer.__init__ = init
KafkaConsumer.commit = lambda *_, **__: None
"""

SERVER_TWINS = {
    "readers are uncommitted and commit nothing": ("parameters", CARELESS, {GROUPS, ISOLATION}),
}
