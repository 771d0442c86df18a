"""The store as the other parts see it: one file, opened once, with its faces."""

import asyncio
import os
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Self

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError, StoreFull
from agent.store.arrivals import Limits
from agent.store.bindings import Bindings
from agent.store.bounds import Bounds, pages_bytes
from agent.store.database import Database
from agent.store.decisions import Decisions
from agent.store.held import Held
from agent.store.intake import Intake
from agent.store.inventory import Inventory
from agent.store.jobs import Jobs
from agent.store.journal import Journal
from agent.store.journal import Limits as JournalLimits
from agent.store.latency import Commits
from agent.store.ledger import Ledger
from agent.store.linkstate import LinkState
from agent.store.outbox import Outbox
from agent.store.salvage import Salvage
from agent.store.scrub import Scrub
from agent.store.shelf import Shelf
from agent.store.slices import Slices
from agent.store.spool import Spool
from agent.store.takes import Takes
from agent.store.twinrows import TwinRows
from agent.store.uploads import Uploads
from agent.store.volatile import Volatile
from agent.store.wear import Wear

ROOM_BYTES = 65_536  # with less it is full for the next record but a small one


class Store:
    """Open with `async with`; `intake` takes records in and `spool` sound, of which
    `takes` know how far it came, `outbox` gives them out, `shelf` has segments to listen to,
    `ledger` counts, `wear` adds up what was written, `link` remembers for the link, `bindings` know
    the time of day, `scrub` looks for what the disk has damaged, `salvage` saves what a damaged
    file holds; `held` copies out, `inventory` shows, and `decisions` are an operator's; `jobs` are
    work that waits, `journal` the commands, `uploads` the archives that those have sent, `twin`
    what is wanted of the device."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        jobs: Limits | None = None,
        commands: JournalLimits | None = None,
    ) -> None:
        self.path = Path(settings.path)
        self.bytes_max = settings.bytes_max
        self._refuses = settings.when_full == "refuse"
        self._gives_way_at = settings.evict_at if settings.when_full == "evict" else None
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
        self.takes = Takes(self._database)
        self.slices = Slices(self._database)
        self.shelf = Shelf(self.slices)
        self.ledger = Ledger(self._database, self.slices)
        self.held = Held(self._database, self.slices, self.bindings, bounds.rule)
        self.inventory = Inventory(self.slices, clock, bounds.rule, self.outbox.out)
        self.decisions = Decisions(self._database, self.outbox.out, kept)
        self.salvage = Salvage(self._database, self.path, kept)
        self.wear = Wear(self._database)
        self.link = LinkState(self._database, clock)
        self.jobs = Jobs(self._database, clock, jobs or Limits())
        self.journal = Journal(self._database, clock, commands or JournalLimits(), kept)
        self.uploads = Uploads(self._database, clock, kept)
        self.twin = TwinRows(self._database)
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

    @property
    def steps(self) -> int:
        """What its thread has done since the start: grows while it moves."""
        return self._database.steps

    async def takes_records(self) -> None:
        """Return when a record would be taken now, as far as is known without writing one.

        Raises StoreFull, StoreError.
        """
        used = await self.used_bytes()
        folder = self.path.parent
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise StoreError(f"{folder}: the disk is read-only", "check the disk: dmesg, fsck")
        if self._database.short_of_room:
            raise StoreFull(f"{folder}: the disk is full", "make room on the disk")
        if self._refuses and used + ROOM_BYTES > self.bytes_max:
            raise StoreFull(
                f"the store has reached store.bytes_max ({self.bytes_max})",
                "bring the link back, or raise store.bytes_max",
            )

    async def turn(self) -> None:
        """Return when the store's thread has come to this, and so done what was asked before.

        Raises StoreError.
        """
        await self._database.read(lambda _: None)

    async def hang(self, seconds: float) -> None:
        """Have the thread stand still, as it does in an fsync that does not end; for tests."""
        await self._database.read(lambda _: time.sleep(seconds))

    async def used_bytes(self) -> int:
        """Bytes of the pages in use, what `bytes_max` bounds."""
        return await self._database.read(pages_bytes)

    async def room_bytes(self) -> int:
        """How much may come before something is refused; where the old gives way, that counts."""
        if self._gives_way_at is not None:
            return int(self.bytes_max * self._gives_way_at)
        return max(0, self.bytes_max - await self.used_bytes())
