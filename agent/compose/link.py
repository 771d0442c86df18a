"""The way to the cloud; without a broker of the site's, one of our own."""

import random
from collections.abc import Awaitable, Callable

from agent import VERSION, config
from agent.compose.core import Core
from agent.health.names import Name
from agent.protocol.presence import Heartbeat
from agent.sync.broker import EmbeddedBroker
from agent.sync.budget.control import Control
from agent.sync.budget.notices import Notices
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.sync.budget.report import Report
from agent.sync.link import Link, Talk
from agent.sync.up.puts import Puts
from agent.sync.up.uplink import Uplink
from agent.tasks import Anew

OWN: tuple[Name, ...] = (  # of one link and its broker: the next may have no part in them
    "ack_missing",
    "ack_refused",
    "broker_fallback",
    "broker_features",
    "broker_refused",
    "client_id_twice",
    "heartbeat_too_large",
    "nobody_listens",
)


AT_START = "topic_prefix", "ca_file", "cert_file", "key_file"  # others than the link use them


class LinkParts:
    """The link, what it sends, and what an operator sees of it and orders."""

    def __init__(self, core: Core, heartbeat: Callable[[], Awaitable[Heartbeat]]) -> None:
        self._core = core
        self._heartbeat = heartbeat
        self._outbox = core.store.outbox
        settings = core.settings.link
        self.broker = EmbeddedBroker() if settings.broker_url is None else None
        self.pace, self._progress = Pace(settings, core.clock), Progress(core.clock)
        parts = (self._outbox, core.conditions, core.clock, self.pace, self._progress)
        self._talks: list[Talk] = []
        self.puts = Puts(settings, core.device, *parts) if settings.blobs_by == "put" else None
        self.uplink, self.link = self._made(settings)
        self._life = Anew(self._live)
        waiting = self._outbox.waiting
        self.report = Report(
            self.pace, self._progress, waiting, lambda: self.link.state(), core.clock
        )
        self._notices = Notices(settings, self.pace, core.conditions, core.clock)
        self.control = Control(
            self.pace,
            self._progress,
            core.store.link,
            self.report,
            self._notices,
            self._hurry,
            core.clock,
        )

    def _made(self, settings: config.Link) -> tuple[Uplink, Link]:
        """With these settings, over the store that there is."""
        core = self._core
        parts = (self._outbox, core.conditions, core.clock, self.pace, self._progress)
        uplink = Uplink(settings, core.device, *parts, self.puts)
        link = Link(
            settings,
            settings.broker_url or (self.broker.url if self.broker else ""),
            core.device,
            lambda: core.store.epoch,
            uplink,
            self._heartbeat,
            core.conditions,
            core.clock,
            random.Random(),
            VERSION,
            self.pace,
            core.known,
        )
        for talk in self._talks:
            link.join(talk)
        return uplink, link

    def join(self, talk: Talk) -> None:
        """Have it use each connection, of later links too; to be said before the first one."""
        self._talks.append(talk)
        self.link.join(talk)

    async def run(self) -> None:
        """Keep the link, for ever."""
        if self.broker:
            await self.broker.ready.wait()
        await self._life.run()

    async def _live(self) -> None:
        await self.link.run()

    def restart_for(self, before: config.Link, after: config.Link) -> str:
        """Why this change takes a restart; empty: `change` will do."""
        if (before.broker_url is None) != (after.broker_url is None):
            return "the embedded broker begins and ends with the agent"
        if "put" in (before.blobs_by, after.blobs_by):
            return "what puts blobs begins and ends with the agent"
        changed = [key for key in AT_START if getattr(before, key) != getattr(after, key)]
        if changed:
            return f"commands, updates and the watch of certificates know {', '.join(changed)}"
        if self._core.settings.sparkplug or self._core.settings.home_assistant:
            return "other systems of the site are served as the link is, from the start on"
        return ""

    async def change(self, settings: config.Link) -> None:
        """End the link, and begin another one with these settings; what is not acknowledged is
        sent again."""
        self.pace.change(settings)
        self._notices.change(settings)
        self.uplink, self.link = self._made(settings)
        await self._life.restart()
        self._core.conditions.forget(*OWN)

    def _hurry(self) -> None:
        """Nothing that could be sent waits any longer."""
        self.link.hurry()
        self._outbox.more.set()
