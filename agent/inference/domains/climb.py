"""The way back to the accelerator: probes when ladder.py says so, and the return after enough."""

import asyncio
import logging
from typing import Protocol

from agent.clock import Clock
from agent.errors import HoldfastError
from agent.inference.domains.ladder import Ladder

CAUSE_CHARS = 200  # in the log
log = logging.getLogger("domain")


class Above(Protocol):
    """Whose models climb; twinned.py."""

    name: str

    async def try_out(self, names: list[str]) -> None:
        """Run these on the accelerator, in a process that is thrown away. Raises HoldfastError."""

    async def take_back(self, names: list[str]) -> None:
        """Serve these on the accelerator again, once they are proved there.

        Raises HoldfastError: then all is as before.
        """

    def climbed(self, names: list[str]) -> None:
        """A probe of these, or their return, went well or failed."""


class Climb:
    """Of one domain."""

    def __init__(self, above: Above, ladder: Ladder, clock: Clock) -> None:
        self._above = above
        self._ladder = ladder
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """The next probe may be sooner than it was."""
        self._woken.set()

    async def run(self) -> None:
        """Probe, and return, for ever."""
        while True:
            self._woken.clear()
            due_s, now_s = self._ladder.due_s(), self._clock.monotonic()
            try:
                async with asyncio.timeout(None if due_s is None else max(0.0, due_s - now_s)):
                    await self._woken.wait()
            except TimeoutError:
                if names := self._ladder.due(self._clock.monotonic()):  # timers may be early
                    await self._probe(names)

    async def _probe(self, names: list[str]) -> None:
        try:
            await self._above.try_out(names)
        except HoldfastError as error:
            if len(names) > 1:  # one of them may be too large, and the others not
                for name in names:
                    await self._probe([name])
                return
            self._failed(names, error)
        else:
            if may := self._ladder.passed(names, self._clock.monotonic()):
                await self._return(may)
        self._above.climbed(names)

    async def _return(self, names: list[str]) -> None:
        try:
            await self._above.take_back(names)
        except HoldfastError as error:
            self._failed(names, error)

    def _failed(self, names: list[str], error: HoldfastError) -> None:
        self._ladder.failed(names, str(error), self._clock.monotonic())
        what = ", ".join(names), str(error)[:CAUSE_CHARS]
        log.info("domain %s: %s on the CPU still: %s", self._above.name, *what)
