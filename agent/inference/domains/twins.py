"""The CPU twin of a domain: made when it is needed, of the same versions, ended when it is not."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

from agent.config import Domain as Settings
from agent.errors import HoldfastError
from agent.inference.catalog import Model
from agent.inference.domains.domain import Domain
from agent.inference.domains.work import Work
from agent.tasks import Crew

log = logging.getLogger("domain")


class Twins:
    """The one there is, and those that still finish what they have."""

    def __init__(
        self, make: Callable[[], Domain], adopt: Callable[[Work], None], crew: Crew
    ) -> None:
        """`make` builds one that is not started; `adopt` takes a call that one leaves."""
        self.one: Domain | None = None
        self._make = make
        self._adopt = adopt
        self._crew = crew
        self._runs: dict[Domain, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Domain]:
        """Each, those too that are ending."""
        return iter(list(self._runs))

    def needed(self) -> Domain:
        """The one there is; it is started if there is none."""
        if self.one is None:
            self.one = self._make()
            self._runs[self.one] = self._crew.begin(self.one.run())
        return self.one

    def let_go(self, twin: Domain) -> None:
        """From now on this is nobody's twin; it ends when it has finished what it has begun."""
        if twin is self.one:
            self.one = None
            self._crew.begin(self._part(twin))

    async def change(self, settings: Settings, models: Mapping[str, Model], threads: int) -> None:
        """Have the twin run with these; one that cannot is let go."""
        if twin := self.one:
            try:
                await twin.change(settings, models, threads)
            except HoldfastError as error:
                log.warning("domain %s cannot follow: %s", twin.name, error)
                self.let_go(twin)

    async def close(self) -> None:
        """End all; returns when they are gone."""
        for twin in self:
            await self._end(twin)

    async def _part(self, twin: Domain) -> None:
        while twin.owes:  # again where a process of it died, and its calls came back
            for work in twin.leave():
                self._adopt(work)
            await twin.idle()
        await self._end(twin)

    async def _end(self, twin: Domain) -> None:
        if task := self._runs.get(twin):
            task.cancel()
            await asyncio.wait([task])
        await twin.__aexit__()
        self._runs.pop(twin, None)
