"""The device in Home Assistant: announced, kept up to date, its buttons made orders."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from agent.config import HomeAssistant as Settings
from agent.errors import LinkError
from agent.health.conditions import Conditions
from agent.sync.home_assistant.announced import Announced, Book
from agent.sync.home_assistant.entities import (
    BUTTONS,
    PRESS,
    Component,
    attributes,
    components,
    discovery,
    state,
    topics_of,
)
from agent.sync.mqtt.connection import Connection, Will
from agent.sync.plant.line import Done
from agent.sync.plant.orders import Order, Orders
from agent.sync.plant.place import Place
from agent.sync.plant.pulse import Pulse
from agent.sync.plant.seen import Seen

ONLINE, OFFLINE = b"online", b"offline"
AGAIN_S_MAX = 1.0  # after its birth, not all devices at once


class Entities:
    """Served over a line. `orders` is to run beside it."""

    def __init__(
        self,
        settings: Settings,
        device: str,
        root: str,
        look: Callable[[], Awaitable[Seen]],
        order: Order,
        conditions: Conditions,
        jitter: random.Random,
        place: Place,
        book: Book | None,
    ) -> None:
        """`root` is where the topics of these entities begin. `book` keeps what was announced at
        the place; none: it need not be taken back."""
        self._settings = settings
        self._device = device
        self._root = root
        self._look = look
        self._conditions = conditions
        self._jitter = jitter
        self._place = place
        self._book = book
        self.orders = Orders("home_assistant", order, conditions, lambda: None)
        self._topics = topics_of(settings.discovery_prefix, device, root)
        self._buttons = {f"{self._root}/{key}": verb for key, verb in BUTTONS.items()}
        self._verbs = {_folded(topic): verb for topic, verb in self._buttons.items()}
        self._made: dict[str, Component] = {}  # what was announced
        # What was so before, with its platform.
        self._gone = dict(book.kept.components) if book and book.kept else {}
        self._begin()

    def _begin(self) -> None:
        """Nothing is left over from the last connection."""
        self._pulse = Pulse(self._conditions.changes, self._settings.sample_s)
        self._asked = False  # Home Assistant has begun
        self._told: dict[str, bytes] = {}  # the last payload by topic

    async def will(self) -> Will:
        """It is not there any more."""
        return Will(self._topics.availability, OFFLINE)

    def unplaced(self) -> None:
        """Nothing to take back."""

    def leave(self, connection: Connection) -> None:
        """It goes."""
        connection.leave(self._topics.availability, OFFLINE)

    async def serve(self, connection: Connection) -> None:
        """All of one connection."""
        self._begin()
        for topic in (self._settings.birth_topic, *self._buttons):
            await connection.subscribe(topic)
        watching = asyncio.create_task(self._pulse.watch())
        try:
            while True:
                await self._tell(connection)
                await self._pulse.beat()
                if self._asked:
                    await asyncio.sleep(self._jitter.uniform(0.0, AGAIN_S_MAX))
                    self._asked = False
                    self._told.clear()
        finally:
            watching.cancel()

    def heard(self, topic: str, content: bytes) -> None:
        """A message came."""
        if _folded(topic) == _folded(self._settings.birth_topic):
            if content == ONLINE:
                self._asked = True
                self._pulse.tell()
        elif (verb := self._verbs.get(_folded(topic))) is not None:
            if content == PRESS:
                self.orders.give(verb)
            else:
                self.orders.refuse(f"{topic}: {len(content)} bytes that are not PRESS", "send that")

    def kept(self, topic: str, content: bytes) -> None:
        """One that the broker had kept. A button must not be: it would be pressed at each
        connection. That Home Assistant was there is no news, for all is told now."""
        if _folded(topic) in self._verbs:
            self.orders.refuse(f"{topic}: a button that was retained", "publish nothing retained")

    async def _tell(self, connection: Connection) -> None:
        """Tell what is not told yet."""
        seen = await self._look()
        made = self._made | components(seen, self._root, self._gone)
        domains = {f"domain_{name}" for name in seen.domains}
        left = {one for one in made if one.startswith("domain_") and one not in domains}
        self._gone |= {key: made[key]["platform"] for key in left}
        self._made = {key: one for key, one in made.items() if key not in left}
        gone = {key: of for key, of in self._gone.items() if key not in self._made}
        name = self._settings.name or self._device
        config = discovery(self._device, name, self._made, gone, self._root)
        await self._keep(gone)
        told = (config, state(seen), attributes(seen.problems))
        payloads = (*(msgspec.json.encode(one) for one in told), ONLINE)
        for topic, payload in zip(self._topics, payloads, strict=True):
            if self._told.get(topic) != payload:
                await connection.publish(topic, payload, retain=True)
                self._told[topic] = payload

    async def _keep(self, gone: dict[str, str]) -> None:
        if self._book:
            platforms = {key: one["platform"] for key, one in self._made.items()}
            await self._book.keep(Announced(self._place, [*self._topics], platforms | gone))


def _folded(topic: str) -> str:
    """RabbitMQ makes a slash of each dot."""
    return topic.replace(".", "/")


class Withdrawal:
    """Takes back what was announced at a place that serves no more."""

    def __init__(self, topics: list[str], patience_s: float, done: Callable[[], None]) -> None:
        """`done` is called once the broker has taken all of it."""
        self._topics = topics
        self._patience_s = patience_s
        self._done = done

    async def will(self) -> None:
        """Nobody misses it."""

    def unplaced(self) -> None:
        """Nothing to take back."""

    def leave(self, connection: Connection) -> None:
        """It goes without a word."""

    async def serve(self, connection: Connection) -> None:
        """An empty message, retained, removes what lies there."""
        answers = [await connection.publish(one, b"", retain=True) for one in self._topics]
        try:
            async with asyncio.timeout(self._patience_s):
                for answer in answers:
                    await answer
        except TimeoutError as error:
            raise LinkError(f"no answer within {self._patience_s} s") from error
        self._done()
        raise Done("all is taken back")

    def heard(self, topic: str, content: bytes) -> None:
        """It asked for nothing."""

    def kept(self, topic: str, content: bytes) -> None:
        """It asked for nothing."""
