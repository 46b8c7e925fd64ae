"""The query path: what the views answer, and the one wait for freshness."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from labkit.errors import TimedOut
from labkit.messages import Token
from labkit.ports import Document, Store
from labkit.views import PROJECTIONS, CatalogViews, OrderViews

#: Between two looks at a checkpoint: at first often, then a twentieth of the time waited so far,
#: since a look takes time from those who are waited for.
SHORTEST_LOOK_SECONDS = 0.001
LONGEST_LOOK_SECONDS = 0.02


class Queries:
    """Answers from the views of one run."""

    def __init__(self, store: Store, pump: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._pump = pump

    def order(self, order_id: str) -> Document | None:
        """One order, or ``None`` where the view has not seen it."""
        return self.orders([order_id]).get(order_id)

    def orders(self, order_ids: Iterable[str]) -> dict[str, Document]:
        """Those of the orders that the view has seen, in one read."""
        return self._store.load(OrderViews.orders, order_ids)

    def orders_of(self, customer: str, limit: int = 0) -> list[Document]:
        """The orders of a customer, by day."""
        sort = [("customer", 1), ("day", 1), ("_id", 1)]
        return self._store.find(OrderViews.orders, {"customer": customer}, sort, limit)

    def customers(self, limit: int = 0) -> list[Document]:
        """Customers (``_id``) with ``orders``, ``quantity``, ``cents``; the best first."""
        fields = ["orders", "quantity", "cents"]
        return self._store.totals(OrderViews.customers, "customer", fields, "cents", limit)

    def revenue_by_month(self) -> list[Document]:
        """Months (``_id``, as yyyy-mm) with ``orders`` and ``cents``, in order."""
        return self._store.totals(OrderViews.months, "month", ["orders", "cents"])

    def orders_seen(self) -> int:
        """How many orders the view holds."""
        return self._store.count(OrderViews.orders)

    def products(self) -> list[Document]:
        """The products that are listed."""
        return self._store.find(CatalogViews.entries, {"kind": "product"}, [("id", 1)])

    def reached(self, context: str) -> dict[int, int]:
        """By partition, the highest command offset that the views of a context have applied."""
        name = PROJECTIONS[context].name
        found = {}
        for checkpoint in self._store.checkpoints(f"{context}.checkpoints"):
            projection, _, partition = checkpoint.id.rpartition(":")
            if projection == name:
                found[int(partition)] = checkpoint.command
        return found

    def until(
        self,
        tokens: Iterable[Token],
        timeout: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until the views have applied the commands of ``tokens``.

        ``meanwhile`` is called between two looks. Raises ``TimedOut`` with what is still missing.
        """
        wanted: dict[tuple[str, int], int] = {}
        for token in tokens:
            key = (token.context, token.partition)
            wanted[key] = max(token.offset, wanted.get(key, -1))
        began = time.monotonic()
        self._pump()
        while missing := self._missing(wanted):
            waited = time.monotonic() - began
            if waited > timeout:
                (context, partition), offset = next(iter(missing.items()))
                raise TimedOut(
                    f"the view of {context!r} did not reach command {offset} of partition "
                    f"{partition} within {timeout:g} s; is its projector running?"
                )
            meanwhile()
            self._pump()
            time.sleep(min(max(waited / 20, SHORTEST_LOOK_SECONDS), LONGEST_LOOK_SECONDS))

    def _missing(self, wanted: dict[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        reached = {context: self.reached(context) for context in {c for c, _ in wanted}}
        return {
            (context, partition): offset
            for (context, partition), offset in wanted.items()
            if reached[context].get(partition, -1) < offset
        }
