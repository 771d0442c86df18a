"""The pools of a domain: the one that serves, the former one, which stands by for a while, and
those that are tried or finish what they have.
"""

import asyncio

from agent.inference.domains.instance import Instance
from agent.inference.domains.pool import Pool
from agent.tasks import Crew


class Pools:
    """Which pool serves, and the end of those that do so no longer."""

    def __init__(self, crew: Crew) -> None:
        self.all: list[Pool] = []
        self.current: Pool | None = None  # it serves
        self.former: Pool | None = None  # it stands by
        self._keeping: asyncio.TimerHandle | None = None  # of the former
        self._crew = crew

    @property
    def serving(self) -> list[Instance]:
        """Those that get calls."""
        return self.current.serving if self.current else []

    @property
    def ready(self) -> list[Instance]:
        """Those that get calls, then those that stand by for them."""
        return self.current.ready if self.current else []

    @property
    def started(self) -> list[Instance]:
        """Those of the pool that serves, ready or not."""
        return self.current.all if self.current else []

    @property
    def cause(self) -> str:
        """Why the last of these ended; empty when nothing is wrong."""
        return self.current.cause if self.current else ""

    @property
    def instances(self) -> list[Instance]:
        """All there are, those too that only finish what they have."""
        return [one for pool in self.all for one in pool.all]

    def switch(self, pool: Pool, keep_s: float) -> None:
        """From now on, `pool` serves; what did so before stands by for `keep_s`."""
        former, self.current = self.current, pool
        forgotten, self.former = self.former, former
        pool.renews = True
        self.stay()
        if forgotten and forgotten is not pool:
            self._crew.begin(self._end(forgotten))
        if former:
            former.renews = False
            self._keeping = asyncio.get_running_loop().call_later(keep_s, self._forget)

    def forget(self) -> None:
        """What stands by does so no longer."""
        self.stay()
        self._forget()

    def stay(self) -> None:
        """Whatever stands by now is not ended for its age."""
        if self._keeping:
            self._keeping.cancel()

    def drop(self) -> None:
        """From now on none serves; what did so finishes what it has, and ends."""
        self.stay()
        dropped = [pool for pool in (self.current, self.former) if pool]
        self.current = self.former = None
        for pool in dropped:
            pool.renews = False
            self._crew.begin(self._end(pool))

    async def idle(self) -> None:
        """Until no call is under way: each is answered, or late, before long."""
        for pool in list(self.all):
            await pool.idle()

    async def close(self) -> None:
        """End all; returns when they are gone."""
        for pool in list(self.all):
            await pool.close()

    async def discard(self, pool: Pool) -> None:
        """End one that never served."""
        await pool.close()
        self.all.remove(pool)

    def _forget(self) -> None:
        """The former pool has stood by for long enough."""
        if former := self.former:
            self.former = None
            self._crew.begin(self._end(former))

    async def _end(self, pool: Pool) -> None:
        await pool.idle()  # each call is answered, or late, before long
        await pool.close()
        self.all.remove(pool)
