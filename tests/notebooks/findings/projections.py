"""The claims of notebook 05, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

NAME = "05_projections"
CLAIMS = ("no look misses an order", "half old and half new", "one transaction")

FOLD = "a step writes documents and a checkpoint"
NAIVE = "a crash between two writes counts an order twice"
CRASH = "a crash at any of three failpoints counts each order once"
SUMS = "a sum has a document for each partition, and a query adds them"
PARKED = "poison parks its own stream, and a query for that stream raises"
MENDED = "a replay applies the waiting commits"
LOOKS = "no read misses an order, and none mixes two generations"
GONE = "the new generation serves, and the old one is gone"
TOLD = "a notice that is sent twice is processed once"
SILENT = "a replay sends no notice"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    looks = book.value("watched.values.tolist()")
    old, new = "orders.view.orders", "orders.view.orders@1"
    served = [look[4] for look in looks]
    before = [look for look in looks if look[4] == old]
    orders = book.value("len(crowd) + 6")  # four of Ada's, the book, the DVD
    return {
        FOLD: book.value("step.values.tolist()") == [[0, 1], [0, 1], [0, 1], [0, 2], [-1, 0]],
        NAIVE: book.cell_output_text("naive") == "bought: 1599 shown: 3198",
        CRASH: book.value("crashes.values.tolist()")
        == [["fetched", 2, 1, 1, 2], ["applied", 3, 2, 1, 3], ["advanced", 4, 4, 0, 4]],
        SUMS: book.value("parts['_id'].to_list()") == ["customer-7:0", "customer-7:1"]
        and book.value("int(parts['orders'].sum())") * 20 == book.value("ORDERS")
        and book.value("told == bought.to_dict()"),
        PARKED: book.value("letters.values.tolist()")
        == [["orders.view", "book-1", 2, "KeyError: 'book'"]]
        and "book-1: 'book-1' is parked in 'orders.view' since" in book.cell_output_text("parked"),
        MENDED: book.value("replayed") == 2
        and book.value("[book[field] for field in ('version', 'payment', 'shelf')]")
        == [2, "paid", "print"],
        LOOKS: served == [old] * len(before) + [new] * 3
        and len(before) >= 5
        and all(seen == sent for sent, seen, *_ in looks)
        # Before the switch only the late orders have a shelf, after it all orders have one.
        and [shelved for _, _, shelved, *_ in before] == list(range(1, len(before) + 1))
        and all(shelved == seen for _, seen, shelved, _, at in looks if at == new)
        and 0 < before[-1][3] <= orders,
        GONE: book.value("sorted(names)")
        == [f"orders.view.{kind}@1" for kind in ("customers", "months", "orders", "parked")],
        TOLD: book.value("len(inbox)") == orders < book.value("said"),
        SILENT: book.cell_output_text("silent") == "the log was read again; notices sent since: 0",
    }


NOTES_NO_COMMAND = """
from msgspec import structs
from labkit.adapters.memory_store import MemoryStore
_advance = MemoryStore.advance
def advance(store, checkpoints, moves, writes):
    moves = [
        (old, structs.replace(new, command=-1) if new.id.startswith("orders.view") else new)
        for old, new in moves
    ]
    _advance(store, checkpoints, moves, writes)
MemoryStore.advance = advance
"""

#: The first write becomes visible with the second.
TWO_WRITES_ARE_ONE = """
_held = []
def add(lab, name, number, _add=add):
    if name == "bookmark":
        for held in _held:
            _add(lab, *held)
        _add(lab, name, number)
    _held[:] = [(name, number)] if name != "bookmark" else []
"""

SUMS_BEFORE_THE_CHECKPOINT = """
from labkit.adapters.memory_store import MemoryStore
from labkit.ports.failpoints import Failpoint, hit
from labkit.ports.store import Writes
_advance = MemoryStore.advance
def advance(store, checkpoints, moves, writes):
    sums, rest = Writes(), Writes(deletes=writes.deletes)
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

ONE_SUM_FOR_ALL = """
from msgspec import structs as _structs
from labkit.services.orders import Customers, Months
def _all_in_one(at):
    return _structs.replace(at, partition=0)
for _view in (Customers, Months):
    _view.keys = lambda view, event, at, keys=_view.keys: keys(view, event, _all_in_one(at))
    _view.change = lambda view, docs, event, at, change=_view.change: change(
        view, docs, event, _all_in_one(at)
    )
"""

ASKS_NOBODY = """
from labkit.read import queries
queries._check_parked = lambda views, streams: None
"""

REPLAYS_THE_FIRST_ONLY = """
from labkit.read import projector as module
from labkit.read.projector import Projector
_replay = Projector.replay
def replay(projector, partition, stream):
    _read = module.read_partition
    def read(*arguments, **options):
        yield next(iter(_read(*arguments, **options)))[:1]
    module.read_partition = read
    try:
        return _replay(projector, partition, stream)
    finally:
        module.read_partition = _read
Projector.replay = replay
"""

READS_WHAT_IS_BEING_BUILT = """
from labkit.read.generations import Serving, named
_collection = Serving.collection
def collection(views, name):
    built = {checkpoint.id for checkpoint in views._all("orders")}
    early = name == "orders.view.orders" and "orders.view@1:0" in built
    return named(name, 1) if early else _collection(views, name)
Serving.collection = collection
"""

KEEPS_THE_OLD_ONE = """
from labkit.read.rebuild import Rebuild
Rebuild.drop_old = lambda rebuild: None
"""

OTHER_IDS = """
from labkit.process.outbox import Outbox
_leftovers = Outbox.leftovers
Outbox.leftovers = lambda box, partition: [
    letter | {"value": letter["value"].replace(":mail", ":mail:again")}
    for letter in _leftovers(box, partition)
]
"""

IDS_BY_CHANCE = """
from msgspec import structs
from labkit.ports.ids import new_id
from labkit.process.notifier import Notifier
_of = Notifier._of
Notifier._of = lambda self, commit: (
    structs.replace(notice, id=new_id()) for notice in _of(self, commit)
)
"""

TWINS = {
    "a checkpoint notes no command": ("parameters", NOTES_NO_COMMAND, {FOLD}),
    "two writes are one": ("set-up", TWO_WRITES_ARE_ONE, {NAIVE}),
    "sums are written before their checkpoint": (
        "set-up",
        SUMS_BEFORE_THE_CHECKPOINT,
        {CRASH, SUMS},
    ),
    "all partitions share a sum": ("set-up", ONE_SUM_FOR_ALL, {SUMS}),
    "a query ignores parked streams": ("set-up", ASKS_NOBODY, {PARKED}),
    "a replay applies the first commit only": ("set-up", REPLAYS_THE_FIRST_ONLY, {MENDED}),
    "readers see the unfinished generation": ("set-up", READS_WHAT_IS_BEING_BUILT, {LOOKS}),
    "the old generation is kept": ("set-up", KEEPS_THE_OLD_ONE, {GONE}),
    "a notice that is sent again has another id": ("set-up", OTHER_IDS, {TOLD}),
    "ids of notices are random": ("set-up", IDS_BY_CHANCE, {SILENT}),
}
