"""The conditions of the budget: what is held back by an order, by the quota, by a wrong clock."""

import math
from datetime import timedelta

from agent.clock import Clock
from agent.config import Link as Settings
from agent.health.conditions import Conditions, Severity
from agent.health.names import Name
from agent.sync.budget.pace import Pace

SUBJECT = "link"


class Notices:
    """Holds and clears them as the pace has it."""

    def __init__(
        self, settings: Settings, pace: Pace, conditions: Conditions, clock: Clock
    ) -> None:
        self._hours = bool(settings.hours)
        self._pace = pace
        self._conditions = conditions
        self._clock = clock
        self._ends: dict[tuple[float, bool], str] = {}  # told once: a clock that drifts is no news

    def change(self, settings: Settings) -> None:
        """These hold from now on."""
        self._hours = bool(settings.hours)

    def tell(self) -> None:
        """As it is now."""
        orders, quota = self._pace.orders, self._pace.quota
        paused, limit = orders.paused_until, orders.limit_bytes_per_s
        known = {(end, self._pace.local is not None) for end in (paused, orders.limit_until) if end}
        self._ends = {key: text for key, text in self._ends.items() if key in known}
        self._hold(
            "sync_paused",
            None if paused is None else f"an operator paused sending {self._end(paused)}",
            "nothing is lost: records wait in the store; `holdfast sync resume` ends it",
        )
        self._hold(
            "sync_limited",
            None
            if limit is None
            else f"an operator's limit of {limit} bytes/s holds {self._end(orders.limit_until)}, "
            "in place of the configured rates",
            "`holdfast sync limit off` ends it",
        )
        all_ = "nothing but heartbeats and answers to orders is"
        held_back = {"backlog": "only live records are", "all": all_}
        self._hold(
            "quota_reached",
            quota.reached
            and f"of link.quota_bytes_per_day ({quota.bytes_per_day}) so much is used that "
            f"{held_back[quota.reached]} sent {self._day_ends()}",
            "nothing is lost: records wait in the store; raise the quota if they should not",
            "warning",
        )
        self._hold(
            "hours_not_followed",
            "nobody knows the time of day: link.rate_bytes_per_s_max holds in place of link.hours"
            if self._hours and self._pace.local is None
            else None,
            "set up chrony (with rtcsync) or systemd-timesyncd",
        )

    def _hold(
        self, name: Name, cause: str | None, remedy: str, severity: Severity = "note"
    ) -> None:
        if cause:
            self._conditions.hold(name, SUBJECT, severity, cause, remedy)
        else:
            self._conditions.clear(name, SUBJECT)

    def _end(self, until: float) -> str:
        if until == math.inf:
            return "until it is taken back"
        local = self._pace.local
        key = (until, local is not None)
        if key not in self._ends:
            left = timedelta(seconds=until - self._clock.monotonic())
            self._ends[key] = (
                f"until {local + left:%Y-%m-%d %H:%M}"
                if local
                else f"for {left.total_seconds():.0f} s from now on"
            )
        return self._ends[key]

    def _day_ends(self) -> str:
        if self._pace.quota.by_clock(self._pace.local):
            return "until midnight, local time"
        return "until it has counted for 24 h of running time, the clock not being trusted"
