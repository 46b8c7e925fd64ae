"""What the clients saw: each operation as invoked -> ok, failed or unknown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from labkit.errors import TimedOut, Unreachable, UsageError
from labkit.messages import Answer, Command, Commit, Envelope, Token
from labkit.ports.ids import new_id
from labkit.service import Operation
from labkit.write.bus import CommandBus, Sent


class Heard(NamedTuple):
    """A commit as a client heard it: what identifies it, and its answer."""

    token: Token
    id: str
    answer: Answer
    mark: tuple[int, int]

    @classmethod
    def of(cls, service: str, commit: Commit[Any]) -> Heard:
        """``mark``: when it was polled and decided, which differs between two attempts."""
        token = Token(service, commit.partition, commit.offset)
        return cls(token, commit.id, commit.answer, (commit.polled, commit.decided))


class History:
    """The operations of one bus's clients, in the order of their calls, and what the clients heard.

    Call :meth:`hear` often: the bus keeps only the newest answers. ``raw`` holds the places of the
    other acknowledged records of this client: bytes that are no command, and releases of parked
    streams.
    """

    def __init__(self, bus: CommandBus | None = None) -> None:
        self.operations: list[Operation] = []
        self.heard: list[Heard] = []
        self.raw: list[Token] = []
        self._bus = bus
        self._services: set[str] = set()
        self._sent: list[tuple[Operation, Sent]] = []
        self._open: dict[Token, Operation] = {}
        self._answers: dict[Token, Answer] = {}

    def __len__(self) -> int:
        return len(self.operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    @property
    def waiting(self) -> int:
        """Operations without an answer; a parked or scheduled one has a first answer."""
        unanswered = sum(operation.answer is None for operation in self._open.values())
        return len(self._sent) + unanswered

    @property
    def unfinished(self) -> int:
        """Operations without a final answer."""
        return len(self._sent) + len(self._open)

    def invoke(
        self, command: Command, *, id: str | None = None, expected_version: int | None = None
    ) -> Operation:
        """Record a call that the caller makes by other means."""
        operation = Operation(id or new_id(), command, expected_version)
        self.operations.append(operation)
        return operation

    def send(
        self,
        command: Command,
        *,
        id: str | None = None,
        expected_version: int | None = None,
        deliver_at: datetime | None = None,
    ) -> Operation:
        """Send a command; :meth:`settle` waits for its answer."""
        bus = self._with_bus()
        operation = self.invoke(command, id=id, expected_version=expected_version)

        def send() -> Sent:
            return bus.send(
                command,
                id=operation.id,
                expected_version=expected_version,
                deliver_at=deliver_at,
            )

        return self.send_by(send, operation)

    def send_by(self, send: Callable[[], Sent], operation: Operation) -> Operation:
        """Send an operation's command by other means than the bus, which hears its answer."""
        bus = self._with_bus()
        try:
            service = bus.service_of(operation.command).name
            bus.listen(service)
            self._services.add(service)
            sent = send()
        except UsageError as error:
            operation.failed(str(error))
            raise
        except Unreachable as error:
            operation.unknown(str(error))
        else:
            self._sent.append((operation, sent))
        return operation

    def listen(self, *services: str) -> None:
        """Hear the answers to other clients of these services, too."""
        for service in services:
            self._with_bus().listen(service)
            self._services.add(service)

    def acknowledge(self, timeout: float = 30.0) -> None:
        """Wait for the broker's acknowledgements; an operation without one is unknown."""
        sent, self._sent = self._sent, []
        for operation, delivery in sent:
            try:
                operation.token = delivery.token(timeout)
            except (TimedOut, Unreachable) as error:
                operation.unknown(str(error))
                continue
            self._open[operation.token] = operation
            if (answer := self._answers.get(operation.token)) is not None:
                self._take(operation.token, answer)

    def hear(self, timeout: float = 0.0) -> int:
        """Take the answers from the bus; wait up to ``timeout`` seconds for each service."""
        count = 0
        for service in sorted(self._services):
            for commit in self._with_bus().hear(service, timeout):
                heard = Heard.of(service, commit)
                self.heard.append(heard)
                known = self._answers.get(heard.token)
                if known is None or not known.final:  # a second delivery tells nothing new
                    self._answers[heard.token] = heard.answer
                    self._take(heard.token, heard.answer)
                count += 1
        return count

    def answer(self, token: Token) -> Answer | None:
        """The last answer heard to the command at this place, from any client."""
        return self._answers.get(token)

    def adopt(self, commands: Iterable[tuple[Token, Envelope[Any]]]) -> int:
        """Add the commands of other senders, processes for example, with the answers heard to them.

        ``commands`` as the commands topics hold them; this client's own are skipped. Returns the
        number of added operations.
        """
        own = {operation.token for operation in self.operations}
        count = 0
        for token, envelope in commands:
            if token in own:
                continue
            operation = self.invoke(
                envelope.body, id=envelope.id, expected_version=envelope.expected_version
            )
            operation.token = token
            if (answer := self._answers.get(token)) is None:
                operation.unknown("it was never heard of")
            else:
                operation.ok(answer)
            count += 1
        return count

    def read(self, service: str, commits: Iterable[Commit[Any]]) -> None:
        """Read the answers from the log, for operations with a ``token`` that nobody waits for.

        An operation without a commit is unknown.
        """
        told: dict[Token, Answer] = {}
        for commit in commits:
            known = told.get(token := Token(service, commit.partition, commit.offset))
            if known is None or not known.final:  # a second delivery tells nothing new
                told[token] = commit.answer
        for operation in self.operations:
            if operation.token is None or (answer := told.get(operation.token)) is None:
                operation.unknown("the log has no answer")
            else:
                operation.ok(answer)

    def _take(self, token: Token, answer: Answer) -> None:
        if (operation := self._open.get(token)) is not None:
            operation.ok(answer)
            if answer.final:
                del self._open[token]

    def settle(self, timeout: float = 30.0, *, final: bool = False) -> None:
        """Wait for the answers to all operations; one without an answer is unknown.

        ``final``: also wait for the final answers to parked and scheduled commands. It stops when
        nothing was heard for ``timeout`` seconds.
        """
        self.acknowledge(timeout)
        deadline = time.monotonic() + timeout
        while (self.unfinished if final else self.waiting) and time.monotonic() < deadline:
            if self.hear(min(timeout, 0.05)):
                deadline = time.monotonic() + timeout
        for token, operation in list(self._open.items()):
            if (answer := self._with_bus().heard(token)) is not None:  # another caller took it
                self._take(token, answer)
            elif operation.answer is None:
                operation.unknown(f"no answer within {timeout:g} s")

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
