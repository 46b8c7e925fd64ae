"""A lab for learning, running and measuring CQRS with event sourcing.

The names below are all that a service and a notebook need. They are loaded when they are used, so
that rules and their tests need neither clients nor servers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.errors import Refused as Refused
    from labkit.lab import Lab as Lab
    from labkit.messages import Command as Command
    from labkit.messages import Event as Event
    from labkit.messages import State as State
    from labkit.ports.failpoints import Failpoint as Failpoint
    from labkit.read.freshness import LINEARIZABLE as LINEARIZABLE
    from labkit.read.freshness import Fresh as Fresh
    from labkit.read.freshness import Version as Version
    from labkit.read.sessions import Session as Session
    from labkit.service import KeyedView as KeyedView
    from labkit.service import Page as Page
    from labkit.service import Process as Process
    from labkit.service import Query as Query
    from labkit.service import Send as Send
    from labkit.service import Service as Service
    from labkit.service import View as View
    from labkit.testing import specification as specification

_HOMES = {
    "Command": "messages",
    "Event": "messages",
    "Failpoint": "ports.failpoints",
    "Fresh": "read.freshness",
    "KeyedView": "service",
    "LINEARIZABLE": "read.freshness",
    "Lab": "lab",
    "Page": "service",
    "Process": "service",
    "Query": "service",
    "Refused": "errors",
    "Send": "service",
    "Service": "service",
    "Session": "read.sessions",
    "State": "messages",
    "Version": "read.freshness",
    "View": "service",
    "specification": "testing",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"labkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
