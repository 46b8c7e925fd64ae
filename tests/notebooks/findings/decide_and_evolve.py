"""The claims of notebook 02, and the planted bugs that turn each claim red."""

from __future__ import annotations

from testbook.client import TestbookNotebookClient

NAME = "02_decide_and_evolve"
CLAIMS = ("no limit", "30 days", "returned", "refused", "same bytes")

PURE = "decide is pure and gives the same result each time; evolve changes the state"
PREFIX = "the first n events fold to the state at version n"
SENTENCES = "three sentences are rules, and the false one tells its story"
RULES = "two orders of two days have two rules, and keep them"
PROMISE = "a promise stays valid after the rules were overwritten"
UPCAST = "a record of the old schema is read as today's event"
BYTES = "both schemas are in one log, and the old bytes are unchanged"
REAL = "a real handler continues the log of an older program"

TOO_LATE = "order 'july' is of 1998-07-01 and can be returned for 30 days, got 1998-12-31"


def findings(book: TestbookNotebookClient) -> dict[str, bool]:
    stories = book.value("[list(item) for item in stories.items()]")
    outcomes = ["accepted"] * 3
    return {
        PURE: book.value("first == second and [order.payment, paid_order.payment]")
        == ["unpaid", "paid"]
        and book.value("third") == "refused: order 'order-1' is paid already",
        PREFIX: book.value("again == live and len(again) == len(past) + 1 > WISHES / 2")
        and book.value("len(past) < len(wishes)"),
        SENTENCES: [number for number, _ in stories] == [3]
        and stories[0][1].startswith("given\n  OrderPlaced(")
        and stories[0][1].endswith("refused: order 'order-1' is shipped"),
        RULES: book.value("terms[['cents', 'discount', 'return_days']].values.tolist()")
        == [[10_000, 0, None], [9_000, 1_000, 30]]
        and book.value("[[s[-1].status, no] for _, s, no in lives.values()]")
        == [["returned", []], ["shipped", [TOO_LATE]]],
        PROMISE: book.value("[replayed == then[-1], later[-1].status, refusals]")
        == [True, "returned", []]
        and book.value("[fresh.cents, fresh.return_days]") == [10_000, 7],
        UPCAST: book.value("read == promised[0]")
        and book.value("b'return_days' not in written and b'discount' not in written"),
        BYTES: book.value("stored == written")
        and {"OrderPlaced", "OrderPlaced.v2"} < set(book.value("schemas['events'].to_list()")),
        REAL: book.value("same") == [True, True]
        and book.value("told.loc['june', 'outcome'].to_list()") == ["accepted", *outcomes]
        and book.value("told.loc['july', 'outcome'].to_list()") == [*outcomes, "refused"]
        and book.value("told.loc['july', 'reason'].to_list()")[-1] == TOO_LATE,
    }


IMPURE_DECIDE = """
from itertools import count
from msgspec import structs
from labkit.services.orders import ORDERS as _ORDERS, PayOrder as _PayOrder, rules as _rules
_pay, _calls = _rules.pay, count()
def pay(order, command):
    (event,) = _pay(order, command)
    return (structs.replace(event, cents=event.cents + next(_calls)),)
_rules.pay = _ORDERS.decide[_PayOrder] = pay
"""

IMPURE_EVOLVE = """
from itertools import count
from msgspec import structs
from labkit.services.bank import BANK
_evolve, _calls = BANK.evolve, count()
def evolve(account, event):
    evolved = _evolve(account, event)
    return structs.replace(evolved, balance=evolved.balance + next(_calls) % 2)
BANK.evolve = evolve
"""

SHIPPED_IS_CANCELLED = """
from labkit.services import orders
def cancel(order, command):
    facts = (command.order_id, order.customer_id, order.day, order.cents)
    return (orders.OrderCancelled(*facts, order.cents, command.reason),)
orders.ORDERS.decide[orders.CancelOrder] = cancel
"""

NO_NEW_RULE = """
from labkit.services.orders import rules as _rules
_rules.RULES = _rules.RULES[:1]
"""

LOOKS_AT_THE_TABLE = """
from msgspec import structs
from labkit.services import orders
from labkit.services.orders import rules as _rules
_send_back = _rules.send_back
def send_back(order, command):
    rules = _rules.rules(order.day)
    return _send_back(structs.replace(order, return_days=rules.return_days), command)
orders.ORDERS.decide[orders.ReturnOrder] = send_back
"""

UPCAST_BY_GUESS = """
from msgspec import structs
from labkit.services import orders
orders.UPCASTS[orders.OrderPlacedV1] = lambda old: structs.replace(
    orders.placed_v1(old), return_days=30
)
"""

REWRITES_THE_LOG = """
from labkit.adapters.memory import MemoryBroker
from labkit.services.orders import ORDERS as _ORDERS
from labkit.messages import encode
_append = MemoryBroker.append
def append(broker, topic, partition, *record):
    if topic.endswith("orders.events"):
        for slot in broker.partitions(topic)[partition]:
            if slot.record:
                today = _ORDERS.codec.decode_commit(slot.record.value)
                slot.record.value = encode(today)
    return _append(broker, topic, partition, *record)
MemoryBroker.append = append
"""

NO_REPLAY = """
from labkit.write.handler import Handler
Handler._replay = lambda *_: None
"""

TWINS = {
    "decide is not pure": ("parameters", IMPURE_DECIDE, {PURE, SENTENCES}),
    "evolve is not pure": ("parameters", IMPURE_EVOLVE, {PREFIX}),
    "a shipped order can be cancelled": ("parameters", SHIPPED_IS_CANCELLED, {SENTENCES}),
    "the new rule is missing": ("parameters", NO_NEW_RULE, {RULES, PROMISE, REAL}),
    "a return looks up the rules again": ("parameters", LOOKS_AT_THE_TABLE, {PROMISE}),
    "an upcaster guesses": ("parameters", UPCAST_BY_GUESS, {UPCAST, REAL}),
    "a handler rewrites the old log": ("parameters", REWRITES_THE_LOG, {BYTES}),
    "a handler replays nothing": ("parameters", NO_REPLAY, {REAL}),
}
