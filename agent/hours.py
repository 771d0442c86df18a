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
    """The first entry whose time it is; one that ends before it begins goes past midnight.

    One that begins when it ends holds all day.
    """
    minute = f"{now:%H:%M}"
    return next((one for one in hours if _holds(one, minute)), None)


def _holds(one: Hours, minute: str) -> bool:
    if one.begin < one.end:
        return one.begin <= minute < one.end
    return minute >= one.begin or minute < one.end
