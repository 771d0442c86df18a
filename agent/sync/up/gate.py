"""The gate before the connection: a message passes when the window has room for it.

Live batches pass first, then the pieces of live blobs, then all others; each in the order they
came. A message that is to be alone waits until nothing is in flight, and nothing passes until it is
answered.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agent.sync.up.window import Flight, Window

LIVE_MESSAGES = 2  # of those that may be in flight, kept for live ones
BACKLOG = 2  # the last rank
_Turn = tuple[int, asyncio.Future[Flight]]


class Gate:
    """For one connection; used in the event loop's thread alone."""

    def __init__(self, window: Window, messages_max: int, changed: Callable[[], None]) -> None:
        """`changed` is called whenever there may be more room."""
        self.window = window
        self._messages_max = messages_max
        self._changed = changed
        self._messages = 0
        self._alone = False
        self._left = asyncio.Event()
        self._waiting: tuple[deque[_Turn], ...] = (deque(), deque(), deque())  # by rank
        self._loop = asyncio.get_running_loop()

    def _fits(self, size_bytes: int, *, live: bool) -> bool:
        room = self._messages_max if live else max(1, self._messages_max - LIVE_MESSAGES)
        return self._messages < room and self.window.has_room(size_bytes, live=live)

    async def enter(
        self, size_bytes: int, *, live: bool, piece: bool = False, alone: bool = False
    ) -> Flight:
        """Wait for room; from the return on the message is in flight. `alone`: within `alone()`."""
        rank = int(piece) if live else BACKLOG
        in_turn = not self._alone and not any(self._waiting[: rank + 1])
        if alone or (in_turn and self._fits(size_bytes, live=live)):
            return self._pass(size_bytes, live=live)
        turn: asyncio.Future[Flight] = self._loop.create_future()
        self._waiting[rank].append((size_bytes, turn))
        return await turn

    def leave(self, flight: Flight) -> None:
        """The broker answered."""
        self._messages -= 1
        self._left.set()
        self.window.answered(flight)
        self._admit()
        self._changed()

    @property
    def waits(self) -> bool:
        """Whether a message stands before it, and not because another one is to be alone."""
        return not self._alone and any(not turn.done() for one in self._waiting for _, turn in one)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nothing else is in flight, and nothing passes, until the end."""
        self._alone = True
        try:
            while self._messages:
                self._left.clear()
                await self._left.wait()
            yield
        finally:
            self._alone = False
            self._admit()
            self._changed()

    def _pass(self, size_bytes: int, *, live: bool) -> Flight:
        self._messages += 1
        return self.window.sent(size_bytes, live=live)

    def _admit(self) -> None:
        for rank, waiting in enumerate(self._waiting):
            while waiting and not self._alone:
                size_bytes, turn = waiting[0]
                live = rank < BACKLOG
                if not turn.done():  # else who waited is gone
                    if not self._fits(size_bytes, live=live):
                        break
                    turn.set_result(self._pass(size_bytes, live=live))
                waiting.popleft()
