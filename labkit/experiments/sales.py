"""Tills that send orders, and the account of them by pandas, which shares no code with the lab.

``python -m labkit.experiments.sales PIPELINE LAB RUN N`` runs a pipeline in a process of its own
that dies by SIGKILL when it has processed N records.
"""

from __future__ import annotations

import json
import operator
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import StackError
from labkit.lab import Lab

if TYPE_CHECKING:
    import pandas as pd

#: 2026-01-31 09:00 UTC, in Unix milliseconds: when the shop opens.
OPENS = 1_769_850_000_000
MINUTE = 60_000
PRODUCTS = {"tea": 390, "soap": 250, "lamp": 4_999, "book": 1_850, "bread": 420, "pen": 199}

#: Key and value of a record.
Raw = tuple[str, bytes]


def tills(seed: int, orders: int, minutes: int = 60) -> tuple[list[Raw], list[Raw]]:
    """What tills send in an hour: raw orders, and payments, both in the order of their coming.

    Every department has a till, so orders are keyed by product, and payments by order. About 2 %
    of the orders are broken in some way, and 3 % come 1 to 20 minutes late, since their till was
    off line. A tenth is not paid; some are paid late, in part, or under the name of an order that
    never was.
    """
    dice = random.Random(seed)
    raw: list[tuple[int, Raw]] = []
    paid: list[tuple[int, Raw]] = []
    for number in range(orders):
        at = OPENS + number * minutes * MINUTE // orders
        product, quantity = dice.choice(list(PRODUCTS)), dice.randint(1, 5)
        id, cents = f"order-{number:06d}", PRODUCTS[product] * quantity
        order = {"id": id, "product": product, "at": at, "quantity": quantity, "cents": cents}
        delay = dice.randint(MINUTE, 20 * MINUTE) if dice.random() < 0.03 else dice.randint(0, 900)
        value = _broken(order, dice) if dice.random() < 0.02 else json.dumps(order).encode()
        raw.append((at + delay, (product, value)))
        if dice.random() < 0.9:
            after = dice.randint(1_000, 18 * MINUTE)
            of = id if dice.random() < 0.99 else f"{id}-typo"
            payment = {"order": of, "at": at + after, "cents": cents - (dice.random() < 0.01)}
            paid.append((at + after, (of, json.dumps(payment).encode())))
    in_order = operator.itemgetter(0)
    return [one for _, one in sorted(raw, key=in_order)], [
        one for _, one in sorted(paid, key=in_order)
    ]


def _broken(order: dict[str, Any], dice: random.Random) -> bytes:
    cases = [
        b"\xff\xfe not text",
        json.dumps(order).encode()[:-7],
        json.dumps(order | {"quantity": 0}).encode(),
        json.dumps(order | {"quantity": "two"}).encode(),
        json.dumps(order | {"cents": -1}).encode(),
        json.dumps(order | {"at": 0}).encode(),
    ]
    return dice.choice(cases)


# --- the account by pandas


def valid_orders(raw: Sequence[bytes]) -> pd.DataFrame:
    """The valid orders among raw records, in their order: id, product, at, quantity, cents."""
    import pandas as pd

    rows = []
    for value in raw:
        try:
            rows.append(json.loads(value))
        except ValueError:
            continue
    columns = ["id", "product", "at", "quantity", "cents"]
    found = pd.DataFrame(rows, columns=columns)
    whole = found[["at", "quantity", "cents"]].map(lambda cell: isinstance(cell, int)).all(axis=1)
    found = found[whole].astype({"at": "int64", "quantity": "int64", "cents": "int64"})
    good = found["quantity"].between(1, 100) & found["cents"].between(0, 10_000_000)
    return found[good & (found["at"] >= 946_684_800_000)].reset_index(drop=True)


def windows(
    orders: pd.DataFrame, width: int, step: int, grace: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each window holds of each product, and the (window, order) pairs that came too late.

    ``orders`` as of :func:`valid_orders`, those of each product in the order of their log. Columns
    are window, product, orders, quantity, cents; and window, id, product, cents.
    """
    import pandas as pd

    clock = orders.groupby("product")["at"].cummax()
    parts = []
    for back in range(0, width, step):
        start = orders["at"] // step * step - back
        parts.append(orders.assign(window=start, closed=start + width <= clock - grace))
    pairs = pd.concat(parts)
    kept = pairs[~pairs["closed"]].groupby(["window", "product"])
    sums = kept.agg(orders=("id", "size"), quantity=("quantity", "sum"), cents=("cents", "sum"))
    late = pairs[pairs["closed"]][["window", "id", "product", "cents"]]
    return sums.reset_index(), late.sort_values(["window", "id"]).reset_index(drop=True)


def settlements(orders: pd.DataFrame, payments: Sequence[bytes], within: int) -> pd.DataFrame:
    """The outer join of orders and payments: order, due, paid, status."""
    import pandas as pd

    money = pd.DataFrame([json.loads(value) for value in payments])
    money = money.groupby("order").agg(paid=("cents", "sum"), paid_at=("at", "max")).reset_index()
    due = orders.rename(columns={"id": "order", "cents": "due", "at": "ordered_at"})
    both = due.merge(money, on="order", how="outer")
    status = pd.Series("paid", index=both.index)
    status[both["paid_at"] - both["ordered_at"] > within] = "paid late"
    status[both["paid"] != both["due"]] = "wrong amount"
    status[both["paid"].isna()] = "unpaid"
    status[both["due"].isna()] = "no order"
    return both.assign(status=status)[["order", "due", "paid", "status"]]


# --- a pipeline that dies


def kill(lab: Lab, pipeline: str, after: int) -> int:
    """Let a pipeline die by SIGKILL in a process of its own; returns its process id.

    Raises ``StackError`` where it ended in another way: is there less to process?
    """
    program = [sys.executable, "-m", "labkit.experiments.sales"]
    child = subprocess.Popen(
        [*program, pipeline, lab.name, lab.run, str(after)],
        env=lab.of.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    _, said = child.communicate(timeout=120)
    if child.returncode != -9:
        last = said.strip().splitlines()[-1:] or ["it had nothing to do"]
        raise StackError(f"pipeline {pipeline!r} was to be killed, but ended: {last[0]}")
    return child.pid


def _die(pipeline: str, name: str, run: str, after: str) -> None:
    from labkit.streams.streams import dying

    with Lab(name, run=run, start=False) as lab:
        lab.streams.run(pipeline, dying(int(after)))


if __name__ == "__main__":
    _die(*sys.argv[1:])
