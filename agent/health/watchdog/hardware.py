"""Feeds the machine's own watchdog, where the agent is its owner: armed by the first healthy tick.

Limits: what cannot be armed is tried again every RETRY_S.
"""

from typing import Protocol

from agent.clock import Clock
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.health.watchdog.disarmed import Disarmed

RETRY_S = 60.0
# The longest way back that is no reset, by the unit: a stopped agent is not fed for 30 s
# (WatchdogSec), does not end for 40 (TimeoutStopSec), is begun after 2 (RestartSec), and has 18 to
# its first healthy tick. docs/appliance.md measured 75 s.
NEEDED_S = 90


class Device(Protocol):
    """host/wdt.py says what each does and raises."""

    @property
    def armed(self) -> bool: ...  # noqa: D102

    def arm(self, timeout_s: int) -> int: ...  # noqa: D102
    def feed(self) -> None: ...  # noqa: D102
    def disarm(self) -> bool: ...  # noqa: D102


class Hardware:
    """A feeder; `close` it where the agent ends in order, and nowhere else."""

    def __init__(
        self,
        device: Device,
        name: str,
        timeout_s: int,
        conditions: Conditions,
        clock: Clock,
        disarmed: Disarmed | None = None,
    ) -> None:
        """While `disarmed` says so, the device is left alone, where it can be."""
        self._device = device
        self._name = name
        self._timeout_s = timeout_s
        self._conditions = conditions
        self._clock = clock
        self._tried_s: float | None = None
        self._disarmed = disarmed
        self._stays = False  # its driver does not let go of it (nowayout)

    def feed(self) -> None:
        """All is well."""
        if self._disarmed and self._disarmed.left_s is not None and self._rests():
            return
        if not self._device.armed:
            self._arm()
            return
        try:
            self._device.feed()
        except HoldfastError as error:
            self._tell(error)
        else:
            self._conditions.clear("watchdog_unarmed", self._name)

    def close(self) -> None:
        """The agent ends because it was told to: nobody resets the machine for that."""
        if not self._device.disarm():
            self._conditions.hold(
                "watchdog_unarmed",
                self._name,
                "warning",
                f"{self._name} cannot be disarmed (nowayout): it resets the machine soon",
                "start the agent again before that",
            )

    def _rests(self) -> bool:
        """Whether it is disarmed; one that cannot be has to be fed on, or resets the machine."""
        if self._device.armed and not self._stays:
            self._stays = not self._device.disarm()
            self._tried_s = None
        return not self._stays

    def _arm(self) -> None:
        now_s = self._clock.monotonic()
        if self._tried_s is not None and now_s - self._tried_s < RETRY_S:
            return
        self._tried_s = now_s
        try:
            really_s = self._device.arm(self._timeout_s)
        except HoldfastError as error:
            self._tell(error)
            return
        self._conditions.clear("watchdog_unarmed", self._name)
        if really_s >= NEEDED_S:
            self._conditions.clear("watchdog_short", self._name)
            return
        self._conditions.hold(
            "watchdog_short",
            self._name,
            "warning",
            f"{self._name} waits for {really_s} s ({self._timeout_s} s were asked for), and the "
            f"agent may need {NEEDED_S} s to be back",
            "raise watchdog.timeout_s; where the driver cannot, set watchdog.owner: systemd",
        )

    def _tell(self, error: HoldfastError) -> None:
        self._conditions.hold("watchdog_unarmed", self._name, "warning", str(error), error.hint)
