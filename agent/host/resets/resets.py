"""All reset hooks, in the order in which they are tried.

First what somebody has put there for this very machine: the folder, the command, the GPIO line;
in the end the kernel's own reset (SysRq, by the root daemon). Each has a time in which the machine
must be gone; then the next one is tried.
"""

import asyncio
import logging
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from agent import config
from agent.errors import HoldfastError
from agent.host.resets.gpio import GpioLine
from agent.host.resets.programs import HOOKS_MAX, Program, programs_in
from agent.host.root.client import Root
from agent.host.root.forms import Reset

log = logging.getLogger("reset")
BUILT_IN = 3


class Hook(Protocol):
    """One way to reset this machine."""

    name: str

    async def look(self) -> str:
        """What would be done. Raises HoldfastError where it could not."""

    async def pull(self, why: str) -> None:
        """Do it. Raises HoldfastError where it did not work."""


class ResetHook(Struct, frozen=True):
    """A hook, what it would do, and why it could not (none: it could)."""

    hook: str
    would: str
    trouble: str = ""
    remedy: str = ""


class SysRq:
    """The kernel resets the machine."""

    name = "sysrq"

    def __init__(self, root: Root) -> None:
        self._root = root

    async def look(self) -> str:
        """What would be done. Raises HoldfastError where it could not."""
        return f"{await self._root.ask(Reset(dry_run=True))}, by the root daemon"

    async def pull(self, _: str) -> None:
        """Have it done. Raises HoldfastError."""
        await self._root.ask(Reset())


class Resets:
    """What resets this machine."""

    def __init__(self, settings: config.Watchdog, root: Root) -> None:
        self._settings = settings
        self._root = root

    @property
    def time_s_max(self) -> float:
        """How long all of them together may take."""
        return (HOOKS_MAX + BUILT_IN) * self._settings.reset_timeout_s

    async def seen(self) -> list[ResetHook]:
        """What would be tried, in order; nothing of it is done."""
        try:
            hooks = self._hooks()
        except HoldfastError as error:
            folder = ResetHook(self._settings.reset_hooks, "", str(error), error.hint)
            return [folder, *[await _seen(one) for one in self._built_in()]]
        return [await _seen(one) for one in hooks]

    async def reset(self, why: str) -> str:
        """Try all, until the machine is gone. Raises HoldfastError where it is still there."""
        tried: list[str] = []
        try:
            hooks = self._hooks()
        except HoldfastError as error:
            tried.append(str(error))
            hooks = self._built_in()
        for hook in hooks:
            log.warning("%s: %s", hook.name, why)
            tried.append(f"{hook.name}: {await self._try(hook, why)}")
            log.warning(tried[-1])
        raise HoldfastError(
            f"the machine is still there; {'; '.join(tried) or 'no reset hook is configured'}",
            "holdfast watchdog test reset --dry-run shows the hooks; docs/watchdog.md",
        )

    async def _try(self, hook: Hook, why: str) -> str:
        try:
            async with asyncio.timeout(self._settings.reset_timeout_s):
                await hook.pull(why)
                await asyncio.Event().wait()  # what it has begun takes its time
        except HoldfastError as error:
            return str(error)
        except TimeoutError:
            pass  # whatever it did, we are still here
        return f"no effect within {self._settings.reset_timeout_s:g} s"

    def _hooks(self) -> list[Hook]:
        return [*programs_in(Path(self._settings.reset_hooks)), *self._built_in()]

    def _built_in(self) -> list[Hook]:
        settings, hooks = self._settings, list[Hook]()
        if settings.reset_command:
            hooks.append(Program("command", settings.reset_command))
        if gpio := settings.reset_gpio:
            low = gpio.active == "low"
            hooks.append(GpioLine(Path(gpio.chip), gpio.line, gpio.hold_s, low=low))
        if settings.root_socket:
            hooks.append(SysRq(self._root))
        return hooks


async def _seen(hook: Hook) -> ResetHook:
    try:
        return ResetHook(hook.name, await hook.look())
    except HoldfastError as error:
        return ResetHook(hook.name, "", str(error), error.hint)
