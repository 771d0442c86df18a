"""Many devices on one broker: real links, without a store beneath them.

A `Crowd` lives in the loop that it is entered in; bench/reconnect.py and bench/crowd.py have one in
each process.
"""

import asyncio
import random
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

import msgspec

from agent import config
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.known_time import KnownTime
from agent.protocol.presence import Heartbeat
from agent.records import Balance
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.sync.link import Link
from agent.sync.mqtt.connection import Connection
from agent.sync.up.uplink import Uplink
from tests.sim.shelf import EPOCH, STREAM, Shelf

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
        self.name = name
        self._clock = Clock()
        self.waits = Waits(seed, self._clock)
        told = {"ack_from": "ingest", "broker_url": url, **settings}
        self._settings = msgspec.convert(told, config.Link)
        self._conditions = Conditions(self._clock)
        self._pace = Pace(self._settings, self._clock)
        self._link = Link(
            *(self._settings, url, name, lambda: EPOCH),
            *(self, self._beat, self._conditions, self._clock),  # type: ignore[arg-type]
            *(self.waits, "0.0.0", self._pace, KnownTime(Path("/nowhere"), self._clock)),
        )

    async def live(self) -> None:
        """For ever."""
        await self._link.run()

    async def run(self, connection: Connection) -> None:
        """As Uplink's: the connection is ready."""
        self.served.append(self._clock.monotonic())
        self.up = True
        try:
            await self._send(connection)
        finally:
            self.up = False

    async def _send(self, _: Connection) -> None:
        await asyncio.Event().wait()

    def heard(self, payload: bytes) -> None:
        """As Uplink's: nobody acknowledges anything here."""

    def _ledger(self) -> dict[str, dict[str, Balance]]:
        return {}

    async def _beat(self) -> Heartbeat:
        return Heartbeat(
            device=self.name,
            epoch=EPOCH,
            uptime_s=0,
            status="healthy",
            conditions=[],
            ledger=self._ledger(),
        )


class Sender(Device):
    """One that sends: a real uplink too, over a shelf in place of the store."""

    def __init__(self, name: str, url: str, seed: int, settings: dict[str, object]) -> None:
        super().__init__(name, url, seed, settings)
        self.shelf = Shelf(self._clock)
        self._uplink = Uplink(
            *(self._settings, name, self.shelf, self._conditions, self._clock),  # type: ignore[arg-type]
            *(self._pace, Progress(self._clock)),
        )

    async def _send(self, connection: Connection) -> None:
        await self._uplink.run(connection)

    def heard(self, payload: bytes) -> None:
        """As Uplink's."""
        self._uplink.heard(payload)

    def _ledger(self) -> dict[str, dict[str, Balance]]:
        return {EPOCH: {STREAM: self.shelf.balance}}


D = TypeVar("D", bound=Device)


def crowd_of(made: type[D], url: str, count: int, seed: int = 0, **settings: object) -> "Crowd[D]":
    """So many devices, with names and chance of their own by `seed`."""
    return Crowd([made(f"device-{seed + i}", url, seed + i, settings) for i in range(count)])


async def add_records(senders: Sequence[Sender], per_device_s: float) -> None:
    """For ever, each makes so many a second, one after the other."""
    clock = Clock()
    at = clock.monotonic()
    while True:
        for sender in senders:
            at += 1 / (per_device_s * len(senders))
            if (wait_s := at - clock.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            sender.shelf.add()


class Crowd(Generic[D]):
    """Devices that are connected from the entry to the exit."""

    def __init__(self, devices: Sequence[D]) -> None:
        self.devices = devices
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

    async def connected(self, some: Sequence[D] | None = None) -> None:
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
