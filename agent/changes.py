"""Something changed: who waits for that is woken, from whatever thread it is told.

Nothing is queued for anybody: who comes late sees that there was more than one change, and looks at
how things are now.
"""

import asyncio
import threading
from contextlib import suppress


class Changes:
    """Counts the changes of one thing. Told from any thread, awaited on any loop."""

    def __init__(self) -> None:
        self.number = 0
        # Reentrant: the log tells of its lines here, and a collection of garbage may log anywhere.
        self._lock = threading.RLock()
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """It changed."""
        with self._lock:
            self.number += 1
            waiting, self._waiting = self._waiting, set()
        for one in waiting:
            with suppress(RuntimeError):  # its loop has ended, and nobody waits
                one.get_loop().call_soon_threadsafe(_wake, one)

    async def after(self, number: int) -> int:
        """Wait until there were more than `number` changes; how many there were."""
        while True:
            with self._lock:
                if self.number > number:
                    return self.number
                one = asyncio.get_running_loop().create_future()
                self._waiting.add(one)
            try:
                await one
            finally:
                with self._lock:
                    self._waiting.discard(one)


def _wake(one: "asyncio.Future[None]") -> None:
    if not one.done():
        one.set_result(None)
