"""Of several controllers on one database, one acts.

The holder moves a counter each third of `lease_s`. Who sees it stand still for `lease_s`, by its
own monotonic clock, takes over; no clocks are compared. Each transaction of a holder looks whether
it still is the holder, so one that was paused meanwhile changes nothing any more. What it publishes
late is harmless: devices have one effect of an id.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.clock import Clock
from agent.errors import HoldfastError
from fleet.store.database import Database, Transaction

_READ = "SELECT holder, beat FROM leases WHERE name = 'control'"
_ENTER = """
INSERT INTO leases (name, holder, beat) VALUES ('control', '', 0) ON CONFLICT (name) DO NOTHING
"""
_TAKE = "UPDATE leases SET holder = $1, beat = $2 WHERE name = 'control'"
_LEAVE = "UPDATE leases SET holder = '' WHERE name = 'control' AND holder = $1"


async def alone(transaction: Transaction) -> None:
    """Until this transaction ends, no controller changes anything: none waits for the other in a
    circle."""
    await transaction.fetch(f"{_READ} FOR UPDATE")


async def beside(transaction: Transaction) -> None:
    """Until this transaction ends, nobody is `alone`; the controller goes on."""
    await transaction.fetch(f"{_READ} FOR SHARE")


class LeaseLost(HoldfastError):
    """Another controller acts now."""


class Lease:
    """The right to act, as `holder`."""

    def __init__(self, database: Database, clock: Clock, holder: str, lease_s: float) -> None:
        self._database = database
        self._clock = clock
        self._holder = holder
        self._lease_s = lease_s
        self._turn = asyncio.Lock()
        self._seen: tuple[str, int] = ("", -1)
        self._seen_at = self._until = clock.monotonic()

    @property
    def held(self) -> bool:
        """Whether it is ours for now."""
        return self._clock.monotonic() < self._until

    async def tend(self) -> bool:
        """Take it where it may be taken, renew it where it is ours; whether it is. Raises
        StoreError."""
        now = self._clock.monotonic()
        async with self._database.begin() as transaction:
            if not await transaction.fetch(_READ):
                await transaction.execute(_ENTER)
            ((holder, beat),) = await transaction.fetch(f"{_READ} FOR UPDATE")
            if (holder, beat) != self._seen:
                self._seen, self._seen_at = (holder, beat), now
            stands_still = now - self._seen_at >= self._lease_s
            ours = holder in ("", self._holder) or stands_still
            if ours:
                await transaction.execute(_TAKE, self._holder, beat + 1)
        self._until = now + self._lease_s if ours else now
        return ours

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Transaction]:
        """A transaction of the holder, one at a time. Raises LeaseLost, StoreError."""
        async with self._turn, self._database.begin() as transaction:
            rows = await transaction.fetch(f"{_READ} FOR SHARE")
            if [row[0] for row in rows] != [self._holder]:
                raise LeaseLost("another controller has taken over")
            yield transaction

    async def leave(self) -> None:
        """Let another one take it at once. Raises StoreError."""
        self._until = self._clock.monotonic()
        async with self._database.begin() as transaction:
            await transaction.execute(_LEAVE, self._holder)
