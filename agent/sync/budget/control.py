"""An operator's orders to the link, and what keeps the budget's books while it runs.

An order is kept before it is answered, and holds over restarts and reboots; `now` alone does not.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from msgspec.structs import replace

from agent.clock import Clock
from agent.errors import NotNow, StoreError
from agent.store.linkstate import NOTE_S, Day, LinkState, Orders
from agent.sync.budget.notices import Notices
from agent.sync.budget.pace import LOOK_S, Pace
from agent.sync.budget.progress import Progress
from agent.sync.budget.report import Report

log = logging.getLogger("link")
SAMPLE_S = 5.0  # how often the store is asked for the backlog


class Control:
    """Open with `async with`, while the store is open and before the link runs."""

    def __init__(
        self,
        pace: Pace,
        progress: Progress,
        kept: LinkState,
        report: Report,
        notices: Notices,
        hurry: Callable[[], None],
        clock: Clock,
    ) -> None:
        """`hurry` ends the waits of link and uplink."""
        self._pace = pace
        self._progress = progress
        self._kept = kept
        self._report = report
        self._notices = notices
        self._hurry = hurry
        self._clock = clock
        self._noted: tuple[str, Orders, Day | None]
        self._noting = asyncio.Lock()  # what is noted last is what holds

    async def __aenter__(self) -> Self:
        found = await self._kept.read()
        if found:
            self._pace.restore(*found)
        self._noted = self._to_note()
        self._notices.tell()
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(StoreError):  # then what was sent since the last note is forgotten
            await self.note()

    async def run(self) -> None:
        """Look at the clocks and the backlog, tell, and note, for ever."""
        sampled = noted = self._clock.monotonic() - NOTE_S
        while True:
            self._pace.look()
            self._notices.tell()
            now = self._clock.monotonic()
            backlog_bytes = None
            with suppress(StoreError):  # the parts that need the store say so
                if now - sampled >= SAMPLE_S:
                    sampled = now
                    await self._report.look()
                    backlog_bytes = self._report.backlog_bytes
                if now - noted >= NOTE_S:
                    noted = now
                    await self.note()
            self._progress.mark(backlog_bytes)
            await asyncio.sleep(LOOK_S)

    async def note(self) -> None:
        """Keep what has changed. Raises StoreError.

        With an order for a time it is written all the same: the store's own clock runs on by it.
        """
        orders = self._pace.orders
        timed = orders.paused_until not in (None, math.inf) or orders.limit_until != math.inf
        async with self._noting:
            if timed or self._noted != self._to_note():
                await self._write(self._pace.orders)

    def _to_note(self) -> tuple[str, Orders, Day | None]:
        quota = self._pace.quota
        return self._kept.epoch, self._pace.orders, quota.day if quota.bytes_per_day else None

    async def _write(self, orders: Orders) -> None:
        epoch, _, day = self._to_note()
        await self._kept.write(orders, self._pace.quota.day)
        self._noted = epoch, orders, day

    async def pause(self, for_s: float | None) -> None:
        """Send nothing for so long, or until `resume`; heartbeats go on. Raises StoreError."""
        await self._order(paused_until=self._after(for_s))

    async def resume(self) -> None:
        """Send again. Raises StoreError."""
        await self._order(paused_until=None)

    async def limit(self, bytes_per_s: int | None, for_s: float | None) -> None:
        """Let this rate hold in place of the configured ones; None ends such an order.

        Raises StoreError.
        """
        await self._order(limit_bytes_per_s=bytes_per_s, limit_until=self._after(for_s))

    def now(self, unlimited_s: float | None) -> None:
        """Let nothing wait that could go, and without a rate for `unlimited_s`.

        Raises NotNow when sending is paused, or the quota is used up.
        """
        self._pace.look()
        if self._pace.orders.paused_until is not None:
            raise NotNow("sending is paused", "end that with `holdfast sync resume`")
        if self._pace.quota.reached == "all":
            raise NotNow(
                "the quota of the day is used up", "wait, or raise link.quota_bytes_per_day"
            )
        if unlimited_s is not None:
            self._pace.lift(unlimited_s)
        self._hurry()

    def _after(self, for_s: float | None) -> float:
        return math.inf if for_s is None else self._clock.monotonic() + for_s

    async def _order(self, **changes: Any) -> None:
        async with self._noting:
            orders = replace(self._pace.orders, **changes)
            await self._write(orders)
            self._pace.order(orders)
        self._notices.tell()
