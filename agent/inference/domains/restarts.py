"""How long a domain waits before it starts a process in place of one that ended."""

import asyncio
from collections import deque

from agent.clock import Clock
from agent.config import Domain as Settings


class Restarts:
    """Backoff, doubling until a call succeeds; quarantine for a domain that dies again and again.

    In quarantine nothing is started for `quarantine_s`, whoever died.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.count = 0
        self.deaths = 0  # that nobody had asked for
        self.quarantined_until_s = 0.0
        self._clock = clock
        self._pause_s = 0.0
        self._deaths: deque[float] = deque()
        self._pardoned = asyncio.Event()  # another one after each pardon

    @property
    def quarantined(self) -> bool:
        """Whether it rests now."""
        return self.rest_s > 0

    @property
    def rest_s(self) -> float:
        """What is left of the quarantine."""
        return max(0.0, self.quarantined_until_s - self._clock.monotonic())

    def quarantine(self, rest_s: float) -> None:
        """It was in quarantine before this process, and is for so long yet."""
        rest_s = min(rest_s, self.settings.quarantine_s)
        self.quarantined_until_s = self._clock.monotonic() + rest_s

    def died(self) -> float:
        """A process ended that should not have; seconds until the next may be started."""
        self.deaths += 1
        if self.quarantined:
            return self.rest_s
        now_s, rules = self._clock.monotonic(), self.settings
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - rules.quarantine_window_s:
            self._deaths.popleft()
        if len(self._deaths) >= rules.quarantine_after:
            self._deaths.clear()
            self._pause_s = 0.0
            self.quarantined_until_s = now_s + rules.quarantine_s
            return rules.quarantine_s
        return self.later()

    def later(self) -> float:
        """Nothing could be started; seconds until that is tried again. No process died of it."""
        rules = self.settings
        self._pause_s = min(max(rules.restart_s_min, self._pause_s * 2), rules.restart_s_max)
        return max(self._pause_s, self.rest_s)

    async def rest(self, pause_s: float) -> None:
        """Wait for so long, and for a quarantine that began meanwhile; or until a pardon."""
        pardoned = self._pardoned
        while pause_s > 0 and not pardoned.is_set():
            try:
                async with asyncio.timeout(pause_s):
                    await pardoned.wait()
            except TimeoutError:
                pause_s = self.rest_s

    def succeeded(self) -> None:
        """A call had its answer: the next death is a first one again."""
        self._pause_s = 0.0

    def pardon(self) -> None:
        """Somebody asked for a start: what was is forgotten, and what waits is started now."""
        self._deaths.clear()
        self._pause_s = self.quarantined_until_s = 0.0
        self._pardoned.set()
        self._pardoned = asyncio.Event()
