"""Fill a log for an experiment, by a real handler on the fastest installed client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from labkit.errors import TimedOut
from labkit.experiments.processes import on_fast_client
from labkit.lab import Lab
from labkit.messages import Command, Envelope, encode
from labkit.service import Service
from labkit.write.handler import Handler

NEVER = 10**9
FILL_SECONDS = 60.0
#: Commands that are sent before they are handled.
CHUNK = 20_000


def handler_of(
    service: Service, lab: Lab, through: Lab, snapshot_every: int, **options: Any
) -> Handler:
    """A handler of the run ``lab``, outside its workers, on the client of ``through``."""
    group = lab.of.group("handler", service.name)
    commands, events = (lab.topic_name(f"{service.name}.{kind}") for kind in ("commands", "events"))
    log = through.broker.log(commands, events, group, f"{group}-0")
    return Handler(service, log, lab.store, snapshot_every=snapshot_every, **options)


def fill(
    service: Service,
    lab: Lab,
    commands: Iterator[Command],
    total: int,
    progress: Callable[[int], None] = lambda _: None,
    *,
    snapshot_every: int = NEVER,
    ids: str = "c",
    save: bool = True,
    batch_size: int = 4_000,
) -> None:
    """Send the first ``total`` commands and handle them; ``save``: also save the states.

    ``ids`` is the prefix of the command ids. Raises ``TimedOut`` if commands are not delivered.
    """
    with on_fast_client(lab) as through:
        handler = handler_of(
            service,
            lab,
            through,
            snapshot_every,
            batch_size=batch_size,
            flush_streams=CHUNK if save else NEVER,
            flush_seconds=NEVER,
        )
        sender = through.broker.sender()
        topic = lab.topic_name(f"{service.name}.commands")
        done = 0
        try:
            handler.join(lab.partitions)
            while done < total:
                sent = 0
                for command in islice(commands, min(CHUNK, total - done)):
                    value = encode(Envelope(f"{ids}{done + sent}", command))
                    sender.send(topic, command.stream.encode(), value)
                    sent += 1
                sender.flush(FILL_SECONDS)
                deadline = time.monotonic() + FILL_SECONDS
                while sent:
                    handled = len(handler.step(0.2))
                    sent, done = sent - handled, done + handled
                    progress(done)
                    if not handled and time.monotonic() > deadline:
                        raise TimedOut(
                            f"the handler of {service.name!r} got nothing for {FILL_SECONDS:g} s, "
                            f"and {sent} commands are missing; see `labkit status`"
                        )
            if save:
                handler.flush()
        finally:
            sender.close()
            handler.close()
