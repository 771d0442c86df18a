"""Many devices on one broker: real links, without a store beneath them.

A `Crowd` lives in the loop that it is entered in; bench/reconnect.py has one in each process.
"""

import asyncio
import random
import resource
from typing import Self

import msgspec

from agent import config
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.protocol.presence import Heartbeat
from agent.sync.connection import Connection
from agent.sync.link import Link
from agent.sync.pace import Pace

AT_ONCE = 50  # links that make their first connection together: fewer than a broker's backlog


class Waits(random.Random):
    """Notes each wait that was drawn, and the moment."""

    def __init__(self, seed: int, clock: Clock) -> None:
        super().__init__(seed)
        self.drawn: list[tuple[float, float]] = []  # (monotonic, seconds)
        self._clock = clock

    def uniform(self, a: float, b: float) -> float:
        """As Random's."""
        wait_s = super().uniform(a, b)
        self.drawn.append((self._clock.monotonic(), wait_s))
        return wait_s


class Device:
    """One link; it stands in for its own uplink, which has nothing to send."""

    def __init__(self, name: str, url: str, seed: int, settings: dict[str, object]) -> None:
        self.served: list[float] = []  # monotonic: when each connection was ready
        self.up = False
        self._clock = Clock()
        self._name = name
        self.waits = Waits(seed, self._clock)
        told = {"ack_from": "ingest", "broker_url": url, **settings}
        link = msgspec.convert(told, config.Link)
        self._link = Link(
            *(link, url, name, lambda: "0" * 16),
            *(self, self._beat, Conditions(self._clock), self._clock),  # type: ignore[arg-type]
            *(self.waits, "0.0.0", Pace(link, self._clock)),
        )

    async def live(self) -> None:
        """For ever."""
        await self._link.run()

    async def run(self, _: Connection) -> None:
        """As Uplink's: the connection is ready."""
        self.served.append(self._clock.monotonic())
        self.up = True
        try:
            await asyncio.Event().wait()
        finally:
            self.up = False

    def heard(self, payload: bytes) -> None:
        """As Uplink's: nobody acknowledges anything here."""

    async def _beat(self) -> Heartbeat:
        return Heartbeat(
            device=self._name,
            epoch="0" * 16,
            uptime_s=0,
            status="healthy",
            conditions=[],
            ledger={},
        )


class Crowd:
    """So many devices, with names and chance of their own by `seed`."""

    def __init__(self, url: str, count: int, seed: int = 0, **settings: object) -> None:
        self.devices = [Device(f"device-{seed + i}", url, seed + i, settings) for i in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start them, few at a time, until each is connected."""
        allow_files(4 * len(self.devices))
        for first in range(0, len(self.devices), AT_ONCE):
            some = self.devices[first : first + AT_ONCE]
            self._tasks += [asyncio.create_task(device.live()) for device in some]
            await self.connected(some)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                raise AssertionError("a link ended by itself") from task.exception()

    async def connected(self, some: list[Device] | None = None) -> None:
        """Return when each of them (of all) is."""
        while not all(device.up for device in some or self.devices):
            await asyncio.sleep(0.02)

    async def served(self, times: int) -> None:
        """Return when each has been connected so many times."""
        while any(len(device.served) < times for device in self.devices):
            await asyncio.sleep(0.02)

    async def lost(self) -> None:
        """Return when none is."""
        while any(device.up for device in self.devices):
            await asyncio.sleep(0.02)


def allow_files(count: int) -> None:
    """Let this process have so many sockets, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024 if hard == resource.RLIM_INFINITY else min(count + 1024, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
