"""Whether the time of day can be trusted: a condition while not, bindings in the store while so."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from agent.clock import Clock
from agent.errors import StoreError
from agent.health.conditions import Conditions

LOOK_S = 10.0


class Clockwork:
    """Watches the kernel's clock."""

    def __init__(
        self, bind: Callable[[], Awaitable[None]], conditions: Conditions, clock: Clock
    ) -> None:
        """`bind` notes what UTC the monotonic clock stands for."""
        self._bind = bind
        self._conditions = conditions
        self._clock = clock

    async def run(self) -> None:
        """Look every LOOK_S, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look now. It is a note, for no decision depends on the time of day."""
        if not self._clock.synchronised():
            self._conditions.hold(
                "clock_untrusted",
                "clock",
                "note",
                "the kernel says that its clock is not synchronised; times are labels",
                "set up chrony (with rtcsync) or systemd-timesyncd; nothing is lost: records are"
                " dated once the clock is trusted",
            )
            return
        self._conditions.clear("clock_untrusted", "clock")
        with suppress(StoreError):  # the parts that need the store say so
            await self._bind()
