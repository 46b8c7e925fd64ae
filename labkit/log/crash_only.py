"""One way out of any failure: a part whose step raised is never stepped again.

After an exception nobody knows what holds: a cache may be ahead of the log or behind it. Nothing is
repaired in place; the part is closed, and a new one rejoins and replays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from labkit.errors import Fenced


class CrashOnly:
    """What handler and projector have in common."""

    broken = False

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Around a step: raises ``Fenced`` if an earlier one raised."""
        if self.broken:
            raise Fenced(f"an earlier step of this {type(self).__name__} failed; make a new one")
        self.broken = True
        yield
        self.broken = False
