"""What the clients themselves can do: a rate beyond that would measure them, and not an arm."""

from __future__ import annotations

from labkit.errors import UsageError
from labkit.experiments.cost import subject
from labkit.experiments.cost.arm import Reply
from labkit.experiments.cost.clients import CLIENTS
from labkit.experiments.cost.writers import Writers
from labkit.messages import Answer, Command, Document

#: The greatest share of what the clients can offer that they are asked for.
OFFERED = 0.5
ABILITY_SECONDS = 0.3


class _Void:
    """An arm that answers at once."""

    conflicts = 0

    def send(self, command: Command, id: str) -> Reply:
        return Reply(Answer("refused", 0))

    def read(self, stream: str) -> Document | None:
        return None

    def documents(self) -> list[Document]:
        return []

    def states(self) -> list[Document]:
        return []

    def close(self) -> None: ...


def ability() -> float:
    """Commands a second that the threads of one client offer to an arm that does nothing."""
    writers = Writers(_Void(), "dry", 0)
    seen = writers.closed(subject.of("cost").commands, 4, ABILITY_SECONDS)
    return len(seen.writes) / seen.seconds


def check_rate(rate: float) -> None:
    """Raises ``UsageError`` for a rate that the clients cannot offer on this machine."""
    most = OFFERED * ability() * CLIENTS
    if rate > most:
        raise UsageError(
            f"--rate {rate:g} is more than the clients can offer on this machine, about "
            f"{most:,.0f} commands a second; give a lower one"
        )
