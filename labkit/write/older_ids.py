"""The command ids of a long stream that do not fit into its document any more.

Each has a document of its own, which is saved with the stream and looked up when it is asked for.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from labkit.messages import Answer
from labkit.ports.store import Document

#: The answer that a command id was given, and the digest of the command.
Known = tuple[Answer, int]


class OlderIds(Struct):
    """Of one stream, as far as they are in memory.

    ``left`` are to be saved; ``saving`` are in the store, or on their way there; ``back`` are in
    the stream's document again, so that their own documents are to go.
    """

    left: dict[str, Known] = msgspec.field(default_factory=dict)
    saving: dict[str, Known] = msgspec.field(default_factory=dict)
    back: set[str] = msgspec.field(default_factory=set)

    def copy(self) -> OlderIds:
        """A copy that may be changed without touching this one."""
        return OlderIds(dict(self.left), dict(self.saving), set(self.back))

    def known(self, id: str) -> Known | None:
        """What is known of an id, as far as it is in memory."""
        return self.left.get(id) or self.saving.get(id)

    def add(self, id: str, known: Known) -> None:
        """An id that does not fit any more."""
        if id in self.back:  # its own document is still there
            self.back.remove(id)
            self.saving[id] = known
        else:
            self.left[id] = known

    def give_back(self, id: str) -> None:
        """An id is in the stream's document again."""
        if self.left.pop(id, None) is None and self.saving.pop(id, None) is not None:
            self.back.add(id)

    def save(self) -> tuple[dict[str, Known], set[str]]:
        """The ids that get a document of their own now, and those whose document goes."""
        self.saving, self.left, back, self.back = self.left, {}, self.back, set()
        return self.saving, back


def seen_id(stream: str, id: str) -> str:
    """The id of the document of a command id; both may hold anything."""
    return f"{len(stream)}:{stream}:{id}"


def seen_document(stream: str, id: str, known: Known) -> Document:
    """What is saved of a command id."""
    answer, digest = known
    return {
        "_id": seen_id(stream, id),
        "outcome": answer.outcome,
        "version": answer.version,
        "reason": answer.reason,
        "digest": digest,
    }


def seen_known(document: Document) -> Known:
    """What :func:`seen_document` saved."""
    answer = Answer(document["outcome"], document["version"], document["reason"])
    return answer, document["digest"]
