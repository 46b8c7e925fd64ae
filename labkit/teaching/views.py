"""Steps of the notebook on projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from labkit.messages import Command
from labkit.ports.store import Writes
from labkit.read.rebuild import Progress
from labkit.services.orders import Orders, PlaceOrder
from labkit.teaching.looking import part
from labkit.teaching.stepping import project, stop_part

if TYPE_CHECKING:
    import pandas as pd

#: The fold of the orders' view as labkit ships it, whatever a notebook has deployed since.
plain = Orders.apply
#: The collections of the views of orders.
SHOWN = ("orders.view.orders", "orders.view.customers", "orders.view.months")


def kept(lab: Any) -> dict[str, int]:
    """The numbers of documents in the views of orders, and the position of their projector."""
    held = {name: len(lab.collection(name)) for name in SHOWN}
    at = lab.queries.checkpoints("orders").values()
    return held | {
        "checkpoints: offsets read": sum(checkpoint.position for checkpoint in at),
        "checkpoints: highest command": max(checkpoint.command for checkpoint in at),
    }


def deploy(fold: Callable[..., Any]) -> None:
    """Let the orders' view use this fold, in this process."""
    Orders.apply = fold  # type: ignore[method-assign]


def place(
    order_id: str, customer_id: str = "ada", product_id: str = "cd", pieces: int = 1
) -> PlaceOrder:
    """An order for 15.99."""
    return PlaceOrder(order_id, customer_id, "1997-01-31", pieces, 1599, product_id)


def events(lab: Any) -> list[dict[str, Any]]:
    """The events of all orders, as the topic holds them."""
    rows, _ = lab.peek("orders.events")
    return [event for row in rows for event in part(row["value"], "events") or ()]


def send(lab: Any, *commands: Command) -> None:
    """Send commands to orders, and step the handler until it has decided on all of them."""
    for command in commands:
        lab.bus.send(command)
    lab.bus.flush()
    while lab.lag("handler", "orders"):
        lab.handler.step(0.3)


def serve(lab: Any, *commands: Command) -> int:
    """``send`` and ``project``: afterwards the view shows the results."""
    send(lab, *commands)
    return project(lab)


def tell(lab: Any) -> None:
    """Step the notifier of orders until it has read the whole log and its outbox is empty."""
    while lab.lag("notifier", "orders") or not lab.collection("orders.notices.outbox").empty:
        lab.by_hand("notifier").step(0.3)


def hear(lab: Any, module: str) -> pd.DataFrame:
    """The inbox of a business module, after it has read every notice of orders."""
    ends = lab.topic("orders.notices").groupby("partition")["offset"].max() + 1
    with closing(lab.module(module, "orders")) as listener:
        while (
            sum(at.position for at in lab.store.checkpoints(f"{module}.checkpoints")) < ends.sum()
        ):
            listener.step(0.3)
    inbox: pd.DataFrame = lab.collection(f"{module}.inbox")
    return inbox


def forget(lab: Any) -> None:
    """Delete the checkpoints of the orders' notifier, and the stream versions that it knows."""
    stop_part(lab, "notifier")
    name = "orders.notices.checkpoints"
    ids = [checkpoint.id for checkpoint in lab.store.checkpoints(name)]
    lab.store.advance(name, [], Writes(deletes={name: ids}))
    lab.store.discard(["orders.notices.seen"])


def add(lab: Any, name: str, number: int) -> None:
    """Add to a number in a document, in a separate write."""
    lab.store.index("naive", [("_id", 1)])  # a collection is created outside transactions
    document = {"_id": name, "number": got(lab, name) + number}
    writes = Writes()
    kind = writes.replaces if lab.store.load("naive", [name]) else writes.inserts
    kind["naive"] = [document]
    lab.store.advance("naive.checkpoints", [], writes)


def got(lab: Any, name: str) -> int:
    """The number that ``add`` maintains."""
    found = lab.store.load("naive", [name]).get(name)
    return int(found["number"]) if found else 0


def estimates(progress: Sequence[Progress], rows: int = 6) -> pd.DataFrame:
    """The progress of a rebuild and its estimated duration, at some of its steps."""
    import pandas as pd

    columns = ["offsets read", "of", "seconds so far", "all of it, as estimated (s)"]
    went = [
        (at.done, at.total, at.seconds, at.seconds + at.remaining)
        for at in progress
        if at.remaining is not None
    ]
    return pd.DataFrame(went, columns=columns)[:: max(1, -(-len(went) // rows))].round(1)
