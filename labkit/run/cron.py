"""Instants on a calendar: a crontab, in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from labkit.errors import UsageError

MINUTE_MS = 60_000
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class Cron:
    """The minutes that a crontab means: five fields, UTC.

    Args:
        name: of the setting, for the error.
        text: minute, hour, day of the month, month, weekday: ``0 3 * * *`` is 03:00 each day.

    Raises ``UsageError`` for what is no crontab, and for one whose instant never comes.
    """

    def __init__(self, name: str, text: str) -> None:
        from apscheduler.triggers.cron import CronTrigger

        wrong = f"{name} must be a crontab like '0 3 * * *' (03:00 UTC each day), got {text!r}"
        fields = text.split() if isinstance(text, str) else []
        if len(fields) != 5:
            raise UsageError(wrong)
        *others, weekday = fields
        if weekday != "*" and others[2] != "*":
            # Given both, cron takes the days that fit either, and APScheduler those that fit both.
            raise UsageError(f"{wrong}: * must be the day of the month, or the weekday")
        # For APScheduler the weekday 0 is Monday, for cron it is Sunday.
        days = re.sub(r"(?<![/#\d])[0-7](?!\d)", lambda d: WEEKDAYS[int(d[0]) % 7], weekday)
        try:
            self._trigger = CronTrigger.from_crontab(" ".join([*others, days]), timezone=UTC)
        except ValueError as error:
            raise UsageError(f"{wrong}: {error}") from None
        if self._trigger.get_next_fire_time(None, datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise UsageError(f"{wrong}: that day never comes")

    def next(self, after: int) -> int:
        """The first instant after ``after``; all instants are Unix milliseconds."""
        later = datetime.fromtimestamp((after + 1) / 1e3, UTC)
        found = self._trigger.get_next_fire_time(None, later)
        seconds: float = found.timestamp()
        return round(seconds * 1e3)

    def latest(self, after: int, until: int) -> int | None:
        """The last instant after ``after`` that is not after ``until``; ``None``: there is none."""
        low, high = self.next(after), until + 1
        if low > until:
            return None
        while high - low > MINUTE_MS:  # none is at ``high`` or later
            middle = (low + high) // 2
            if (found := self.next(middle - 1)) <= until:
                low = found
            else:
                high = middle
        return low
