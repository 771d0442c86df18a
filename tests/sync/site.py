"""What the tests of SCADA hosts and Home Assistant share: a device to look at, orders, a line."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from agent import config
from agent.clock import Clock
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.health.names import Name
from agent.known_time import KnownTime
from agent.protocol.commands import Command, Result
from agent.records import Balance
from agent.sections.site import Site
from agent.sync.mqtt.brokers import MQTT5
from agent.sync.plant.line import Line, Served
from agent.sync.plant.orders import ORDERS
from agent.sync.plant.place import Place, place_of
from agent.sync.plant.seen import DomainSeen, Seen

SEEN = Seen(
    status="healthy",
    conditions=[],
    safe_mode=False,
    clock_trusted=True,
    connected=True,
    paused=False,
    backlog_records=0,
    backlog_bytes=0,
    ledger=Balance(10, 4, 5, {"full": 1}),
    domains={"audio": DomainSeen(True, "CPUExecutionProvider", 12.5)},
    cpu_c=50.0,
    accelerator_c=None,
    orders=frozenset(ORDERS),
)


class Watched:
    """A device that others look at; what they order is noted, and ends as the test says."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.clock = Clock()
        self.conditions = Conditions(self.clock)
        self.seen = SEEN
        self.looks = 0
        self.orders: list[Command] = []
        self.answer: Result | HoldfastError | None = None
        made = {"ack_from": "ingest", "broker_url": url, "backoff_s_min": 0.05}
        self.link = msgspec.convert({**made, "backoff_s_max": 0.1}, config.Link)

    def shows(self, **changes: Any) -> None:
        self.seen = replace(self.seen, **changes)

    async def look(self) -> Seen:
        self.looks += 1
        return self.seen

    async def order(self, command: Command) -> Result:
        self.orders.append(command)
        if isinstance(self.answer, HoldfastError):
            raise self.answer
        return self.answer or Result(
            id=command.id, name=command.name, device="dev", state="accepted", number=1
        )

    def place(self, section: str, settings: Site) -> Place:
        return place_of(section, settings, self.link, str(self.link.broker_url), "dev")

    def line(self, place: Place, served: Served, down: Name, version: Any = MQTT5) -> Line:
        known = KnownTime(self.folder / "known-time.json", self.clock)
        parts = (self.conditions, self.clock, random.Random(1), known)
        return Line(place, served, down, version, *parts)

    def holds(self, name: str) -> bool:
        return any(one.name == name for one in self.conditions.all())

    def cause(self, name: str) -> str:
        return next((one.cause for one in self.conditions.all() if one.name == name), "")


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """These run meanwhile; none of them may end by itself, but for one that is done."""
    tasks = [asyncio.create_task(one) for one in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()
