"""One document for all who watch it, made anew when it changed, while somebody watches."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from agent.changes import Changes

T = TypeVar("T")
PAUSE_S = 0.25  # what changes all the time is not made all the time


class Live(Generic[T]):
    """Made at once for the first who watches, then on each of the `changes`, and each `every_s`."""

    def __init__(self, make: Callable[[], Awaitable[T]], changes: Changes, every_s: float) -> None:
        self._make = make
        self._changes = changes
        self._every_s = every_s
        self._watching = 0
        self._made = Changes()
        self._newest: T
        self._maker: asyncio.Task[None] | None = None
        self._fault: BaseException | None = None

    async def watch(self) -> AsyncGenerator[T, None]:
        """The newest at once, then whatever is newest when the one before was taken.

        Raises what making it raised.
        """
        self._watching += 1
        try:
            if self._maker is None:
                self._begin()
            seen = 0
            while True:
                seen = await self._made.after(seen)
                if self._fault is not None:
                    raise self._fault
                yield self._newest
        finally:
            self._watching -= 1
            if not self._watching and self._maker is not None:
                self._maker.cancel()
                self._maker = None

    def _begin(self) -> None:
        self._made, self._fault = Changes(), None  # what was made for others is old
        self._maker = asyncio.create_task(self._go_on(self._made))
        self._maker.add_done_callback(self._over)

    async def _go_on(self, made: Changes) -> None:
        while True:
            number = self._changes.number
            self._newest = await self._make()
            made.tell()
            await asyncio.sleep(PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s - PAUSE_S):
                    await self._changes.after(number)

    def _over(self, maker: asyncio.Task[None]) -> None:
        """Those who watch learn why there is no more."""
        if maker is self._maker and not maker.cancelled():
            self._fault = maker.exception()
            self._made.tell()
