"""Tables of the topics, the collections and the processes of a lab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd


class Looked(Protocol):
    """The part of ``Lab`` that this module uses; only notebooks and programs may import it."""

    servers: Any

    def peek(self, name: str) -> tuple[list[dict[str, Any]], int]:
        """The committed records of a topic, and the number of hidden offsets."""

    def collection(self, name: str) -> pd.DataFrame:
        """The documents of a collection, one row each."""

    @property
    def first(self) -> str:
        """The name of the default service."""

    def lag(self, role: str, service: str) -> int:
        """The lag of a role, in offsets."""

    def workers(self) -> list[Any]:
        """The worker processes."""


def part(value: Any, *path: str) -> Any:
    """What a message has at this path; ``None`` where a topic holds something else there."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def commands(lab: Looked) -> pd.DataFrame:
    """The commands topic of orders, one row a record; what is no command is shown as it is."""
    import pandas as pd

    rows, _ = lab.peek("orders.commands")
    return pd.DataFrame(
        [
            {
                "partition": row["partition"],
                "offset": row["offset"],
                "command id": part(row["value"], "id"),
                "command": part(row["value"], "body", "type") or row["value"],
                "order": row["key"],
            }
            for row in rows
        ],
        columns=["partition", "offset", "command id", "command", "order"],
    )


def commits(lab: Looked, order_id: str | None = None) -> pd.DataFrame:
    """The events topic of orders, one row a record; ``order_id`` picks those of one order.

    What is no commit is shown as it is, under ``events``.
    """
    import pandas as pd

    rows, _ = lab.peek("orders.events")
    return pd.DataFrame(
        [
            {
                "partition": row["partition"],
                "offset": row["offset"],
                "order": row["key"],
                "command id": part(row["value"], "id"),
                "outcome": part(row["value"], "outcome"),
                "version": part(row["value"], "last"),
                "events": _events(row["value"]),
            }
            for row in rows
            if order_id in (None, row["key"])
        ],
        columns=["partition", "offset", "order", "command id", "outcome", "version", "events"],
    )


def _events(value: Any) -> Any:
    if part(value, "outcome") is None:
        return value
    return ", ".join(event["type"] for event in value.get("events", ())) or "none"


def running(lab: Looked) -> pd.DataFrame:
    """The servers and worker processes of a lab; in memory there are none."""
    import pandas as pd

    if lab.servers is None:
        rows = [("topics and collections", "twins of Kafka and MongoDB", "inside this process")]
    else:
        mongo = lab.servers.mongo_uri.rpartition("@")[2].removeprefix("mongodb://")
        rows = [
            ("Kafka", "keeps the topics", lab.servers.bootstrap),
            ("MongoDB", "keeps the collections", mongo.partition("/")[0]),
        ]
    work = {"handler": "decides on commands", "projector": "writes the views"}
    for worker in lab.workers():
        rows.append((f"{worker.service} {worker.role}", work[worker.role], f"process {worker.pid}"))
    return pd.DataFrame(rows, columns=["what runs", "what it does", "where"]).set_index("what runs")


class Look:
    """Shows the five places where one order leaves traces, and compares them with the last look.

    Call it with a name for the moment. ``history`` holds the numbers of every look, by that name.
    """

    def __init__(self, lab: Looked, order_id: str) -> None:
        self._lab = lab
        self._order = order_id
        self._before: tuple[str, dict[str, str]] | None = None
        self.history: dict[str, dict[str, int]] = {}

    def __call__(self, when: str) -> pd.DataFrame:
        """The table; a changed row is marked."""
        import pandas as pd

        now = self._places(when)
        columns = {when: now}
        if self._before is not None:
            name, before = self._before
            changed = {place: "◀ changed" if now[place] != before[place] else "" for place in now}
            columns = {f"before: {name}": before, f"now: {when}": now, "": changed}
        self._before = (when, now)
        return pd.DataFrame(columns)

    def _places(self, when: str) -> dict[str, str]:
        sent, _ = self._lab.peek("orders.commands")
        made, hidden = self._lab.peek("orders.events")
        state = self._document("orders.state.v1")
        view = self._document("orders.view.orders")
        seen = self.history[when] = {
            "commands": sum(row["key"] == self._order for row in sent),
            "unread": self._lab.lag("handler", "orders"),
            "commits": sum(row["key"] == self._order for row in made),
            "hidden": hidden,
            "state": int(state.get("version", 0)),
            "view": int(view.get("version", 0)),
        }
        locked = f" + {hidden} uncommitted" if hidden else ""
        shown = f", {view['status']}, {view['payment']}" if view else ""
        return {
            "topic orders.commands": _count(seen["commands"], "command"),
            "… not yet handled": str(seen["unread"] or "–"),
            "topic orders.events": _count(seen["commits"], "commit") + locked,
            "handler's saved state": f"version {seen['state']}" if state else "–",
            "view of the order": f"version {seen['view']}{shown}" if view else "–",
        }

    def _document(self, collection: str) -> dict[str, Any]:
        documents = self._lab.collection(collection)
        if documents.empty:
            return {}
        found = documents[documents["_id"] == self._order]
        return {} if found.empty else dict(found.iloc[0])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else "–"
