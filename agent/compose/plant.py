"""What other systems of the site are served with, where the configuration asks for it.

What few need is loaded only then: no import of it stands at the head of this file.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agent.compose.core import Core
from agent.compose.health import HealthParts
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.compose.watchdog import WatchdogParts
from agent.config import HomeAssistant, Sparkplug
from agent.errors import StoreError
from agent.health.checks.bounds import p95
from agent.health.checks.inference import WINDOW_S
from agent.health.names import Name
from agent.inference.domains.domain import Domain
from agent.protocol.commands import Command, Result
from agent.protocol.topics import Topics
from agent.records import Balance
from agent.sections.site import Site
from agent.sync.mqtt.brokers import MQTT5, MQTT311
from agent.tasks import Crew

if TYPE_CHECKING:
    from agent.sync.home_assistant.announced import Book
    from agent.sync.plant.line import Line, Served
    from agent.sync.plant.place import Place
    from agent.sync.plant.seen import DomainSeen, Seen

LEDGER_S = 5.0  # for a store that stands still: all else is told meanwhile
Loop = Callable[[], Coroutine[Any, Any, None]]
Order = Callable[[Command], Awaitable[Result]]


class PlantParts:
    """SCADA hosts and Home Assistant; nothing where neither is configured."""

    def __init__(
        self,
        core: Core,
        inference: InferenceParts,
        link: LinkParts,
        health: HealthParts,
        watchdog: WatchdogParts,
        order: Order,
        takes: Callable[[str], bool],
    ) -> None:
        """`order` accepts a command as the journal's other doors do, or raises HoldfastError;
        `takes`: whether it would, of this name."""
        self._core = core
        self._inference = inference
        self._link = link
        self._health = health
        self._watchdog = watchdog
        self._order = order
        self._takes = takes
        self.loops: list[Loop] = []  # to be run with those of the agent
        settings = core.settings
        if settings.sparkplug:
            self.loops.append(partial(self._run_sparkplug, settings.sparkplug))
        # Where it is not configured any more, what was announced is taken back.
        self._announced = core.beside("home_assistant.json")
        if settings.home_assistant or any(self._announced.parent.glob("home_assistant.*")):
            self.loops.append(partial(self._run_home_assistant, settings.home_assistant))

    async def _run_sparkplug(self, settings: Sparkplug) -> None:
        from agent.sync.sparkplug.births import Births
        from agent.sync.sparkplug.node import EdgeNode

        core, place = self._core, await self._place("sparkplug", settings)
        several = len(place.urls) > 1
        node = EdgeNode(
            *(settings, core.device, self.look, Births(core.beside("sparkplug.json"))),
            *(self._order, core.conditions, core.clock),
            patience_s=core.settings.link.connect_timeout_s if several else None,
        )
        await _beside(self._line(place, node, "sparkplug_down").run(), node.orders.run())

    async def _run_home_assistant(self, settings: HomeAssistant | None) -> None:
        from agent.sync.home_assistant.announced import Book
        from agent.sync.home_assistant.device import Entities
        from agent.sync.home_assistant.entities import topics_of

        core, book = self._core, Book(self._announced)
        if settings is None:
            await self._withdrawn(book, None, ())
            return
        place = await self._place("home_assistant", settings)
        root = f"{Topics(core.settings.link.topic_prefix, core.device).root}/home_assistant"
        topics = topics_of(settings.discovery_prefix, core.device, root)
        withdrawn = self._withdrawn(book, place, topics)
        entities = Entities(
            *(settings, core.device, root, self.look, self._order, core.conditions),
            *(random.Random(), place, None if self._embedded(settings) else book),
        )
        line = self._line(place, entities, "home_assistant_down")
        await _beside(line.run(), entities.orders.run(), withdrawn)

    def _withdrawn(
        self, book: "Book", place: "Place | None", topics: Sequence[str]
    ) -> Coroutine[Any, Any, None]:
        """Takes back what was announced where it is not any more; `place` and `topics` are of now.

        Called before anything is announced: what the book has is of before.
        """
        from agent.sync.home_assistant.device import Withdrawal

        url = place and place.urls[0]
        kept = book.kept
        if kept and (kept.place.urls[0] != url or kept.topics != [*topics]):
            book.put_off()
        former = book.former
        if former is None:
            return _nothing()
        left = former.topics
        if former.place.urls[0] == url:
            left = [one for one in left if one not in topics]
        was = replace(
            former.place,
            subject="home_assistant, formerly",
            client_id=f"{former.place.client_id}-former",
        )
        patience_s = was.settings.ack_timeout_s
        withdrawal = Withdrawal(left, patience_s, book.forget_former)
        return self._line(was, withdrawal, "home_assistant_down").run()

    def _embedded(self, site: Site) -> bool:
        """Whether it is the agent's own broker, which forgets all when it ends."""
        return site.broker_url is None and self._link.broker is not None

    async def _place(self, section: str, site: Site) -> "Place":
        from agent.sync.plant.place import place_of

        link, broker = self._core.settings.link, self._link.broker
        if broker and self._embedded(site):
            await broker.ready.wait()
        url = link.broker_url or (broker.url if broker else "")
        return place_of(section, site, link, url, self._core.device)

    def _line(self, place: "Place", served: "Served", down: Name) -> "Line":
        from agent.sync.plant.line import Line

        broker = self._link.broker
        best = MQTT311 if broker and place.urls[0] == broker.url else MQTT5
        core = self._core
        parts = (core.conditions, core.clock, random.Random(), core.known)
        return Line(place, served, down, best, *parts)

    async def look(self) -> "Seen":
        """All that the others see, now."""
        from agent.sync.plant.orders import ORDERS
        from agent.sync.plant.seen import Seen

        core, link, ledger = self._core, self._link.report.last(), None
        with suppress(StoreError, TimeoutError):  # other conditions say so
            async with asyncio.timeout(LEDGER_S):
                ledger = sum_of((await core.store.ledger.balances()).values())
        backlog = link["backlog"]
        return Seen(
            status=core.conditions.status(),
            conditions=core.conditions.all(),
            safe_mode=bool(self._watchdog.starts.safe),
            clock_trusted=core.clock.synchronised(),
            connected=link["connected"],
            paused=link["paused"],
            backlog_records=backlog and backlog["records"],
            backlog_bytes=backlog and backlog["bytes"],
            ledger=ledger,
            domains=await self._domains(),
            cpu_c=self._health.power.cpu_c,
            accelerator_c=self._health.accelerators.hottest_c(),
            orders=frozenset(filter(self._takes, ORDERS)),
        )

    async def _domains(self) -> "dict[str, DomainSeen]":
        from agent.sync.plant.seen import DomainSeen

        now_s = self._core.clock.monotonic()
        shown = await self._health.views.domains()
        return {
            one.name: DomainSeen(shown[one.name].ready, shown[one.name].ep, _p95_ms(one, now_s))
            for one in self._inference.domains.all()
        }


def sum_of(balances: Iterable[Balance]) -> Balance:
    """All streams together."""
    total = Balance(0, 0, 0, {})
    for one in balances:
        total = total.plus(one)
    return total


def _p95_ms(domain: Domain, now_s: float) -> float | None:
    """Of the last minutes' calls, from their arrival to their answer; None: there was none."""
    taken_s = [
        one.times.answered_s - one.times.arrived_s
        for one in domain.figures.traces()
        if one.times.answered_s and one.times.arrived_s >= now_s - WINDOW_S
    ]
    return round(p95(taken_s) * 1000, 3) if taken_s else None


async def _beside(*works: Coroutine[Any, Any, None]) -> None:
    """Have all done; raises what one of them meets."""
    crew = Crew()
    for one in works:
        crew.begin(one)
    try:
        await crew.run()
    finally:
        await crew.end()


async def _nothing() -> None: ...
