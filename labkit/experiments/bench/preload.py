"""Fill a commands topic before the workers start: what to send, and where each command landed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from random import Random

from msgspec import Struct

from labkit.experiments.bench.filling import CHUNK, FILL_SECONDS
from labkit.lab import Lab
from labkit.messages import Command, Envelope, Token, encode
from labkit.ports.broker import Acknowledgement

#: The share of the commands that is sent a second time with the same id: a handler that forgets
#: ids is found out.
REPEATED = 0.01


class PreloadedCommand(Struct, frozen=True):
    """One command in the topic; ``size`` is its encoded size in bytes."""

    id: str
    command: Command
    token: Token
    size: int


def preload(
    lab: Lab, service: str, commands: Iterable[tuple[str, Command]]
) -> Iterator[PreloadedCommand]:
    """Send commands with their ids; yield each after the broker has acknowledged it."""
    topic = lab.topic_name(f"{service}.commands")
    sender = lab.log_broker.sender()
    under_way: list[tuple[str, Command, int, Acknowledgement]] = []

    def acknowledged() -> Iterator[PreloadedCommand]:
        sender.flush(FILL_SECONDS)
        for id, command, size, acknowledgement in under_way:
            token = Token(service, *acknowledgement.result(FILL_SECONDS))
            yield PreloadedCommand(id, command, token, size)
        under_way.clear()

    try:
        for id, command in commands:
            now = time.monotonic_ns()
            value = encode(Envelope(id, command, intended=now, sent=now))
            sent = sender.send(topic, command.stream.encode(), value)
            under_way.append((id, command, len(value), sent))
            if len(under_way) == CHUNK:
                yield from acknowledged()
        yield from acknowledged()
    finally:
        sender.close()


def repeated(commands: Iterable[Command], count: int, seed: int) -> Iterator[tuple[str, Command]]:
    """``count`` commands with their ids; a share of ``REPEATED`` is sent twice."""
    rng, made = Random(seed), 0
    for command in commands:
        calls = [(f"c{made}", command)] * (2 if rng.random() < REPEATED else 1)
        for call in calls[: count - made]:
            made += 1
            yield call
        if made == count:
            return
