"""The claims of notebook 06, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

NAME = "06_queries"
CLAIMS = ("the same id", "perhaps twice", "only that it changed", "So ask again")

OWN = "an answer is in the partition that its query names, under its id"
MEANT = "a query type translates the words of its conditions"
TWICE = "a client takes one of two answers"
TOLD = "a change names the document, and nothing else"
FOLLOWED = "a subscription gives the first answer, then each different one"
HELD = "a cache reads once for many equal queries; without one each query reads"
DEAF = "a cache that receives no changes keeps its old answers"
WEB = "each idea has its status and its header in HTTP"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    statuses = {when: row[0] for when, row in book.value("web_says").items()}
    return {
        OWN: book.value("[len(none_yet), place == [(sent['reply'], True)]]") == [0, True],
        MEANT: book.value("sent['params']['status']") == "PAID"
        and book.value("[row['_id'] for row in page_of_paid.rows]") == ["order-3", "order-1"],
        TWICE: book.value("[answers >= 2, len(again)]") == [True, 0]
        and book.value("first['_id']") == "order-2",
        TOLD: book.value("told") == [["orders.view.orders", "order-2"]],
        FOLLOWED: book.value("list(followed.values())") == ["unpaid", "paid", None],
        HELD: book.value("table[['read', 'held']].values.tolist()")
        == [[book.value("QUESTIONS"), 0], [1, book.value("QUESTIONS") - 1]],
        DEAF: book.value("[hears, deaf]") == [["unpaid", "paid"], ["unpaid", "unpaid"]],
        WEB: list(statuses.values()) == [202, 200, 304, 409, 412, 200]
        and book.value("fresh.body['id']") == "order-1"
        and '"id":"order-1"' in book.value("stream.body"),
    }


REPLIES_ANYWHERE = """
from labkit.query.handler import QueryHandler as _Handler
_put = _Handler._put
def put(handler, partition, result):
    _put(handler, (partition + 1) % 4, result)
    _put(handler, partition, result)
_Handler._put = put
"""

TAKES_ALL = """
from labkit.query.bus import QueryBus as _Bus
class _Kept(dict):
    def __delitem__(self, id):
        pass
_init = _Bus.__init__
def init(bus, *arguments, **options):
    _init(bus, *arguments, **options)
    bus._open = _Kept()
_Bus.__init__ = init
"""

IN_ANY_ORDER = """
from labkit.read.view_reads import ViewReads as _Reads
_page = _Reads.page
def page(reads, view, *, sort=(), **asked):
    return _page(reads, view, sort=str(sort).removeprefix("-"), **asked)
_Reads.page = page
"""

HEARS_NOTHING = """
from labkit.adapters.memory_store import MemoryChanges as _Changes
_Changes.hear = lambda *_: None
"""

HOLDS_NOTHING = """
from labkit.query.answer_cache import AnswerCache as _Cache
_Cache.put = lambda *_: None
"""

NO_VERSIONS = """
from labkit.write.bus import CommandBus as _Bus
_send = _Bus.send
def send(bus, command, **options):
    return _send(bus, command, **{**options, "expected_version": None})
_Bus.send = send
"""

TWINS = {
    "answers go anywhere": ("parameters", REPLIES_ANYWHERE, {OWN}),
    "the client takes every answer": ("parameters", TAKES_ALL, {TWICE}),
    "the sort condition is not translated": ("parameters", IN_ANY_ORDER, {MEANT}),
    "no change is reported": ("parameters", HEARS_NOTHING, {TOLD, FOLLOWED, DEAF}),
    "a cache holds nothing": ("parameters", HOLDS_NOTHING, {HELD, DEAF}),
    "the expected version is ignored over HTTP": ("parameters", NO_VERSIONS, {WEB}),
}
