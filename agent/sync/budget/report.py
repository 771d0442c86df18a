"""The link, its budget and the backlog as one document: `GET /api/v1/sync`, and `link` in status.

What is not known is null.
"""

import math
from collections.abc import Awaitable, Callable, Sequence

from agent.clock import Clock
from agent.errors import StoreError
from agent.shown import Backlog, LinkShown, Quota, Rate, Sync
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress, Rates, Waiting, eta_s


class Report:
    """Asks the parts; keeps the backlog as it was seen last."""

    def __init__(
        self,
        pace: Pace,
        progress: Progress,
        waiting: Callable[[], Awaitable[Sequence[Waiting]]],
        link: Callable[[], LinkShown],
        clock: Clock,
    ) -> None:
        """`waiting` is the backlog, `link` what the link says of itself."""
        self._pace = pace
        self._progress = progress
        self._ask_waiting = waiting
        self._link = link
        self._clock = clock
        self._waiting: Sequence[Waiting] | None = None

    @property
    def backlog_bytes(self) -> int | None:
        """As it was seen last; None: it could not be."""
        return None if self._waiting is None else sum(one.bytes for one in self._waiting)

    async def look(self) -> None:
        """See the backlog. Raises StoreError, and then it is not known."""
        try:
            self._waiting = await self._ask_waiting()
        except StoreError:
            self._waiting = None
            raise

    async def state(self) -> Sync:
        """The document, of this moment. Raises StoreError."""
        await self.look()
        return self.last()

    def last(self) -> Sync:
        """The document, with the backlog as it was seen last; asks nobody, raises nothing."""
        now, link, pace = self._clock.monotonic(), self._link(), self._pace
        since_s, acked = link["connected_s"], self._progress.acked_at
        rates = self._progress.rates(None if since_s is None else now - since_s)
        return {
            **link,
            "last_ack_age_s": None if acked is None else round(now - acked, 1),
            "paused": pace.orders.paused_until is not None,
            "paused_for_s": _left_s(pace.orders.paused_until, now),
            "rate": _rate(rates),
            "limit": {
                "rate_bytes_per_s_max": pace.rate.bytes_per_s_max,
                "why": pace.rate.why,
                "for_s": _left_s(pace.rate.until, now),
            },
            "backlog": self._backlog(),
            "eta_s": self._eta_s(rates),
            "quota": self._quota(now),
            "heartbeat_s": round(pace.heartbeat_s, 1),
            "sent_bytes": pace.sent_bytes,
            "acknowledged_records": self._progress.acknowledged_records,
        }

    def _backlog(self) -> Backlog | None:
        if self._waiting is None:
            return None
        held = [one for one in self._waiting if one.records]
        held.sort(key=lambda one: (-one.priority, one.name))
        return {
            "records": sum(one.records for one in held),
            "bytes": sum(one.bytes for one in held),
            "streams": [
                {
                    "epoch": one.name[0],
                    "name": one.name[1],
                    "priority": one.priority,
                    "records": one.records,
                    "bytes": one.bytes,
                    "oldest_age_s": one.oldest_age_s,
                }
                for one in held
            ],
        }

    def _eta_s(self, rates: Rates) -> float | None:
        """None, too, while sending is paused: what was measured before says nothing."""
        size_bytes = self.backlog_bytes
        if size_bytes is None or self._pace.orders.paused_until is not None:
            return None
        left_s = eta_s(size_bytes, rates)
        return None if left_s is None else round(left_s, 1)

    def _quota(self, now: float) -> Quota | None:
        quota = self._pace.quota
        if quota.bytes_per_day is None:
            return None
        return {
            "bytes_per_day": quota.bytes_per_day,
            "used_bytes": quota.day.used_bytes,
            "left_bytes": quota.left_bytes,
            "reached": quota.reached,
            "begins_anew_s": round(quota.begins_anew_s(self._pace.local, now)),
        }


def _rate(rates: Rates) -> Rate:
    return {
        "sent_bytes_per_s": rates.sent_bytes_per_s,
        "acknowledged_records_per_s": rates.acknowledged_records_per_s,
        "acknowledged_bytes_per_s": rates.acknowledged_bytes_per_s,
        "arriving_bytes_per_s": rates.arriving_bytes_per_s,
    }


def _left_s(until: float | None, now: float) -> float | None:
    return None if until in (None, math.inf) else round(until - now, 1)
