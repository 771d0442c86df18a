"""The watch over one worker: that it is ready in time, answers in time, and is there at all.

While it has no call, it is asked each PING_S whether it is there.

Time in which it could not run does not count: while it was ready and had no processor, as batch
work may; and while this process stood still too, as both do when the machine sleeps, or is paused.
That shows by a look that comes late: it counts for the time after which it was due, no more. There
are about LOOKS or more in a timeout, so a pause that none of them shows takes a tenth of it or so.
"""

import asyncio
from collections.abc import Callable, Mapping

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference import wire
from agent.inference.domains.flight import Flight
from agent.inference.domains.process import Process

PING_S = 5.0
LOOK_S = 1.0  # from one look to the next, at most
LOOKS = 10  # in a timeout, or more
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
        self._due_s = 0.0  # when the next look is
        self._ping_s = 0.0  # when the next ping is
        self._waited_s = 0.0  # for a processor, when that was last asked
        self._doubted = False
        self._timer: asyncio.TimerHandle | None = None

    async def first(self, hello: asyncio.Future[wire.Hello]) -> wire.Hello:
        """What it says once it is ready. Raises TimeoutError after `start_timeout_s`."""
        left_s = self._settings.start_timeout_s
        period_s = max(DOUBT_S, min(LOOK_S, left_s / LOOKS))
        while left_s > DOUBT_S:
            look_s = period_s if left_s - period_s > DOUBT_S else left_s
            try:
                async with asyncio.timeout(look_s):
                    return await asyncio.shield(hello)
            except TimeoutError:
                left_s -= max(0.0, look_s - self._without_processor())
        raise TimeoutError

    def begin(self) -> None:
        """It is ready: look from now on."""
        self._rest(self._clock.monotonic())
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
        return min(LOOK_S, PING_S, self._settings.call_timeout_s / LOOKS)

    def _look_in(self, delay_s: float) -> None:
        self._due_s = self._clock.monotonic() + delay_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """Whether the call whose turn it is takes too long; without one, whether it is there."""
        now_s = self._clock.monotonic()
        lost_s = self._without_processor() + max(0.0, now_s - self._due_s)
        if not (self._flights or self._pinged):
            if now_s >= self._ping_s:
                self._ping(now_s)
            self._look_in(self._period_s)
            return
        self._turn_s = min(now_s, self._turn_s + lost_s)
        left_s = self._turn_s + self._settings.call_timeout_s - now_s
        if left_s > 0:
            self._doubted = False
            self._look_in(min(self._period_s, left_s))
        elif not self._doubted:
            self._doubted = True
            self._look_in(DOUBT_S)
        else:
            self._kill(f"no answer within {self._settings.call_timeout_s} s (call_timeout_s)")

    def _ping(self, now_s: float) -> None:
        self._process.arena.trim()
        self._rest(now_s)
        self._pinged, self._turn_s = True, now_s
        self._process.send(wire.Batch(PING, "", []))

    def _rest(self, now_s: float) -> None:
        """It is not asked for a while."""
        self._ping_s = now_s + min(PING_S, self._settings.call_timeout_s)

    def _without_processor(self) -> float:
        """For how long it wanted one since this was asked last."""
        before_s, self._waited_s = self._waited_s, self._process.waited_s()
        return max(0.0, self._waited_s - before_s)
