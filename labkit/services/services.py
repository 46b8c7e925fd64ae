"""The bounded services: the messages of each, how it decides, and how it folds.

The table at the end says which service decides on which command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args

from msgspec import Struct

from labkit.errors import UsageError
from labkit.messages import Codec, Command, Decisions, Event, Upcasts
from labkit.services import bank, catalog, inventory, orders


class Context:
    """One bounded service: its messages, its decisions, its fold.

    ``fold`` is the schema version of the state; raising it makes handlers fold anew from the log.
    """

    def __init__(
        self,
        name: str,
        commands: Any,
        events: Any,
        state: type[Struct],
        decide: Decisions,
        evolve: Callable[[Any, Event], Any],
        fold: int = 1,
        upcasts: Upcasts | None = None,
    ) -> None:
        if set(get_args(commands)) != set(decide):
            odd = sorted(c.__name__ for c in set(get_args(commands)) ^ set(decide))
            raise UsageError(f"service {name!r}: not exactly one decision for {', '.join(odd)}")
        self.name = name
        self.decide: Decisions = decide
        self.evolve = evolve
        self.state = state
        self.codec = Codec(commands, events, upcasts)
        self.fold = fold
        self.states = f"{name}.state.v{fold}"
        self.snapshots = f"{name}.snapshots"
        self.checkpoints = f"{name}.checkpoints"

    def checkpoint(self, partition: int) -> str:
        """The id of the handler's checkpoint."""
        return f"{self.states}:{partition}"


# --- The routing table: which service decides on which command, and how.

CONTEXTS: dict[str, Context] = {
    service.name: service
    for service in (
        Context(
            "orders",
            commands=orders.COMMANDS,
            events=orders.EVENTS,
            state=orders.Order,
            decide=orders.DECIDE,
            evolve=orders.evolve,
            upcasts=orders.UPCASTS,
        ),
        Context(
            "catalog",
            commands=catalog.COMMANDS,
            events=catalog.EVENTS,
            state=catalog.Entry,
            decide=catalog.DECIDE,
            evolve=catalog.evolve,
        ),
        Context(
            "inventory",
            commands=inventory.COMMANDS,
            events=inventory.EVENTS,
            state=inventory.Stock,
            decide=inventory.DECIDE,
            evolve=inventory.evolve,
        ),
        Context(
            "bank",
            commands=bank.COMMANDS,
            events=bank.EVENTS,
            state=bank.Account,
            decide=bank.DECIDE,
            evolve=bank.evolve,
        ),
    )
}


def route(services: Iterable[Context]) -> dict[type[Command], Context]:
    """Which service a command goes to; a command that two of them claim is refused at start."""
    routes: dict[type[Command], Context] = {}
    for service in services:
        for command in service.decide:
            if command in routes:
                raise UsageError(
                    f"{command.__name__} is claimed by {routes[command].name!r} "
                    f"and by {service.name!r}; leave it to one of them"
                )
            routes[command] = service
    return routes


ROUTES = route(CONTEXTS.values())
