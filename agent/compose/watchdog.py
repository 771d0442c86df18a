"""The watchdog, whom it feeds, what it writes down, and its last steps; moving.py has the parts."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from agent.compose.core import Core
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.compose.moving import AGENT, REBOOT, RESET, Last, MovingParts
from agent.compose.starts import starts
from agent.errors import HoldfastError
from agent.health.starts.causes import Cause
from agent.health.watchdog.budgets import Budgets
from agent.health.watchdog.chronicle import Chronicle
from agent.health.watchdog.device_seen import DeviceSeen
from agent.health.watchdog.disarmed import Disarmed
from agent.health.watchdog.hardware import Hardware
from agent.health.watchdog.lag import Lag
from agent.health.watchdog.watchdog import TICK_S, Event, Remedy, Watchdog
from agent.host.resets.resets import Resets
from agent.host.root.client import Root
from agent.host.root.forms import Reboot, Reset
from agent.host.systemd import Systemd
from agent.host.wdt import HardwareWatchdog
from agent.records import RecordType
from agent.store.intake import New

STREAM = "watchdog"
KEPT_S = 2.0  # for a disk that writes at all
LOOK_S = 600.0  # whether the root daemon is there


class WatchdogParts:
    """The watchdog, its parts, whom it feeds, and what it writes down."""

    def __init__(
        self,
        core: Core,
        inference: InferenceParts,
        link: LinkParts,
        restart: Callable[[str], None],
    ) -> None:
        """`restart` ends the agent, so that it is started again, and says why."""
        self._restart = restart
        self._core = core
        settings = core.settings.watchdog
        self.root = Root(Path(settings.root_socket) if settings.root_socket else None)
        self.resets = Resets(settings, self.root)
        reset = replace(RESET, time_s=self.resets.time_s_max + KEPT_S)
        last = Last((AGENT, REBOOT, reset), self._last_remedies, self._end)
        self.lag = Lag(core.clock, TICK_S)
        self.moving = MovingParts(core, inference, link, self.lag, last)
        self.systemd = Systemd()
        self.disarmed = Disarmed(core.conditions, core.clock)
        self.hardware = self._hardware()
        self.device = DeviceSeen(
            *(settings.owner, settings.device),
            HardwareWatchdog(Path(settings.device)).found,
            core.conditions,
            installed=self.systemd.there,
        )
        self.budgets = Budgets(core.beside("ladder.json"), core.clock)
        self.chronicle = Chronicle(core.beside("watchdog.json"), self._append, core.clock)
        self.starts = starts(core, inference.hold, self.chronicle.note)
        self.watchdog = Watchdog(
            self.moving.all,
            [self.systemd, *([self.hardware] if self.hardware else ())],
            self.chronicle.note,
            core.conditions,
            core.clock,
            core.beside("hung.txt"),
            self.disarmed,
            self.budgets,
            self.starts.why_no_reset,
        )

    def _hardware(self) -> Hardware | None:
        settings, core = self._core.settings.watchdog, self._core
        if settings.owner != "agent":
            return None
        device = HardwareWatchdog(Path(settings.device))
        parts = (settings.timeout_s, core.conditions, core.clock)
        return Hardware(device, settings.device, *parts, self.disarmed)

    def close(self) -> None:
        """The agent has ended in order, because it was told to."""
        if self.hardware:
            self.hardware.close()

    async def _append(self, bodies: Sequence[bytes]) -> None:
        new = [New(RecordType.WATCHDOG, body) for body in bodies]
        await self._core.store.intake.append(STREAM, new)

    async def tell(self) -> None:
        """Tell systemd what holds, for `systemctl status`, at each change, for ever."""
        conditions = self._core.conditions
        while True:
            number = conditions.changes.number
            held = ", ".join(f"{one.name} {one.subject}" for one in conditions.all())
            self.systemd.status(f"{conditions.status()}{': ' if held else ''}{held}")
            await conditions.changes.after(number)

    async def look(self) -> None:
        """See that the root daemon is there before it is needed, for ever."""
        where = self._core.settings.watchdog.root_socket
        assert where, "else there is nothing to look for"
        while True:
            try:
                await self.root.ask(Reset(dry_run=True))
            except HoldfastError as error:
                why = f"this agent could neither reboot nor reset this machine: {error}"
                self._core.conditions.hold("root_unready", where, "warning", why, error.hint)
            else:
                self._core.conditions.clear("root_unready", where)
            await asyncio.sleep(LOOK_S)

    def _last_remedies(self, part: str) -> dict[str, Remedy]:
        """What is left once nothing within the agent helps."""
        return {
            "agent": self._end,
            "reboot": partial(self._reboot, part),
            "reset": partial(self._reset, part),
        }

    async def _reboot(self, part: str, why: str) -> str:
        await self._marked(Event(part, "reboot", why, "it begins"))
        return await self.root.ask(Reboot())

    async def _reset(self, part: str, why: str) -> str:
        await self._marked(Event(part, "reset", why, "it begins"))
        return await self.resets.reset(why)

    async def _marked(self, event: Event) -> None:
        """It stands written down before it is done: there may be no later.

        Raises HoldfastError where it does not: nobody resets what he cannot count.
        """
        self.chronicle.note(event)
        await self.starts.mark(Cause.WATCHDOG, event.cause)
        if why := self.starts.why_no_reset():
            raise HoldfastError(
                f"this machine is not reset: {why}", "holdfast watchdog status, and the conditions"
            )
        await self._all_kept()

    async def _end(self, why: str) -> str:
        self._ending = asyncio.get_running_loop().create_task(self._part(why))
        return "the agent ends, to be started again"

    async def _part(self, why: str) -> None:
        """Once it stands written down why: the end itself may hang."""
        await self._all_kept()
        self._restart(why)
        self.watchdog.part()

    async def _all_kept(self) -> None:
        with suppress(TimeoutError):  # a disk that hangs keeps nobody from it
            async with asyncio.timeout(KEPT_S):
                await self.chronicle.file.kept()
                await self.budgets.file.kept()
