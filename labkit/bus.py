"""The command bus: send a command, and find its answer in the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from labkit.errors import DecodeError, TimedOut, UsageError
from labkit.handlers import Context
from labkit.messages import Answer, Command, Commit, Envelope, Token, encode, new_id
from labkit.ports import Acknowledgement, Clock, Sender, Source, SystemClock

#: How many answers the bus keeps for those who ask late.
HEARD_WINDOW = 10_000


class Sent:
    """A command on its way."""

    def __init__(self, id: str, context: str, delivery: Acknowledgement) -> None:
        self.id = id
        self._context = context
        self._delivery = delivery

    def token(self, timeout: float = 30.0) -> Token:
        """Where the command stands, once the broker has acknowledged it."""
        return Token(self._context, *self._delivery.result(timeout))


class CommandBus:
    """Sends commands to their context's topic.

    There is no reply topic: every command leaves a commit in the log, and the bus tails the events
    topic for the one that carries the command's id. ``tail(context)`` opens that reader.
    """

    def __init__(
        self,
        routes: dict[type[Command], Context],
        topic: Callable[[str], str],
        sender: Sender,
        tail: Callable[[str], Source],
        clock: Clock | None = None,
        pump: Callable[[], None] | None = None,
    ) -> None:
        self._routes = routes
        self._topic = topic
        self._sender = sender
        self._tail = tail
        self._tails: dict[str, Source] = {}
        self._contexts = {context.name: context for context in routes.values()}
        self._heard: dict[Token, Answer] = {}
        self._clock = clock or SystemClock()
        self._pump = pump or (lambda: None)

    def context_of(self, command: Command) -> Context:
        """Who decides on this command; raises ``UsageError`` where nobody does."""
        try:
            return self._routes[type(command)]
        except KeyError:
            raise UsageError(f"no context takes {type(command).__name__}") from None

    def send(
        self,
        command: Command,
        *,
        id: str | None = None,
        expected_version: int | None = None,
        intended: int = 0,
    ) -> Sent:
        """Queue a command. It is safe only once its token is there.

        Send it again with the same ``id`` as often as you like: it takes effect once.
        ``intended`` is the instant an open-loop load wanted it sent (monotonic nanoseconds).
        """
        context = self.context_of(command)
        sent = self._clock.now()
        envelope = Envelope(id or new_id(), command, expected_version, intended or sent, sent)
        topic = self._topic(f"{context.name}.commands")
        delivery = self._sender.send(topic, command.stream.encode(), encode(envelope))
        return Sent(envelope.id, context.name, delivery)

    def execute(
        self,
        command: Command,
        *,
        id: str | None = None,
        expected_version: int | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """Send a command and wait for its answer.

        Raises ``Unreachable`` where the broker did not acknowledge it within ``timeout`` seconds,
        and ``TimedOut`` where no answer came within as many again. The command may still take
        effect, so send it again with the same id, which is safe.
        """
        self.listen(self.context_of(command).name)
        sent = self.send(command, id=id, expected_version=expected_version)
        return self.answer(sent.token(timeout), timeout)

    def listen(self, context: str) -> None:
        """Start to tail a context's events from here on."""
        if context not in self._tails:
            source = self._tail(context)
            for partition, end in source.ends().items():
                source.start(partition, end)
            self._tails[context] = source

    def hear(self, context: str, timeout: float) -> list[Commit[Any]]:
        """The commits that the tail brings next, waiting up to ``timeout`` seconds."""
        self._pump()
        found = []
        for record in self._tails[context].poll(5_000, timeout).records:
            try:
                commit = self._contexts[context].codec.decode_commit(record.value)
            except DecodeError:
                continue
            found.append(commit)
            self._heard[Token(context, commit.partition, commit.offset)] = commit.answer
        while len(self._heard) > HEARD_WINDOW:
            del self._heard[next(iter(self._heard))]
        return found

    def answer(self, token: Token, timeout: float = 30.0) -> Answer:
        """The answer to a command that was sent after ``listen``."""
        deadline = time.monotonic() + timeout
        while token not in self._heard:
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"no answer to {token} within {timeout:g} s; is a handler of "
                    f"{token.context!r} running? Sending it again with the same id is safe"
                )
            self.hear(token.context, 0.05)
        return self._heard[token]

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until every command sent so far is acknowledged."""
        self._sender.flush(timeout)

    def close(self) -> None:
        """Close the sender and the tails."""
        self._sender.close()
        for source in self._tails.values():
            source.close()
