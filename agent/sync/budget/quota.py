"""What may be sent in a day, and when the day begins anew.

By a trusted clock it is the local day. Without one it is 24 h of running time, so that a machine
that never knows the time is neither without a quota nor without a link. A day never begins anew
because the clock was set back: what a wrong clock began lasts 24 h at most.
The message that reaches a bound still goes, so that a day takes at most one message more.
"""

from datetime import datetime
from typing import Literal

from agent.hours import next_day_s
from agent.store.linkstate import Day

DAY_S = 86_400.0
TENTH = 10  # the last tenth is for live records alone

Reached = Literal["", "backlog", "all"]  # all: what lives, too


class Quota:
    """Counts a day's bytes; without `bytes_per_day` it counts, and bounds nothing."""

    def __init__(self, bytes_per_day: int | None, now: float) -> None:
        self.bytes_per_day = bytes_per_day
        self.day = Day(now)

    def look(self, local: datetime | None, now: float) -> None:
        """What the clocks say: the day may be over. `local` is None while nobody knows the time."""
        self.day = today(self.day, local, now)

    def spend(self, size_bytes: int) -> None:
        """So many bytes go out."""
        day = self.day
        self.day = Day(day.begun, day.date, day.used_bytes + size_bytes)

    @property
    def reached(self) -> Reached:
        """What it holds back now."""
        left = self.left_bytes
        if left is None or self.bytes_per_day is None or left > self.bytes_per_day // TENTH:
            return ""
        return "backlog" if left else "all"

    @property
    def left_bytes(self) -> int | None:
        """What may still be sent today; None: there is no bound."""
        if self.bytes_per_day is None:
            return None
        return max(0, self.bytes_per_day - self.day.used_bytes)

    def by_clock(self, local: datetime | None) -> bool:
        """Whether its day ends with the local one; else when it has lasted 24 h."""
        return local is not None and self.day.date == local.date().isoformat()

    def begins_anew_s(self, local: datetime | None, now: float) -> float:
        """Seconds until then."""
        if local and self.by_clock(local):
            return next_day_s(local)
        return max(0.0, self.day.begun + DAY_S - now)


def today(day: Day, local: datetime | None, now: float) -> Day:
    """The day that counts at `now` (monotonic): `day` itself, or one in which nothing is used."""
    date = local.date().isoformat() if local else ""
    lasted = now - day.begun >= DAY_S
    if not date:
        return Day(now) if lasted else day
    if day.date == date:
        return day
    if not day.date and not lasted:  # the clock is known by now: what was sent counts for today
        return Day(day.begun, date, day.used_bytes)
    return Day(now, date) if lasted or date > day.date else day
