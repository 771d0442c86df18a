"""The time of day at the site, and which byte rate it asks for."""

from collections.abc import Sequence
from datetime import datetime, time, timedelta, tzinfo

from agent.clock import Clock
from agent.config import Hours


def local_time(clock: Clock, zone: tzinfo | None = None) -> datetime | None:
    """In `zone`, or the machine's. None while the clock is not known to be true (promise 6)."""
    if not clock.synchronised():
        return None
    return datetime.fromtimestamp(clock.wall(), zone)


def next_day_s(now: datetime) -> float:
    """Seconds until the local day ends: 23 to 25 hours after it began, by the season."""
    ends = datetime.combine(now.date() + timedelta(days=1), time(), now.tzinfo)
    return ends.timestamp() - now.timestamp()


def in_force(hours: Sequence[Hours], now: datetime) -> Hours | None:
    """The first entry whose time it is."""
    return next((one for one in hours if holds_at(one.begin, one.end, now)), None)


def holds_at(begin: str, end: str, now: datetime) -> bool:
    """Whether it is between these times of day; what ends before it begins goes past midnight.

    What begins when it ends holds all day.
    """
    minute = f"{now:%H:%M}"
    if begin < end:
        return begin <= minute < end
    return minute >= begin or minute < end
