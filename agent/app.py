"""The composition root: builds every part, and owns the order in which they begin and end.

    begin      end (in reverse)     why there
    0 starts   last                 whatever ends the others is noted, and counted at the next start
    1 store    before that          everything is kept in it; its lock admits one agent
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
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from agent import VERSION, config, logs
from agent.api.entry.tokens import Tokens
from agent.clock import Clock
from agent.commands.verbs.agent import AgentVerbs
from agent.compose.commands import CommandParts
from agent.compose.core import Core
from agent.compose.disk import StoreDisk
from agent.compose.doors import DoorParts
from agent.compose.health import HealthParts
from agent.compose.identity import IdentityParts
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.compose.models import ModelParts
from agent.compose.plant import PlantParts
from agent.compose.slots import SlotParts
from agent.compose.updates import UpdateParts
from agent.compose.versions import VersionParts
from agent.compose.watchdog import WatchdogParts
from agent.config import Config
from agent.errors import ConfigError, StoreError
from agent.health.conditions import Conditions
from agent.health.starts.causes import Cause, Ended
from agent.host.systemd import state_folder
from agent.known_time import KnownTime
from agent.protocol.presence import Heartbeat
from agent.store.arrivals import Limits
from agent.store.journal import Limits as JournalLimits
from agent.store.store import Store
from agent.versions.forms import Book
from agent.versions.kept import Kept
from agent.versions.start import Anew as Anew
from agent.versions.start import Begun, begin

log = logging.getLogger("holdfast")
UNASKED = (Cause.CRASH, Cause.HUNG, Cause.WATCHDOG)  # what a model on probation may be to blame for
AGAIN = 80  # the exit status of an agent that its own watchdog ended
ANEW = 81  # of one that was ordered to begin anew


class Stopped(Exception):
    """A signal asked the agent to end."""


class App:
    """The agent, built from its configuration."""

    def __init__(self, settings: Config, path: Path, begun: Begun | None = None) -> None:
        """`path` is the file of --config. `begun`: which version of it `settings` are; without
        that, none is kept."""
        _one_onnxruntime()
        clock = Clock()
        conditions = Conditions(clock)
        self.disk = StoreDisk(settings.store, conditions, clock, state=state_folder())
        begun = begun or Begun(settings, 0, Kept(path, None, Book(), clock), [])
        settings = replace(settings, store=self.disk.settings)
        self.store = Store(
            settings.store, clock, _job_limits(settings.jobs), _journal_limits(settings.commands)
        )
        known = KnownTime(self.store.path.with_name("known-time.json"), clock)
        self.core = Core(settings, settings.device, clock, conditions, self.store, known)
        self.inference = InferenceParts(self.core)
        self.link = LinkParts(self.core, self._heartbeat)
        self.identity = IdentityParts(self.core, self.link)
        self.updates = UpdateParts(self.core, self.link)
        self.watchdog = WatchdogParts(self.core, self.inference, self.link, self._restart)
        self.starts = self.watchdog.starts
        self.models = ModelParts(self.core, self.inference, self.updates.content)
        self.slots = SlotParts(path, self.core, self.link, self.watchdog, self._begin_anew)
        self.health = HealthParts(self.core, self.inference, self.link, self.watchdog)
        self.versions = VersionParts(
            *(self.core, begun, self.inference, self.link, self.health, self.watchdog),
            self._begin_anew,
        ).versions
        agent = AgentVerbs(self.slots.updating, self.updates.content)
        tokens = Tokens(self.core.beside("tokens.json"), conditions, clock)
        self.commands = CommandParts(
            *(self.core, self.inference, self.link, self.watchdog, self.health),
            *(self.versions, tokens, self._begin_anew, self.slots.shown),
            more=(self.identity.verbs, self.models.verbs, self.updates.verbs, agent),
        )
        self.doors = DoorParts(
            *(self.core, self.inference, self.link, self.health, self.watchdog),
            *(self.commands, self.versions, tokens),
        )
        self.plant = PlantParts(
            *(self.core, self.inference, self.link, self.health, self.watchdog),
            *(self.commands.desk.from_plant, self.commands.desk.takes_from_plant),
        )
        self._stop = asyncio.Event()
        self._status = 0
        self._ended: Ended = "told"
        self._why = ""

    async def run(self) -> int:
        """Begin, run until SIGTERM or SIGINT, or until the watchdog has it begin anew; end.

        The exit status.
        """
        inference, link, doors = self.inference, self.link, self.doors
        if self.starts.verdict.cause is not Cause.ORDERED:  # who restarts it wants it tried anew
            inference.remembered.restore()
        for domain in inference.domains.all():
            inference.told.changed(domain)  # it is down until it is ready
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, _stop_or_die, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._read_again)
        async with AsyncExitStack() as parts:
            parts.enter_context(self.watchdog.lag)
            await parts.enter_async_context(self.watchdog.watchdog)  # left last: ends may hang
            await parts.enter_async_context(self.starts)
            why = "the budgets are spent, and it still crashes: begins"
            await self._pause(self.starts.pause_s, why)
            await parts.enter_async_context(inference.zygote)  # it begins while the store is opened
            await self._open_store(parts)
            # Now there is no other agent here whose files these were.
            self.models.restore(crashed=self.starts.verdict.cause in UNASKED)
            # Left before the store, whose end may hang, and be what there is to write down.
            await parts.enter_async_context(self.watchdog.chronicle.file)
            await parts.enter_async_context(self.watchdog.budgets.file)
            await parts.enter_async_context(self.health.flash)
            await parts.enter_async_context(link.control)
            if link.puts:
                await parts.enter_async_context(link.puts)
            await inference.ears.hear_former_sources()
            await parts.enter_async_context(inference.domains)
            await parts.enter_async_context(inference.guests)
            await parts.enter_async_context(doors.server)
            self._welcome()
            self.watchdog.systemd.ready()
            gc.freeze()  # what is there by now stays: it need not be looked through again and again
            try:
                async with asyncio.TaskGroup() as group:
                    for part in self._loops():
                        group.create_task(part())
                    # Waited for here, not in a task of the group: a task that ends the group while
                    # it is being left spoils all later timeouts under Python 3.11.2 (Debian 12).
                    await self._stop.wait()
                    await self._part()
                    raise Stopped
            except* Stopped:
                pass  # it was asked to
            with suppress(StoreError):  # then the last snapshot stays
                await self.health.status.write()
        if self._status != AGAIN:
            self.watchdog.close()
        log.info("stopped")
        return self._status

    async def _part(self) -> None:
        """It ends; while everything still works, who has asked gets his answer."""
        log.info("stopping: what is unfinished is kept")
        self.watchdog.systemd.stopping()
        await self.starts.ends(self._ended, self._why)
        self.inference.guests.part()
        self.commands.desk.part()
        await self.doors.server.close()

    def _loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        store, inference, link = self.store, self.inference, self.link
        health, doors = self.health, self.doors
        loops = [store.run, store.salvage.run, health.scrub, health.storage.run]
        loops += [health.letters.run, health.flash.run, health.clockwork.run, health.status.run]
        loops += [health.accelerators.run, health.power.run]
        loops += [inference.domains.run, inference.runner.run, self.versions.run]
        loops += [inference.remembered.run, inference.guests.run, link.run, link.control.run]
        loops += [self.commands.run]
        loops += [self.core.known.run, self.identity.rotation.run]
        if self.identity.watch:
            loops.append(self.identity.watch.run)
        loops.append(self.models.probation.run)
        watchdog = self.watchdog
        loops += [watchdog.watchdog.run, watchdog.tell, watchdog.device.run, self.starts.run]
        loops += [self.slots.trial.run]
        loops += [watchdog.chronicle.run, watchdog.chronicle.file.run, watchdog.budgets.file.run]
        if self.core.settings.watchdog.root_socket:
            loops.append(self.watchdog.look)
        if same := self.disk.same(self.store):
            loops.append(same.run)
        loops += [doors.outbox.run, doors.traffic.run, doors.server.run]
        if link.broker:
            loops.append(link.broker.run)
        return [*loops, *self.plant.loops, *inference.ears.loops()]

    async def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            device=self.core.device,
            epoch=self.store.epoch,
            uptime_s=self.health.status.uptime_s,
            status=self.core.conditions.status(),
            conditions=msgspec.to_builtins(self.core.conditions.all()),
            ledger=await self.store.ledger.by_epoch(),
            start=self.starts.verdict.cause.value,
            safe_mode=bool(self.starts.safe),
        )

    async def _open_store(self, parts: AsyncExitStack) -> None:
        """Raises StoreError: after a pause where systemd starts it again, and nobody counts it."""
        try:
            await self.disk.bring_home()
            await parts.enter_async_context(self.store)
        except StoreError as error:
            if self.watchdog.systemd.there:
                why = f"{error}; and nobody counts how often: ends"
                await self._pause(self.starts.uncounted_pause_s, why)
            raise

    async def _pause(self, pause_s: float, why: str) -> None:
        """Where nothing has helped so far, it does not begin, or end, at once."""
        if pause_s:
            log.warning("%s in %.0f s", why, pause_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)

    def _restart(self, why: str) -> None:
        """The watchdog's last remedy inside this process: systemd starts it again."""
        log.error("ending to be started again: %s", why)
        self._status, self._why, self._ended = AGAIN, why, "again"
        self._stop.set()

    def _begin_anew(self, why: str) -> None:
        """Somebody ordered it: it ends as when it is told to, and is started again."""
        log.info("ending to begin anew: %s", why)
        self._status, self._why = ANEW, why
        self._stop.set()

    def _read_again(self) -> None:
        """What lies in files and may change while the agent runs."""
        self.versions.ask()
        self.doors.server.look_soon()

    def _welcome(self) -> None:
        log.info("holdfast %s on device %s", VERSION, self.core.device)
        log.info("health   %s/api/v1/health", self.doors.server.url)
        log.info(
            "command  %s status   (in another terminal)", Path(sys.executable).with_name("holdfast")
        )
        if broker := self.link.broker:
            acks = self.core.settings.link.ack_from
            self.core.conditions.hold(
                "embedded_broker",
                "link",
                "note",
                f"no link.broker_url is set: the embedded broker at {broker.url} serves, and "
                f"acks come from the {acks}; nothing leaves this machine",
                "set link.broker_url to your broker, and link.ack_from to ingest",
            )


def _job_limits(settings: config.Jobs) -> Limits:
    return Limits(
        settings.jobs_max, settings.bytes_max, settings.result_keep_s, settings.attempts_max
    )


def _journal_limits(settings: config.Commands) -> JournalLimits:
    return JournalLimits(settings.rows_max, settings.keep_s)


def run(path: Path) -> int:
    """Run the agent to its end, on uvloop; its exit status. `path` is the file of --config.

    Raises HoldfastError: Anew where it is to begin anew.
    """
    import uvloop

    begun = begin(path, state_folder(), Clock())
    logs.set_level(begun.settings.log_level)

    async def life() -> int:
        return await App(begun.settings, path, begun).run()

    with begun:
        status = uvloop.run(life())
        if status != AGAIN:
            begun.put_down()
        return status


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
