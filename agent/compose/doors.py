"""The local doors: who is let in, and the routes. One more door is one more line in `_routes`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from agent import logs
from agent.api.entry.access import Access
from agent.api.entry.guard import Guard
from agent.api.entry.room import Room
from agent.api.entry.sessions import Sessions
from agent.api.entry.tokens import Tokens
from agent.api.entry.traffic import Traffic
from agent.api.form.events import Listeners
from agent.api.form.route import Route
from agent.api.routes.accelerators import AcceleratorDoors
from agent.api.routes.audio import AudioDoors
from agent.api.routes.audio_stream import AudioStream
from agent.api.routes.batch import BatchDoors
from agent.api.routes.bundle import BundleDoors
from agent.api.routes.commands import CommandDoors
from agent.api.routes.config import ConfigDoors
from agent.api.routes.domains import DomainDoors
from agent.api.routes.events import EventDoors
from agent.api.routes.health import HealthDoors
from agent.api.routes.inference import Inference
from agent.api.routes.jobs import JobDoors
from agent.api.routes.logs import LogDoors
from agent.api.routes.oip_models import OipModelDoors
from agent.api.routes.oip_repository import OipRepositoryDoors
from agent.api.routes.oip_server import OipServerDoors
from agent.api.routes.outbox import OutboxDoors
from agent.api.routes.page import PageDoors
from agent.api.routes.session import SessionDoors
from agent.api.routes.support import SupportDoors
from agent.api.routes.sync import SyncDoors
from agent.api.routes.tokens import TokenDoors
from agent.api.routes.watchdog import WatchdogDoors
from agent.api.server import Server
from agent.compose.commands import CommandParts
from agent.compose.core import Core
from agent.compose.health import HealthParts
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.compose.watchdog import WatchdogParts
from agent.health.checks.bounds import own_bytes_max
from agent.health.checks.ready import Ready
from agent.health.checks.smart import Smart
from agent.jobs.calls import parsed
from agent.sync.stick.bundle import Bundles
from agent.versions.versions import Versions


class HasRoutes(Protocol):
    """A file of doors."""

    def routes(self) -> list[Route]: ...  # noqa: D102


class DoorParts:
    """The server, and what stands behind its doors alone."""

    def __init__(
        self,
        core: Core,
        inference: InferenceParts,
        link: LinkParts,
        health: HealthParts,
        watchdog: WatchdogParts,
        commands: CommandParts,
        versions: Versions,
        tokens: Tokens,
    ) -> None:
        self._core = core
        self._commands = commands
        self._versions = versions
        self._inference = inference
        self._link = link
        self._health = health
        self._watchdog = watchdog
        settings, clock = core.settings.api, core.clock
        self.tokens = tokens
        self._sessions = Sessions(self.tokens, clock)
        access = Access(settings.loopback_scopes, self.tokens, self._sessions)
        self._guard = Guard(access, settings.hosts, clock, settings.rate_per_s_max)
        self._listeners = Listeners()
        self._room = Room()
        self._calls = Inference(inference.scheduler, self._room)
        self.traffic = Traffic(time.monotonic)
        self.outbox = OutboxDoors(core.store, inference.ears.wake)
        jobs = JobDoors(inference.jobs, parsed, self._listeners, self._room)
        self.server = Server(
            settings,
            health.status,
            self._metrics,
            more=[*jobs.routes(), *self._routes()],
            inference=self._calls,
            conditions=core.conditions,
            clock=clock,
            tokens=self.tokens,
            traffic=self.traffic,
            guard=self._guard,
            later=jobs.handing_in.later,
            listeners=self._listeners,
        )
        self._scraped: Callable[[str], Awaitable[tuple[bytes, str]]] | None = None

    def _routes(self) -> list[Route]:
        store, clock, conditions = self._core.store, self._core.clock, self._core.conditions
        parts, health, views = self._inference, self._health, self._health.views
        watchdog = self._watchdog
        domains = parts.domains
        bundles = Bundles(
            *(self._core.device, self._core.settings.bundle, store.held, store.outbox, clock),
            self._commands.desk,
        )
        most = own_bytes_max(self._core.settings.models)
        smart = Smart(domains.all, store.takes_records, conditions, clock, most)
        doors: list[HasRoutes] = [
            self.outbox,
            SyncDoors(self._link.control, self._link.report.state),
            BundleDoors(bundles, self._room),
            CommandDoors(self._commands.desk, store.journal, self._commands.twin),
            DomainDoors(domains, views.domains, views.models, self._versions.again),
            ConfigDoors(self._versions),
            TokenDoors(self.tokens),
            SessionDoors(self.tokens, self._sessions, self._guard.refusals),
            OipServerDoors(parts.ready),
            OipModelDoors(domains, clock),
            OipRepositoryDoors(domains, parts.catalog),
            HealthDoors(Ready(domains.all, store), smart),
            EventDoors(health.status, conditions, self._listeners),
            LogDoors(logs.RECENT, self._listeners),
            SupportDoors(self._commands.support.archive),
            BatchDoors(self._calls),
            PageDoors(),
            WatchdogDoors(
                *(watchdog.watchdog, watchdog.chronicle, watchdog.resets.seen, watchdog.starts),
                watchdog.device,
            ),
            AcceleratorDoors(health.accelerators.shown, health.power.shown),
            AudioDoors(parts.guests, store.shelf),
            AudioStream(parts.guests),
        ]
        return [route for one in doors for route in one.routes()]

    async def _metrics(self, accept: str) -> tuple[bytes, str]:
        """What Prometheus asks for. Where nobody does, its library takes no memory."""
        if self._scraped is None:
            self._scraped = await asyncio.to_thread(self._make_metrics)
        return await self._scraped(accept)

    def _make_metrics(self) -> Callable[[str], Awaitable[tuple[bytes, str]]]:
        from agent.api.metrics import commands
        from agent.api.metrics.accelerators import AcceleratorMetrics, PowerMetrics
        from agent.api.metrics.config import ConfigMetrics
        from agent.api.metrics.doors import DoorMetrics
        from agent.api.metrics.metrics import Metrics
        from agent.api.metrics.models import ModelMetrics
        from agent.api.metrics.processes import ProcessMetrics
        from agent.api.metrics.watchdog import WatchdogMetrics

        core, health, domains = self._core, self._health, self._inference.domains
        watchdog, twin = self._watchdog, self._commands.twin
        return Metrics(
            *(health.status, core.conditions, core.store, health.flash, self._link.report.last),
            DoorMetrics(self.traffic, lambda: self.server.active_requests).collect,
            ModelMetrics(domains, self._inference.scheduler).collect,
            ProcessMetrics(domains.all).collect,
            WatchdogMetrics(watchdog.watchdog, watchdog.starts, watchdog.device).collect,
            AcceleratorMetrics(health.accelerators.shown).collect,
            PowerMetrics(health.power.shown).collect,
            lambda: commands.twin(twin.shown()),
            ConfigMetrics(self._versions.shown).collect,
        ).text
