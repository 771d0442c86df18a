"""A source's way into the store: what it hears is accepted once it is committed."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import TypeVar

import numpy as np

from agent.audio.codec import Pcm
from agent.clock import Clock
from agent.errors import StoreError, StoreFull
from agent.health.conditions import Conditions
from agent.health.names import Name
from agent.records import Take
from agent.store.spool import FULL, Spool

T = TypeVar("T")
RETRY_S = 1.0


class Recorder:
    """Takes one source's sound into the store.

    Sound that can be read again waits until the store takes it. Live sound cannot wait: what finds
    no room is counted in the ledger as dropped, and a new take begins after the gap.
    """

    def __init__(
        self,
        source: str,
        spool: Spool,
        conditions: Conditions,
        clock: Clock,
        arrived: asyncio.Event,
    ) -> None:
        """`arrived` is set after each commit."""
        self.source = source
        self._spool = spool
        self._conditions = conditions
        self._clock = clock
        self._arrived = arrived
        self._live: Take | None = None
        self._refused: Counter[str] = Counter()  # live sound not yet in the ledger, by reason

    async def begin(self, name: str, identity: str) -> Take:
        """The take of a recording that can be read again, as far as it was accepted before."""
        return await self._until_done(lambda: self._spool.begin(self.source, name, identity))

    async def accept(self, take: Take, pcm: Pcm, *, end: bool = False) -> Take:
        """Keep the next samples of a take; waits as long as the store has no room."""
        return await self._until_done(lambda: self._spool.accept(take, pcm.tobytes(), end=end))

    async def offer(self, take: Take, pcm: Pcm, *, end: bool = False) -> Take:
        """As `accept`, for who can be told that there is no room. Raises StoreError, at once."""
        accepted = await self._spool.accept(take, pcm.tobytes(), end=end)
        self._arrived.set()
        return accepted

    async def end_absent(self, present: Collection[tuple[str, str]]) -> None:
        """End and forget the takes of all recordings but these (names and identities)."""
        await self._until_done(lambda: self._spool.end_absent(self.source, present))

    async def break_off(self, take: Take) -> None:
        """The recording cannot be read on: what was taken of it ends here."""
        await self.accept(take, np.zeros(0, np.int16), end=True)
        await self.forget(take)

    async def forget(self, take: Take) -> None:
        """The recording is no longer where it was read from."""
        await self._until_done(lambda: self._spool.forget(take))

    async def accept_live(self, name: str, pcm: Pcm) -> None:
        """Keep the next live samples in the open take or a new one, or count them as dropped."""
        try:
            await self._count_refused()
            if self._live is None:
                stamp = self._clock.stamp()
                self._live = await self._spool.begin(
                    self.source, name, f"{stamp.boot}:{stamp.mono_ns}", alone=True
                )
            self._live = await self._spool.accept(self._live, pcm.tobytes())
        except StoreError as error:
            self._live = None
            self._refused[FULL] += 1
            self._hold(error)
            with suppress(StoreError):  # then with the next sound
                await self._count_refused()
        else:
            self._accepted()

    @property
    def live(self) -> Take | None:
        """The take that live sound goes into now."""
        return self._live

    async def end_live(self) -> None:
        """What comes next is another take."""
        if self._live is None:
            return
        take, self._live = self._live, None
        try:
            await self._spool.accept(take, b"", end=True)
        except StoreError as error:
            self._hold(error)  # the next take's first sound ends this one as well
        else:
            self._accepted()

    async def lose(self, count: int, reason: str) -> None:
        """So many stretches of live sound never came: count them, and begin a new take."""
        await self.end_live()
        self._refused[reason] += count
        with suppress(StoreError):  # then with the next sound
            await self._count_refused()

    async def _count_refused(self) -> None:
        while reason := next(iter(+self._refused), None):
            await self._spool.refuse(self.source, reason)
            self._refused[reason] -= 1

    async def _until_done(self, step: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                done = await step()
            except StoreError as error:
                self._hold(error)
                await asyncio.sleep(RETRY_S)
            else:
                self._accepted()
                return done

    def _hold(self, error: StoreError) -> None:
        name: Name = "store_full" if isinstance(error, StoreFull) else "store_unwritable"
        self._conditions.hold(name, self.source, "critical", str(error), error.hint)

    def _accepted(self) -> None:
        self._conditions.clear("store_full", self.source)
        self._conditions.clear("store_unwritable", self.source)
        self._arrived.set()
