"""What an arm is to its clients: one try of a command, and a read. Nothing else is asked of it."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from labkit.messages import Answer, Command, Document, Token

#: The arms, and those that claim that nothing is lost, doubled or made up.
ARMS = ("crud", "naive", "view", "outbox", "labkit")
RIGHT = ("crud", "view", "outbox", "labkit")


class Followed(Struct, frozen=True):
    """A command that a process sent in the transaction of another one, and its answer."""

    id: str
    command: Command
    answer: Answer


class Reply(Struct, frozen=True):
    """What the client is told; ``token`` if the command stands in a log."""

    answer: Answer
    token: Token | None = None
    followed: tuple[Followed, ...] = ()


class Arm(Protocol):
    """Safe to be used by many threads at once."""

    @property
    def conflicts(self) -> int:
        """Tries that met another writer, and were made again."""

    def send(self, command: Command, id: str) -> Reply:
        """One try. Raises ``LabkitError`` where the client does not know what became of it; it may
        send the command again, with the same id."""

    def read(self, stream: str) -> Document | None:
        """The document of a stream as any reader gets it, without waiting for anything."""

    def documents(self) -> list[Document]:
        """All documents that readers get."""

    def states(self) -> list[Document]:
        """All states that the rules decide on."""

    def close(self) -> None: ...
