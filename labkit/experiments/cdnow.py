"""The CDNOW purchases as orders, and what pandas says about the raw file."""

from __future__ import annotations

from decimal import Decimal

from msgspec import Struct

from labkit.services.cdnow import ORDERS, file, purchases
from labkit.services.orders import PlaceOrder, placed


class Expected(Struct, frozen=True):
    """The figures of the raw file by pandas, which shares no code with the views.

    ``best`` holds (customer, cents), the ten best first; ``months`` (yyyy-mm, orders, cents).
    """

    orders: int
    customers: int
    revenue_cents: int
    best: list[tuple[str, int]]
    months: list[tuple[str, int, int]]


def commands(limit: int = ORDERS) -> list[PlaceOrder]:
    """The first ``limit`` purchases as commands."""
    return [placed(bought, f"cdnow-{bought.number:05d}") for bought in purchases(limit)]


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


__all__ = ["ORDERS", "Expected", "commands", "expected"]
