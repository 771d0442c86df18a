"""The store as the other parts see it: one file, opened once, with its faces."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Self

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError
from agent.store.arrivals import Limits
from agent.store.bindings import Bindings
from agent.store.bounds import Bounds, pages_bytes
from agent.store.database import Database
from agent.store.decisions import Decisions
from agent.store.held import Held
from agent.store.intake import Intake
from agent.store.inventory import Inventory
from agent.store.jobs import Jobs
from agent.store.latency import Commits
from agent.store.ledger import Ledger
from agent.store.linkstate import LinkState
from agent.store.outbox import Outbox
from agent.store.salvage import Salvage
from agent.store.scrub import Scrub
from agent.store.slices import Slices
from agent.store.spool import Spool
from agent.store.volatile import Volatile
from agent.store.wear import Wear


class Store:
    """Open with `async with`; `intake` takes records in and `spool` sound, `outbox` gives them out,
    `ledger` counts, `wear` adds up what was written, `link` remembers for the link, `bindings` know
    the time of day, `scrub` looks for what the disk has damaged, `salvage` saves what a damaged
    file holds; `held` copies out, `inventory` shows, and `decisions` are an operator's; `jobs` are
    work that waits."""

    def __init__(self, settings: Settings, clock: Clock, jobs: Limits | None = None) -> None:
        self.path = Path(settings.path)
        self.bytes_max = settings.bytes_max
        bounds = Bounds(settings, clock, lambda *name: self.outbox.out(*name))
        self._database = Database(self.path, clock, bounds)
        self.bindings = Bindings(self._database, clock)
        self.outbox = Outbox(self._database, self.bindings, clock, bounds.rule)
        kept = self.outbox.more.set
        self._volatile = Volatile(
            self._database, settings.volatile_bytes_max, settings.volatile_s, kept
        )
        self.intake = Intake(self._database, clock, bounds.rule, self._volatile, kept)
        self.spool = Spool(self._database, clock, kept)
        self.slices = Slices(self._database)
        self.ledger = Ledger(self._database, self.slices)
        self.held = Held(self._database, self.slices, self.bindings, bounds.rule)
        self.inventory = Inventory(self.slices, clock, bounds.rule, self.outbox.out)
        self.decisions = Decisions(self._database, self.outbox.out, kept)
        self.salvage = Salvage(self._database, self.path, kept)
        self.wear = Wear(self._database)
        self.link = LinkState(self._database, clock)
        self.jobs = Jobs(self._database, clock, jobs or Limits())
        self.scrub = Scrub(self._database, settings.scrub_s, clock)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as parts:
            await parts.enter_async_context(self._database)
            await self.bindings.load()
            with suppress(StoreError):  # then the source's listener meets it, and says so
                await self.spool.drafts.forget()
            with suppress(StoreError):  # then the runner meets it
                await self.jobs.recover()
            await parts.enter_async_context(self._volatile)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    async def run(self) -> None:
        """Raise what ends the store while it is needed; else wait."""
        await asyncio.gather(self._database.run(), self._volatile.run())

    @property
    def epoch(self) -> str:
        """The identity born with the file."""
        return self._database.epoch

    @property
    def commits(self) -> Commits:
        """How long commits took, since the start; for any thread."""
        return self._database.latency

    async def used_bytes(self) -> int:
        """Bytes of the pages in use, what `bytes_max` bounds."""
        return await self._database.read(pages_bytes)
