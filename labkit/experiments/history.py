"""What the clients saw: each operation as invoked -> ok, failed or unknown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from labkit.bus import CommandBus, Sent
from labkit.errors import TimedOut, Unreachable, UsageError
from labkit.messages import Answer, Command, Token, new_id

Status = Literal["invoked", "ok", "failed", "unknown"]


class Operation(Struct, eq=False):
    """One call of one client. A retry is an operation of its own, with the same ``id``.

    ``token`` is there once the broker has acknowledged the command: from then on it must not be
    lost. ``invoked`` may have happened, as may ``unknown``; ``failed`` has not.
    """

    id: str
    command: Command
    expected_version: int | None = None
    status: Status = "invoked"
    token: Token | None = None
    answer: Answer | None = None
    why: str = ""

    def __str__(self) -> str:
        return f"{type(self.command).__name__} {self.id!r} to {self.command.stream!r}"

    def ok(self, answer: Answer) -> None:
        """The client got this answer."""
        self.status, self.answer = "ok", answer

    def failed(self, why: str) -> None:
        """It certainly has not happened: the command was never sent."""
        self.status, self.why = "failed", why

    def unknown(self, why: str) -> None:
        """No answer: it may have happened, or may still happen."""
        self.status, self.why = "unknown", why


class History:
    """The operations of the clients of one bus, in the order of their calls."""

    def __init__(self, bus: CommandBus | None = None) -> None:
        self.operations: list[Operation] = []
        self._bus = bus
        self._pending: list[tuple[Operation, Sent]] = []

    def __len__(self) -> int:
        return len(self.operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def invoke(
        self, command: Command, *, id: str | None = None, expected_version: int | None = None
    ) -> Operation:
        """Note a call that the caller makes by other means."""
        operation = Operation(id or new_id(), command, expected_version)
        self.operations.append(operation)
        return operation

    def send(
        self, command: Command, *, id: str | None = None, expected_version: int | None = None
    ) -> Operation:
        """Send a command through the bus; :meth:`settle` waits for its answer."""
        bus = self._with_bus()
        operation = self.invoke(command, id=id, expected_version=expected_version)
        try:
            bus.listen(bus.context_of(command).name)
            sent = bus.send(command, id=operation.id, expected_version=expected_version)
        except UsageError as error:
            operation.failed(str(error))
            raise
        except Unreachable as error:
            operation.unknown(str(error))
        else:
            self._pending.append((operation, sent))
        return operation

    def acknowledge(self, timeout: float = 30.0) -> None:
        """Wait until the broker has acknowledged what was sent; else it is unknown."""
        for operation, sent in self._pending:
            if operation.token is None:
                try:
                    operation.token = sent.token(timeout)
                except (TimedOut, Unreachable) as error:
                    operation.unknown(str(error))
        self._pending = [(o, sent) for o, sent in self._pending if o.token is not None]

    def settle(self, timeout: float = 30.0) -> None:
        """Wait for the answers to all that was sent; what has none in time is unknown."""
        self.acknowledge(timeout)
        pending, self._pending = self._pending, []
        for operation, _ in pending:
            assert operation.token is not None
            try:
                operation.ok(self._with_bus().answer(operation.token, timeout))
            except (TimedOut, Unreachable) as error:
                operation.unknown(str(error))

    def execute(
        self,
        command: Command,
        *,
        id: str | None = None,
        expected_version: int | None = None,
        timeout: float = 30.0,
    ) -> Operation:
        """Send one command and wait for its answer."""
        operation = self.send(command, id=id, expected_version=expected_version)
        self.settle(timeout)
        return operation

    def _with_bus(self) -> CommandBus:
        if self._bus is None:
            raise UsageError("this history has no bus; make it with History(lab.bus)")
        return self._bus
