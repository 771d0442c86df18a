"""How long the next batch waits for more records of its stream.

What comes after a quiet time goes at once; what comes soon after a small batch of its stream waits
until `batch_s` after that one. It does not wait longer than there is enough for a batch, and not at
all while something of the priorities from URGENT on waits.
"""

import asyncio
from contextlib import suppress

from agent.clock import Clock
from agent.store.outbox import Batch, Name, Outbox
from agent.sync.up.parcels import RECORD_BYTES

URGENT = 8


class Gathering:
    """Asked before each lease, told of each."""

    def __init__(self, batch_s: float, outbox: Outbox, clock: Clock) -> None:
        self._batch_s = batch_s
        self._outbox = outbox
        self._clock = clock
        self._small: set[Name] = set()  # streams that gave a small batch since the last wait
        self._small_at = 0.0
        self._waits = False

    def note(self, leased: Batch, plain_bytes: int, records_max: int) -> None:
        """This was leased; it is small if it has less than so much."""
        if len(leased.records) >= records_max:
            return
        if sum(len(record.body) + RECORD_BYTES for record in leased.records) >= plain_bytes:
            return
        self._small_at = self._clock.monotonic()
        self._waits |= leased.name in self._small
        self._small.add(leased.name)

    def begin(self) -> None:
        """There is nothing more to lease now."""
        self._waits = bool(self._small)

    async def wait(self, out_bytes: int, enough_bytes: int) -> None:
        """Return when the next batch may be made; of what waits, `out_bytes` are out."""
        while self._waits:
            rest_s = self._small_at + self._batch_s - self._clock.monotonic()
            if rest_s <= 0 or await self._is_enough(out_bytes + enough_bytes):
                self._waits = False
                self._small.clear()
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._outbox.more.wait()
            self._outbox.more.clear()

    async def _is_enough(self, size_bytes: int) -> bool:
        waiting = await self._outbox.waiting()
        if any(one.records and one.priority >= URGENT for one in waiting):
            return True
        return sum(one.bytes for one in waiting) >= size_bytes
