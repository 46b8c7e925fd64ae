"""Plain books, in which the reference models keep their streams.

The models implement the rules a second time, from commands and replies alone: they use nothing of
the rules, and check bounds and dates themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from labkit.messages import Document


class Books(dict[str, Any]):
    """The fields of a view's document as items, and the open amounts by id.

    Books are immutable: ``book`` returns new ones. A stream may have thousands of open amounts and
    of commands, so the amounts lie on many small shelves, and a new entry copies only one of them.
    """

    def __init__(
        self, shown: Document, shelves: tuple[dict[str, int], ...] = ({},) * 256, count: int = 0
    ) -> None:
        super().__init__(shown)
        self.shelves = shelves
        self.count = count

    def amount(self, id: str) -> int:
        """The open amount; 0 if there is none."""
        return self.shelves[hash(id) % 256].get(id, 0)

    def book(self, id: str = "", amount: int = 0, **changes: int) -> Books:
        """The next version: ``changes`` are added, and ``amount`` is open under ``id``."""
        shown = {**self, "version": self["version"] + 1}
        for field, change in changes.items():
            shown[field] += change
        if id == "":
            return Books(shown, self.shelves, self.count)
        place = hash(id) % 256
        shelf = {**self.shelves[place], id: amount}
        if amount == 0:
            del shelf[id]
        count = self.count + len(shelf) - len(self.shelves[place])
        return Books(shown, (*self.shelves[:place], shelf, *self.shelves[place + 1 :]), count)


def named(*ids: str) -> bool:
    return all(0 < len(id.encode()) <= 64 and "\0" not in id for id in ids)


def differences(kind: str, wanted: dict[str, Any], shown: dict[str, Any]) -> Iterator[str]:
    for key in sorted(wanted.keys() | shown.keys()):
        if wanted.get(key) != shown.get(key):
            yield f"{kind} {key!r}: the model says {wanted.get(key)}, the view {shown.get(key)}"
