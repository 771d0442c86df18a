"""The machine's own watchdog as it is seen from outside, whoever owns it: it is never opened here.

systemd feeds it only where somebody told it to (RuntimeWatchdogSec is off by default): a machine
whose watchdog nobody has armed stays as it hangs, and that is said. While it is systemd's it may
wait for less than a restart of the agent takes, for PID 1 feeds it meanwhile; what is too short
where it is the agent's, hardware.py says.

Limits: it is read every LOOK_S, and when somebody asks, one read at a time; whoever would wait for
longer than READ_S has what was seen last, for a driver may hang.
"""

import asyncio
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from agent.health.conditions import Conditions
from agent.host.wdt import WatchdogFound

LOOK_S = 600.0
READ_S = 1.0
Owner = Literal["systemd", "agent", "none"]


class HardwareShown(Struct, frozen=True):
    """The machine's own watchdog, and who is to feed it by the configuration; null: it has none."""

    owner: Owner
    device: str
    found: WatchdogFound | None


class DeviceSeen:
    """`run` looks, for ever."""

    def __init__(
        self,
        owner: Owner,
        device: str,
        read: Callable[[], WatchdogFound | None],
        conditions: Conditions,
        *,
        installed: bool,
    ) -> None:
        """`read` may take its time. `installed`: systemd has started this agent, so that the
        machine is to look after itself."""
        self.last = HardwareShown(owner, device, None)
        self._read = read
        self._conditions = conditions
        self._installed = installed
        self._reading: asyncio.Task[None] | None = None

    async def now(self) -> HardwareShown:
        """As it is now, or as it was seen last."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._look())
        await asyncio.wait([self._reading], timeout=READ_S)
        return self.last

    async def run(self) -> None:
        """Look, and say what is wrong."""
        while True:
            await self.now()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        found = await asyncio.to_thread(self._read)
        owner, device = self.last.owner, self.last.device
        self.last = HardwareShown(owner, device, found)
        if owner != "systemd":
            return
        if found is None or found.armed is not False:
            self._conditions.clear("watchdog_unarmed", device)
            return
        self._conditions.hold(
            *("watchdog_unarmed", device, "warning" if self._installed else "note"),
            f"nobody has armed this machine's own watchdog ({found.identity}): nothing resets this "
            "machine if it hangs",
            "write RuntimeWatchdogSec=60 below [Manager] into "
            "/etc/systemd/system.conf.d/holdfast.conf, then systemctl daemon-reexec; where systemd "
            "is not PID 1, set watchdog.owner: agent; if it is meant to be so, none",
        )
