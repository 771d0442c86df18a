"""The edge node: born, tells what changes, is born again when asked to, and dies by its will.

What a host asks for becomes an order (commands.py). Every message but a death has a number, `seq`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.clock import Clock
from agent.config import Sparkplug as Settings
from agent.errors import ProtocolError
from agent.health.conditions import Conditions
from agent.sync.mqtt.call import QOS
from agent.sync.mqtt.connection import Connection, Will
from agent.sync.plant.line import Elsewhere
from agent.sync.plant.orders import Order, Orders
from agent.sync.plant.pulse import Pulse
from agent.sync.plant.seen import Seen
from agent.sync.sparkplug.births import Births
from agent.sync.sparkplug.commands import asked
from agent.sync.sparkplug.host import PrimaryHost
from agent.sync.sparkplug.payload import DataType, metric, payload
from agent.sync.sparkplug.points import BDSEQ, REBIRTH, Point, points

log = logging.getLogger("plant")
NAMESPACE = "spBv1.0"
SEQS = 256
BIRTH_S = 1.0  # between two births: a host may ask for as many as it likes


class EdgeNode:
    """Served over a line. `orders` is to run beside it."""

    def __init__(
        self,
        settings: Settings,
        device: str,
        look: Callable[[], Awaitable[Seen]],
        births: Births,
        order: Order,
        conditions: Conditions,
        clock: Clock,
        *,
        patience_s: float | None = None,
    ) -> None:
        """`look` sees the device. `patience_s` is how long a primary host may say nothing before
        another broker is asked; none: there is no other."""
        self._settings = settings
        self._device = device
        self._look = look
        self._births = births
        self._conditions = conditions
        self._clock = clock
        self._patience_s = patience_s
        self.orders = Orders("sparkplug", order, conditions, lambda: self._pulse.tell())
        node = settings.edge_node_id or device
        self.nbirth, self.ndeath, self.ndata, self.ncmd = (
            f"{NAMESPACE}/{settings.group_id}/{verb}/{node}"
            for verb in ("NBIRTH", "NDEATH", "NDATA", "NCMD")
        )
        self.state = f"{NAMESPACE}/STATE/{settings.primary_host_id}"
        self._aliases: dict[str, int] = {}  # once given, they stay: a write may be on its way
        self._begin()

    def _begin(self) -> None:
        """Nothing is left over from the last connection."""
        self._pulse = Pulse(self._conditions.changes, self._settings.sample_s)
        self._host = PrimaryHost()
        self._told: dict[str, Point] = {}  # what the hosts know
        self._reborn = False  # it is to be
        self._born_s = 0.0
        self._seq = 0

    async def will(self) -> Will:
        """A death with the number of the birth to come."""
        number = await self._births.next()
        return Will(self.ndeath, self._death(number), retain=False, always=True)

    def unplaced(self) -> None:
        """No CONNECT went out with that number."""
        self._births.unused()

    def leave(self, connection: Connection) -> None:
        """The death of one that goes with a word."""
        connection.leave(self.ndeath, self._death(self._births.number), retain=False, qos=QOS)

    async def serve(self, connection: Connection) -> None:
        """All of one session."""
        self._begin()
        await connection.subscribe(self.ncmd)
        if self._settings.primary_host_id:
            await connection.subscribe(self.state)
            await self._host_there()
        watching = asyncio.create_task(self._pulse.watch())
        try:
            await self._live(connection)
        finally:
            watching.cancel()

    async def _host_there(self) -> None:
        """Return when the primary host is."""
        try:
            async with asyncio.timeout(self._patience_s):
                while not self._host.online:
                    self._tell_away()
                    if self._patience_s and self._host.online is False:
                        raise Elsewhere("the primary host is offline")
                    await self._pulse.beat()
        except TimeoutError as error:
            raise Elsewhere("the primary host says nothing") from error
        self._conditions.clear("sparkplug_host_away", "sparkplug")

    def _tell_away(self) -> None:
        host = self._settings.primary_host_id
        said = self._host.fault or ("nothing" if self._host.online is None else "it is offline")
        self._conditions.hold(
            "sparkplug_host_away",
            "sparkplug",
            "note",
            f"the primary host {host} is not there, so nothing is told: on {self.state}: {said}",
            "start it, or take sparkplug.primary_host_id away to tell whoever listens",
        )

    async def _live(self, connection: Connection) -> None:
        await self._be_born(connection)
        while True:
            await self._pulse.beat()
            if self._settings.primary_host_id and not self._host.online:
                self._tell_away()
                raise Elsewhere("the primary host is offline")
            if self._reborn:
                await asyncio.sleep(self._born_s + BIRTH_S - self._clock.monotonic())
                await self._be_born(connection)
            else:
                await self._tell_data(connection)

    async def _be_born(self, connection: Connection, found: dict[str, Point] | None = None) -> None:
        """Tell all there is, with the number of the death in the will."""
        self._reborn = False  # one that is asked for meanwhile is another one
        found = found or await self._points()
        for name in (BDSEQ, *found):
            self._aliases.setdefault(name, len(self._aliases) + 1)
        now_ms, number = self._now_ms(), Point(DataType.INT64, self._births.number)
        metrics = (
            metric(one.datatype, one.value, now_ms, name=name, alias=self._alias_of(name))
            for name, one in {BDSEQ: number, **found}.items()
        )
        self._seq, self._told = 0, found
        connection.tell(self.nbirth, payload(now_ms, metrics, 0))
        self._born_s = self._clock.monotonic()

    def _alias_of(self, name: str) -> int | None:
        return None if name == REBIRTH else self._aliases[name]  # so the specification wants it

    async def _tell_data(self, connection: Connection) -> None:
        """Tell what has changed, if anything has."""
        found = await self._points()
        if self._reborn:  # from then on no data may go before the birth
            return
        if found.keys() - self._told.keys():  # no data may be of what was not born
            await self._be_born(connection, found)
            return
        gone = self._told.keys() - found.keys()
        found |= {name: Point(self._told[name].datatype, None) for name in gone}
        changed = {name: one for name, one in found.items() if one.moved(self._told[name])}
        if not changed:
            return
        now_ms, self._seq = self._now_ms(), (self._seq + 1) % SEQS
        metrics = (
            metric(one.datatype, one.value, now_ms, alias=self._aliases[name])
            for name, one in changed.items()
        )
        self._told |= changed
        connection.tell(self.ndata, payload(now_ms, metrics, self._seq))

    async def _points(self) -> dict[str, Point]:
        return points(await self._look(), self._device, self.orders.last)

    def _death(self, number: int) -> bytes:
        now_ms = self._now_ms()
        return payload(now_ms, [metric(DataType.INT64, number, now_ms, name=BDSEQ)])

    def _now_ms(self) -> int:
        return max(0, int(self._clock.wall() * 1000))

    def heard(self, topic: str, content: bytes) -> None:
        """A message came."""
        if topic == self.state:
            self._host.heard(content)
            if self._host.fault:
                log.warning("%s: %s", self.state, self._host.fault)
            self._pulse.tell()
        elif topic == self.ncmd:
            self._hear_command(content)

    def kept(self, topic: str, content: bytes) -> None:
        """One that the broker had kept: a host's state is; a command must not be, for it would be
        carried out at each connection."""
        if topic == self.ncmd:
            self.orders.refuse("an NCMD that was retained", f"publish nothing retained to {topic}")
        else:
            self.heard(topic, content)

    def _hear_command(self, content: bytes) -> None:
        try:
            rebirth, writes = asked(content, {at: name for name, at in self._aliases.items()})
        except ProtocolError as error:
            self.orders.refuse(str(error), error.hint or "send a payload as Tahu's libraries do")
            return
        for one in writes:
            self.orders.give(one.verb, id=one.id)
        if rebirth:
            self._reborn = True
            self._pulse.tell()
