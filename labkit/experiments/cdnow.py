"""The CDNOW purchases: every order of 23,570 customers of a CD shop, 1997-01 to 1998-06.

69,659 lines: customer, day, number of CDs, dollars. 255 lines are exact duplicates of others, so an
order's id comes from its line number. 80 orders cost nothing, which is valid. Amounts go through
``Decimal``: a float loses cents.
"""

from __future__ import annotations

from decimal import Decimal
from importlib import metadata
from pathlib import Path

from msgspec import Struct

from labkit.errors import StackError
from labkit.services.orders import PlaceOrder

ORDERS = 69_659


class Expected(Struct, frozen=True):
    """What pandas says about the raw file: an account that shares no code with the lab.

    ``best`` holds (customer, cents), the ten best first; ``months`` (yyyy-mm, orders, cents).
    """

    orders: int
    customers: int
    revenue_cents: int
    best: list[tuple[str, int]]
    months: list[tuple[str, int, int]]


def file() -> Path:
    """The raw file, as the Lifetimes distribution ships it."""
    for found in metadata.files("Lifetimes") or []:
        if found.name == "CDNOW_master.txt":
            return Path(str(found.locate()))
    raise StackError("the Lifetimes distribution holds no CDNOW_master.txt; run `make install`")


def commands(limit: int = ORDERS) -> list[PlaceOrder]:
    """The first ``limit`` purchases as commands."""
    found = []
    with file().open(encoding="ascii") as lines:
        next(lines)
        for number, line in zip(range(1, limit + 1), lines, strict=False):
            customer, day, quantity, dollars = line.split()
            found.append(
                PlaceOrder(
                    order_id=f"cdnow-{number:05d}",
                    customer_id=customer,
                    day=f"{day[:4]}-{day[4:6]}-{day[6:]}",
                    quantity=int(quantity),
                    cents=int(Decimal(dollars) * 100),
                )
            )
    return found


def expected(limit: int = ORDERS) -> Expected:
    """The same purchases through pandas."""
    import pandas as pd

    raw = pd.read_csv(file(), sep=r"\s+", dtype=str, nrows=limit)
    raw["cents"] = [int(Decimal(dollars).scaleb(2)) for dollars in raw["dollar_value"]]
    raw["month"] = raw["date"].str.slice(0, 4) + "-" + raw["date"].str.slice(4, 6)
    best = raw.groupby("customer_id")["cents"].sum().reset_index()
    best = best.sort_values(["cents", "customer_id"], ascending=[False, True]).head(10)
    months = raw.groupby("month")["cents"].agg(["size", "sum"]).reset_index()
    return Expected(
        orders=len(raw),
        customers=int(raw["customer_id"].nunique()),
        revenue_cents=int(raw["cents"].sum()),
        best=[(str(c), int(v)) for c, v in zip(best["customer_id"], best["cents"], strict=True)],
        months=[(str(m), int(n), int(v)) for m, n, v in months.itertuples(index=False)],
    )
