"""Whether the workers of a run still have work."""

from __future__ import annotations

from labkit.lab import Lab


def behind(lab: Lab) -> bool:
    """Whether a handler, a relay or a projector has records left to read.

    They are asked in the order in which a message passes them: one that has nothing left receives
    nothing more.
    """
    roles = ("handler", "relay", "projector")
    return any(lab.lag(role, service) for role in roles for service in lab.instances_of(role))
