"""The device as a whole: how it is, its log's level, a restart of the agent, a reboot."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from msgspec import Struct

from agent.commands.verb import Call, NoArgs, Verb, again

Act = Callable[[str], Awaitable[str]]
LANE = "device"
GONE_S = 300.0  # within which this process ends, once it was asked to


class Level(Struct, frozen=True, forbid_unknown_fields=True):
    """From now on, until the agent starts again; null: the configured one."""

    level: Literal["debug", "info", "warning", "error"] | None


class Why(Struct, frozen=True, forbid_unknown_fields=True):
    """Why, for the log."""

    why: str = ""


class DeviceVerbs:
    """A restart and a reboot are done when the agent that comes after them says so."""

    def __init__(
        self,
        status: Callable[[], Awaitable[Any]],
        level: Callable[[str | None], str],
        restart: Act,
        reboot: Act,
        began: tuple[str, str],
    ) -> None:
        """`level` sets the log's, and says which holds. `restart` and `reboot` raise HoldfastError
        where it cannot be done. `began` are the boot and the start that this agent is of."""
        self._status = status
        self._level = level
        self._restart = restart
        self._reboot = reboot
        self._boot, self._start = began

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            again("status", "How the device is.", NoArgs, self._show, "read"),
            again("log.level", "How much is logged.", Level, self._set_level),
            again(
                "device.restart",
                "End the agent in order, and start it again.",
                Why,
                self._restarted,
                "operate",
                LANE,
                GONE_S,
                grave=True,
            ),
            again(
                "device.reboot",
                "Boot the machine anew.",
                Why,
                self._rebooted,
                "admin",
                LANE,
                GONE_S,
                grave=True,
            ),
        ]

    async def _show(self, _: NoArgs, __: Call) -> Any:
        return await self._status()

    async def _set_level(self, args: Level, _: Call) -> Any:
        return {"level": self._level(args.level)}

    async def _restarted(self, args: Why, call: Call) -> Any:
        return await _over(call, self._start, self._restart, args.why)

    async def _rebooted(self, args: Why, call: Call) -> Any:
        return await _over(call, self._boot, self._reboot, args.why)


async def _over(call: Call, life: str, act: Act, why: str) -> Any:
    """Have this life end by `act`; done in any life that is not the one it was ordered in."""
    if call.step and call.step != life:
        return {"before": call.step, "now": life}
    await call.note(life)
    await call.tell(0.5, await act(f"command {call.id}{': ' if why else ''}{why}"))
    await asyncio.Event().wait()  # until it ends
    return None
