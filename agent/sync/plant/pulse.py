"""When to look again: at once where something is told, else after a while."""

import asyncio

from agent.changes import Changes

AGAIN_S = 1.0  # between two looks for conditions that come and go


class Pulse:
    """Of one connection; `beat` is awaited by one alone."""

    def __init__(self, changes: Changes, sample_s: float) -> None:
        """`changes` are those of the conditions."""
        self._changes = changes
        self._sample_s = sample_s
        self._told = asyncio.Event()

    def tell(self) -> None:
        """There is something new."""
        self._told.set()

    async def beat(self) -> None:
        """Return when there is something new, or it is time to look."""
        try:
            async with asyncio.timeout(self._sample_s):
                await self._told.wait()
        except TimeoutError:
            pass
        self._told.clear()

    async def watch(self) -> None:
        """Tell of conditions, for ever."""
        number = self._changes.number
        while True:
            number = await self._changes.after(number)
            self.tell()
            await asyncio.sleep(AGAIN_S)
