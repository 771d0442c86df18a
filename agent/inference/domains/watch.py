"""The watch over one worker: that it is ready in time, answers in time, and is there at all.

While it has no call, it is asked each PING_S whether it is there. Time in which it was ready to run
and had no processor, as batch work may, does not count.
"""

import asyncio
from collections.abc import Callable, Mapping

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference import wire
from agent.inference.domains.flight import Flight
from agent.inference.domains.process import Process

PING_S = 5.0
DOUBT_S = 0.1  # a second look before an end: it may be this process that stood still
PING = 0  # the id of a batch without calls


class Watch:
    """Looks again and again, from `begin` to `stop`."""

    def __init__(
        self,
        process: Process,
        flights: Mapping[int, Flight],
        settings: Settings,
        clock: Clock,
        kill: Callable[[str], None],
    ) -> None:
        """`flights` are those under way; `kill` ends the process, for the reason it gets."""
        self._process = process
        self._flights = flights
        self._settings = settings
        self._clock = clock
        self._kill = kill
        self._pinged = False  # and it has not answered
        self._turn_s = 0.0  # since when the oldest flight, or the ping, is at it
        self._waited_s = 0.0  # for a processor, when that was last asked
        self._doubted = False
        self._timer: asyncio.TimerHandle | None = None

    async def first(self, hello: asyncio.Future[wire.Hello]) -> wire.Hello:
        """What it says once it is ready. Raises TimeoutError after `start_timeout_s`."""
        left_s = self._settings.start_timeout_s
        while left_s > DOUBT_S:
            try:
                async with asyncio.timeout(left_s):
                    return await asyncio.shield(hello)
            except TimeoutError:
                left_s = self._without_processor()
        raise TimeoutError

    def begin(self) -> None:
        """It is ready: look from now on."""
        self._look_in(self._period_s)

    def stop(self) -> None:
        """It ends."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def apply(self, settings: Settings) -> None:
        """Other timeouts hold from now on."""
        self._settings = settings
        if self._timer:
            self._timer.cancel()
            self._look()

    def sent(self, now_s: float) -> None:
        """A batch goes to it."""
        if not self._flights:
            self._turn_s = now_s

    def answered(self, now_s: float) -> None:
        """It answered a batch, or a ping."""
        self._turn_s, self._doubted = now_s, False

    def ponged(self) -> None:
        """It answered a ping. Raises LookupError when there was none."""
        if not self._pinged:
            raise LookupError("it answers what it was not asked")
        self._pinged = False

    @property
    def _period_s(self) -> float:
        return min(PING_S, self._settings.call_timeout_s)

    def _look_in(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """Whether the call whose turn it is takes too long; without one, whether it is there."""
        now_s, waited_s = self._clock.monotonic(), self._without_processor()
        if self._flights or self._pinged:
            self._turn_s = min(now_s, self._turn_s + waited_s)
        else:
            self._process.arena.trim()
            self._ping()
        late_s = now_s - self._turn_s - self._settings.call_timeout_s
        if late_s < 0:
            self._look_in(min(self._period_s, -late_s))
        elif not self._doubted:
            self._doubted = True
            self._look_in(DOUBT_S)
        else:
            self._kill(f"no answer within {self._settings.call_timeout_s} s (call_timeout_s)")

    def _ping(self) -> None:
        self._pinged, self._turn_s = True, self._clock.monotonic()
        self._process.send(wire.Batch(PING, "", []))

    def _without_processor(self) -> float:
        """For how long it wanted one since this was asked last."""
        before_s, self._waited_s = self._waited_s, self._process.waited_s()
        return max(0.0, self._waited_s - before_s)
