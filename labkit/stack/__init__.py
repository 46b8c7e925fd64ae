"""The Kafka and MongoDB servers of a lab: native, external, or in containers."""

from labkit.stack.servers import (
    KINDS,
    Servers,
    borrow,
    borrowed,
    check,
    down,
    give_back,
    given,
    running,
    status,
    tight,
    up,
    users,
)
from labkit.stack.state import home

__all__ = [
    "KINDS",
    "Servers",
    "borrow",
    "borrowed",
    "check",
    "down",
    "give_back",
    "given",
    "home",
    "running",
    "status",
    "tight",
    "up",
    "users",
]
