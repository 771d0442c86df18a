"""The way to the cloud; without a broker of the site's, one of our own."""

import random
from collections.abc import Awaitable, Callable

from agent import VERSION
from agent.compose.core import Core
from agent.protocol.presence import Heartbeat
from agent.sync.broker import EmbeddedBroker
from agent.sync.budget.control import Control
from agent.sync.budget.notices import Notices
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.sync.budget.report import Report
from agent.sync.link import Link
from agent.sync.up.puts import Puts
from agent.sync.up.uplink import Uplink


class LinkParts:
    """The link, what it sends, and what an operator sees of it and orders."""

    def __init__(self, core: Core, heartbeat: Callable[[], Awaitable[Heartbeat]]) -> None:
        self._outbox = core.store.outbox
        settings = core.settings.link
        self.broker = EmbeddedBroker() if settings.broker_url is None else None
        self.pace = pace = Pace(settings, core.clock)
        progress = Progress(core.clock)
        parts = (self._outbox, core.conditions, core.clock, pace, progress)
        self.puts = Puts(settings, core.device, *parts) if settings.blobs_by == "put" else None
        self.uplink = Uplink(settings, core.device, *parts, self.puts)
        self.link = Link(
            settings,
            settings.broker_url or (self.broker.url if self.broker else ""),
            core.device,
            lambda: core.store.epoch,
            self.uplink,
            heartbeat,
            core.conditions,
            core.clock,
            random.Random(),
            VERSION,
            pace,
            core.known,
        )
        self.report = Report(pace, progress, self._outbox.waiting, self.link.state, core.clock)
        self.control = Control(
            pace,
            progress,
            core.store.link,
            self.report,
            Notices(settings, pace, core.conditions, core.clock),
            self._hurry,
            core.clock,
        )

    async def run(self) -> None:
        """Keep the link, for ever."""
        if self.broker:
            await self.broker.ready.wait()
        await self.link.run()

    def _hurry(self) -> None:
        """Nothing that could be sent waits any longer."""
        self.link.hurry()
        self._outbox.more.set()
