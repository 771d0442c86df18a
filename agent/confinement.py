"""Domains under limits: what settings ask of the host, and what it cannot hold, as conditions."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agent.config import Domain as Settings
from agent.health.conditions import Conditions
from agent.host import mps
from agent.host.cells import Cell, Cells
from agent.host.limits import Limits

T = TypeVar("T")


class Confinement:
    """Makes the limits of domains. Built before any child is: the agent may have to move."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._cells = Cells()
        # Files of the kernel's, milliseconds each: one after the other, beside the loop.
        self._thread = ThreadPoolExecutor(1, "limits")

    def __call__(self, domain: str, settings: Settings) -> "Confined":
        """For a domain."""
        return Confined(domain, settings, self._cells, self._conditions, self._thread)


class Confined:
    """One domain's processes. The kernel knows nothing of it before the first of them."""

    def __init__(
        self,
        domain: str,
        settings: Settings,
        cells: Cells,
        conditions: Conditions,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._domain = domain
        self._settings = settings
        self._cells = cells
        self._cell: Cell | None = None
        self._conditions = conditions
        self._thread = thread
        self._oom_kills = 0

    def environment(self) -> dict[str, str]:
        """Its part of the GPU, where NVIDIA's MPS runs; else nothing."""
        settings = self._settings
        if settings.devices == ["cpu"]:
            return {}
        return mps.variables(os.environ, settings.gpu_share, settings.gpu_memory_bytes_max)

    async def admit(self, pid: int) -> None:
        """Put a fresh process under the limits."""

        def act() -> tuple[str, ...]:
            if self._cell is None:
                self._cell = self._cells.open(self._domain, limits(self._settings))
            self._cell.admit(pid)
            return self._cell.shortfalls

        self._tell(await self._do(act))

    async def change(self, settings: Settings) -> None:
        """Other limits hold from now on; the environment is that of processes yet to come."""
        self._settings = settings
        new = limits(settings)

        def act() -> tuple[str, ...]:
            if self._cell is None:
                return ()
            self._cell.change(new)
            return self._cell.shortfalls

        self._tell(await self._do(act))

    async def died(self) -> str:
        """Why a process was killed, if it was for want of memory; else nothing."""

        def act() -> int:
            return self._cell.oom_kills() if self._cell else 0

        kills, before = await self._do(act), self._oom_kills
        self._oom_kills = kills
        return "it was killed: it took more than memory_bytes_max" if kills > before else ""

    async def close(self) -> None:
        """No process is left."""

        def act() -> None:
            if self._cell:
                self._cell.close()

        await self._do(act)
        self._conditions.clear("limits_not_held", self._domain)

    async def _do(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    def _tell(self, shortfalls: tuple[str, ...]) -> None:
        if not shortfalls:
            self._conditions.clear("limits_not_held", self._domain)
            return
        self._conditions.hold(
            *("limits_not_held", self._domain, "note", "; ".join(shortfalls)),
            "the domain runs without them",
        )


def limits(settings: Settings) -> Limits:
    """What a domain's settings ask of the host."""
    cpus = None if settings.cpus is None else tuple(sorted(settings.cpu_numbers))
    return Limits(cpus, settings.cpu_share, settings.memory_bytes_max, settings.class_)
