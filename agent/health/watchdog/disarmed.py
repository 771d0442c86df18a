"""Whether the watchdog is disarmed: it judges and tells, and does nothing.

It ends by itself, so that nobody has to remember it; a restart of the agent ends it too.
"""

import logging

from agent.clock import Clock
from agent.health.conditions import Conditions

log = logging.getLogger("watchdog")
DISARMED_S = 3600.0
DISARMED_S_MAX = 86_400.0


class Disarmed:
    """Asked at each tick."""

    def __init__(self, conditions: Conditions, clock: Clock) -> None:
        self._conditions = conditions
        self._clock = clock
        self._until_s: float | None = None

    @property
    def left_s(self) -> float | None:
        """For how long yet; None: it is armed."""
        if self._until_s is None:
            return None
        left_s = self._until_s - self._clock.monotonic()
        if left_s <= 0:
            self.arm()
            return None
        return left_s

    def disarm(self, for_s: float) -> None:
        """From now on, for so long."""
        self._until_s = self._clock.monotonic() + for_s
        self._conditions.hold(
            "watchdog_disarmed",
            "watchdog",
            "warning",
            f"somebody disarmed the watchdog for {for_s / 60:.0f} min: nothing brings this agent "
            "back, nor this machine, should it hang",
            "holdfast watchdog arm; it is armed by itself after that time, and with each start",
        )

    def arm(self) -> None:
        """It is over."""
        if self._until_s is not None:
            log.warning("the watchdog is armed again")
        self._until_s = None
        self._conditions.clear("watchdog_disarmed", "watchdog")
