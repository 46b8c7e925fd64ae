"""TODO."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from labkit.messages import Commit
from labkit.ports.store import Document
from labkit.read.unit_of_work import UnitOfWork

#: Collection -> its indexes, each a list of (field, direction).
Indexes = dict[str, list[list[tuple[str, int]]]]


#: Of the collection of parked streams.
PARKED_INDEX = [("partition", 1)]


def parked_in(projection: str) -> str:
    """The collection of the streams that a projection has parked."""
    return f"{projection}.parked"


class Projection(Protocol):
    """Pure: what a commit does to documents. ``streams`` names the collection that holds, under
    the stream's id, at least the stream's ``version``."""

    name: str
    streams: str

    @property
    def indexes(self) -> Indexes:
        """What its collections need."""

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """The (collection, id) that ``apply`` will ask for, besides the stream's own document."""

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        """Change the documents. The runner has checked the version and will note the new one."""


class Dispatch(Protocol):
    """Where a projection leaves commands in the transaction of its batch, to be sent after it."""

    collection: str

    def send(self, letters: list[Document]) -> None:
        """Send them, wait until they are acknowledged, take them out. Twice does no harm."""

    def leftovers(self, partition: int) -> list[Document]:
        """What a dead owner of a partition left behind."""
