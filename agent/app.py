"""The composition root: builds every part, and owns the order in which they begin and end.

    begin      end (in reverse)     why there
    1 store    last                 everything is kept in it; its lock admits one agent
    2 flash    before the store     it notes there what was written
    3 control  before the store     it notes there what the link has sent of its quota
    4 domain   after its callers    closing it ends the child process
    5 API      after the loops      health answers from the first moment to the last
    6 loops    first, all at once   one TaskGroup: an unexpected fault in one ends the agent, and
                                    systemd starts it again

Ending needs no draining: what is unfinished is in the store and goes on at the next start.
"""

import asyncio
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec

from agent import VERSION, config
from agent.api.bundle import BundleDoors
from agent.api.domains import DomainDoors
from agent.api.inference import Inference
from agent.api.jobs import JobDoors
from agent.api.outbox import OutboxDoors
from agent.api.server import Server
from agent.api.sync import SyncDoors
from agent.audio.ears import Ears
from agent.clock import Clock
from agent.config import Config
from agent.confinement import Confinement
from agent.errors import ConfigError, StoreError
from agent.health.clockwork import Clockwork
from agent.health.conditions import Conditions
from agent.health.flash import Flash
from agent.health.letters import Letters
from agent.health.status import Status
from agent.health.storage import Storage
from agent.inference.admission import Admission
from agent.inference.cache import Cache
from agent.inference.catalog import Catalog
from agent.inference.domains.choices import Choices
from agent.inference.domains.domain import Domain
from agent.inference.domains.domains import Domains
from agent.inference.domains.zygote import Zygote
from agent.inference.scheduler import Scheduler
from agent.inference.sequences import Sequences
from agent.inference.speech import Speech
from agent.jobs.calls import Calls, parsed
from agent.jobs.queue import Queue
from agent.jobs.runner import Runner
from agent.protocol.presence import Heartbeat
from agent.reload import Reload
from agent.store.arrivals import Limits
from agent.store.store import Store
from agent.sync.broker import EmbeddedBroker
from agent.sync.budget.control import Control
from agent.sync.budget.notices import Notices
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.sync.budget.report import Report
from agent.sync.link import Link
from agent.sync.stick.bundle import Bundles
from agent.sync.up.puts import Puts
from agent.sync.up.uplink import Uplink
from agent.views import Views

log = logging.getLogger("holdfast")


class Stopped(Exception):
    """A signal asked the agent to end."""


class App:
    """The agent, built from its configuration."""

    def __init__(self, settings: Config, path: Path) -> None:
        """`path` is the configuration file, whose domains may be read again while it runs."""
        _one_onnxruntime()
        self.path = path
        self.clock = Clock()
        self.settings = settings
        self.device = settings.device  # read once: it may be the host's name
        self.version = VERSION
        self.conditions = Conditions(self.clock)
        self.store = Store(settings.store, self.clock, _job_limits(settings.jobs))
        self._make_domains(settings)
        self._make_link(settings.link)
        self.ears = Ears(settings.audio, self.store.spool, self.speech, self.conditions, self.clock)
        self._make_doors(settings)
        self._scraped: Callable[[], Awaitable[bytes]] | None = None

    def _make_domains(self, settings: Config) -> None:
        """What runs models, and who asks it."""
        self.zygote = Zygote()
        hears_with = settings.domains_all[settings.audio.domain].models[0]
        self.domains = Domains(
            settings.domains_all,
            Catalog(Path(settings.models.path), settings.models.signed_by),
            Choices(self.store.path.with_name("models.json")),
            self.clock,
            self._domain_changed,
            Admission(self.clock).prove,
            Confinement(self.conditions),
            self.zygote,
            needed=hears_with,
        )
        self.reload = Reload(self.path, settings, self.domains, self.conditions)
        cache, sequences = Cache(settings.models.cache_bytes_max), Sequences(self.clock)
        self.scheduler = Scheduler(self.domains, cache, sequences, self.clock)
        calls = Calls(self.scheduler, self.domains)
        self.runner = Runner(self.store.jobs, calls, calls.where, self.clock)
        self.job_doors = JobDoors(Queue(self.store.jobs, self.runner, calls.where), parsed)
        hearing = self.domains.named(settings.audio.domain)
        self.speech = Speech(hearing, hears_with, self.clock)

    def _make_link(self, settings: config.Link) -> None:
        """The way to the cloud; without a broker of the site's, one of our own."""
        self.broker = EmbeddedBroker() if settings.broker_url is None else None
        pace, progress = Pace(settings, self.clock), Progress(self.clock)
        parts = (self.store.outbox, self.conditions, self.clock, pace, progress)
        self.puts = Puts(settings, self.device, *parts) if settings.blobs_by == "put" else None
        self.uplink = Uplink(
            settings,
            self.device,
            self.store.outbox,
            self.conditions,
            self.clock,
            pace,
            progress,
            self.puts,
        )
        self.link = Link(
            settings,
            settings.broker_url or (self.broker.url if self.broker else ""),
            self.device,
            lambda: self.store.epoch,
            self.uplink,
            self._heartbeat,
            self.conditions,
            self.clock,
            random.Random(),
            self.version,
            pace,
        )
        self._make_control(settings, pace, progress)

    def _make_control(self, settings: config.Link, pace: Pace, progress: Progress) -> None:
        """What an operator sees of the link, and orders."""
        self.sync = Report(pace, progress, self.store.outbox.waiting, self.link.state, self.clock)
        notices = Notices(settings, pace, self.conditions, self.clock)
        self.control = Control(
            *(pace, progress, self.store.link, self.sync, notices),
            *(self._hurry, self.clock),
        )

    def _hurry(self) -> None:
        """Nothing that could be sent waits any longer."""
        self.link.hurry()
        self.store.outbox.more.set()

    def _make_doors(self, settings: Config) -> None:
        """What looks after the parts, and who may look at them."""
        self.storage = Storage(
            self.store.ledger.balances, self.store.salvage.reports, self.conditions, self.clock
        )
        outbox = self.store.outbox
        self.letters = Letters(outbox.buried, outbox.more_buried, self.conditions)
        self.flash = Flash(settings.store, self.store.wear, self.conditions, self.clock)
        self.clockwork = Clockwork(self.store.bindings.bind, self.conditions, self.clock)
        views = Views(self.domains, self.scheduler, self.store, self.flash, self.ears.sources)
        self.status = Status(
            lambda: {"device": self.device, "version": self.version},
            self.conditions,
            self.clock,
            self.store.ledger.balances,
            {
                "link": self.sync.state,
                "domains": views.domains,
                "models": views.models,
                "store": views.store,
                "sources": views.sources,
            },
            self.store.path.with_name("status.json"),
        )
        self.outbox_doors = OutboxDoors(self.store, self.ears.wake)
        bundles = Bundles(
            self.device, settings.bundle, self.store.held, self.store.outbox, self.clock
        )
        domains = DomainDoors(self.domains, views.domains, views.models, self.reload.now)
        self.server = Server(
            settings.api,
            self.status,
            self._metrics,
            more=[
                *self.outbox_doors.routes(),
                *SyncDoors(self.control, self.sync.state).routes(),
                *BundleDoors(bundles).routes(),
                *self.job_doors.routes(),
                *domains.routes(),
            ],
            inference=Inference(self.scheduler),
        )

    async def run(self) -> None:
        """Begin, run until SIGTERM or SIGINT, end."""
        for domain in self.domains.all():
            self._domain_changed(domain)  # it is down until it is ready
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, _stop_or_die, stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload.ask)
        async with AsyncExitStack() as parts:
            await parts.enter_async_context(self.zygote)  # it begins while the store is opened
            await parts.enter_async_context(self.store)
            await parts.enter_async_context(self.flash)
            await parts.enter_async_context(self.control)
            if self.puts:
                await parts.enter_async_context(self.puts)
            await self.ears.hear_former_sources()
            await parts.enter_async_context(self.domains)
            await parts.enter_async_context(self.server)
            self._welcome()
            gc.freeze()  # what is there by now stays: it need not be looked through again and again
            try:
                async with asyncio.TaskGroup() as group:
                    for part in self._loops():
                        group.create_task(part())
                    # Waited for here, not in a task of the group: a task that ends the group while
                    # it is being left spoils all later timeouts under Python 3.11.2 (Debian 12).
                    await stop.wait()
                    raise Stopped
            except* Stopped:
                log.info("stopping: what is unfinished is kept")
            with suppress(StoreError):  # then the last snapshot stays
                await self.status.write()
        log.info("stopped")

    def _loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        loops = [self.store.run, self.store.salvage.run, self.storage.run, self.letters.run]
        loops += [self.flash.run, self.clockwork.run, self.status.run, self._scrub]
        loops += [self.outbox_doors.run, self.domains.run, self.runner.run, self._link]
        loops += [self.control.run, self.reload.run]
        if self.broker:
            loops.append(self.broker.run)
        return [*loops, *self.ears.loops()]

    async def _metrics(self) -> bytes:
        """What Prometheus asks for. Where nobody does, its library takes no memory."""
        if self._scraped is None:
            self._scraped = await asyncio.to_thread(self._make_metrics)
        return await self._scraped()

    def _make_metrics(self) -> Callable[[], Awaitable[bytes]]:
        from agent.api.metrics import Metrics
        from agent.api.model_metrics import ModelMetrics

        models = ModelMetrics(self.domains, self.scheduler).collect
        parts = (self.status, self.conditions, self.store, self.flash, self.sync.last, models)
        return Metrics(*parts).text

    async def _scrub(self) -> None:
        await self.store.scrub.run(self.storage.tell_damage)

    async def _link(self) -> None:
        if self.broker:
            await self.broker.ready.wait()
        await self.link.run()

    def _domain_changed(self, domain: Domain) -> None:
        self._tell_versions(domain)
        if domain.ready.is_set() or domain not in self.domains.all():
            self.conditions.clear("domain_down", domain.name)
        else:
            hears = domain.name == self.settings.audio.domain
            waits = "audio waits in the store; " if hears else ""
            self.conditions.hold(
                *("domain_down", domain.name, "warning"),
                domain.cause or "its process has ended",
                domain.hint or f"{waits}it is being started again",
            )
        self._devices_changed(domain)

    def _devices_changed(self, domain: Domain) -> None:
        """Say of each model that it runs elsewhere than its domain prefers.

        Of a domain that is down, what was said last still holds.
        """
        fallen = {
            f"{domain.name}/{name}": f"it runs on {loaded.ep}: {loaded.fallback}"
            for name in domain.models
            if (loaded := domain.loaded(name)) and loaded.fallback
        }
        if domain not in self.domains.all():
            fallen = {}
        elif not domain.ready.is_set():
            return
        for one in self.conditions.all():
            mine = one.name == "device_fallback" and one.subject.startswith(f"{domain.name}/")
            if mine and one.subject not in fallen:
                self.conditions.clear("device_fallback", one.subject)
        for subject, cause in fallen.items():
            remedy = f"mend what is named, or set domains.{domain.name}.devices to what there is"
            self.conditions.hold("device_fallback", subject, "warning", cause, remedy)

    def _tell_versions(self, domain: Domain) -> None:
        """Whether other versions serve than those that should, and why."""
        instead = self.domains.instead(domain)
        if not instead:
            self.conditions.clear("version_refused", domain.name)
            return
        serving = [
            f"{domain.models[name].label} serves instead: {instead[name]}" for name in instead
        ]
        self.conditions.hold(
            *("version_refused", domain.name, "warning", "; ".join(serving)),
            f"mend the version, then: holdfast models load {next(iter(instead))}",
        )

    async def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            device=self.device,
            epoch=self.store.epoch,
            uptime_s=self.status.uptime_s,
            status=self.conditions.status(),
            conditions=msgspec.to_builtins(self.conditions.all()),
            ledger=await self.store.ledger.by_epoch(),
        )

    def _welcome(self) -> None:
        api = self.settings.api
        host = f"[{api.host}]" if ":" in api.host else api.host
        log.info("holdfast %s on device %s", self.version, self.device)
        log.info("health   http://%s:%d/api/v1/health", host, self.server.port)
        log.info(
            "command  %s status   (in another terminal)", Path(sys.executable).with_name("holdfast")
        )
        if self.broker:
            self.conditions.hold(
                "embedded_broker",
                "link",
                "note",
                f"no link.broker_url is set: the embedded broker at {self.broker.url} serves, and "
                f"acks come from the {self.settings.link.ack_from}; nothing leaves this machine",
                "set link.broker_url to your broker, and link.ack_from to ingest",
            )


def _job_limits(settings: config.Jobs) -> Limits:
    return Limits(
        settings.jobs_max, settings.bytes_max, settings.result_keep_s, settings.attempts_max
    )


def run(settings: Config, path: Path) -> None:
    """Run the agent to its end, on uvloop."""
    import uvloop

    async def begin() -> None:
        await App(settings, path).run()

    uvloop.run(begin())


def _stop_or_die(stop: asyncio.Event) -> None:
    """The first signal ends the agent in order; the second one at once, as a crash would."""
    if stop.is_set():
        os._exit(130)
    stop.set()


def _one_onnxruntime() -> None:
    """Two builds of ONNX Runtime in one environment hide each other: refuse to guess which runs."""
    installed = (one.name for path in sys.path for one in Path(path).glob("*.dist-info"))
    found = {name for name in installed if name.startswith(("onnxruntime-", "onnxruntime_gpu-"))}
    if len(found) != 1:
        raise ConfigError(
            f"expected one ONNX Runtime, found {' and '.join(sorted(found)) or 'none'}",
            "install exactly one of the extras `cpu` and `gpu`, in a fresh environment",
        )
