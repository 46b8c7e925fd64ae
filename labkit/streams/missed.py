"""Late records: a window notes them, and the pipeline writes them to a topic."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from labkit.ports.store import Document
from labkit.streams.sales import Late


class Missed:
    """The late records of one window, until the next step of the pipeline takes them."""

    def __init__(self, window: str) -> None:
        self.window, self._noted = window, list[Late]()

    def note(
        self,
        value: Any,
        key: Any,
        timestamp_ms: int,
        late_by_ms: int,
        start: int,
        end: int,
        store_name: str,
        topic: str,
        partition: int,
        offset: int,
    ) -> bool:
        """The callback of Quix; ``False`` suppresses its log line."""
        self._noted.append(Late(start, value["id"], value["product"], value["cents"], late_by_ms))
        return False

    def take(self, _: Any) -> list[Document]:
        """The late records since the last call, as documents."""
        noted, self._noted = self._noted, []
        return [
            {
                "id": f"{self.window}:{late.window}:{late.order}",
                "of": self.window,
                **structs.asdict(late),
            }
            for late in noted
        ]
