"""One more connection beside the link's, for one system of the site; it begins again when it ends.

What goes wrong on it, also what nobody expected, is a condition: the device does without.
"""

import asyncio
import logging
import random
from typing import Any, Protocol

from msgspec.structs import replace
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from agent.clock import Clock
from agent.errors import LinkError
from agent.health.conditions import Conditions
from agent.health.names import Name
from agent.known_time import KnownTime
from agent.sync.mqtt.backoff import Backoff
from agent.sync.mqtt.brokers import Brokers
from agent.sync.mqtt.connection import Call, Caller, Connection, Message, Will
from agent.sync.plant.place import Place

log = logging.getLogger("plant")
STABLE_S = 30.0  # a connection that lasted this long begins the backoff anew
FAULT_S = 30.0  # after what nobody expected


class Done(LinkError):
    """There is nothing more to do over this line."""


class Elsewhere(LinkError):
    """Whoever is served wants another broker, and has said why."""


class Served(Protocol):
    """Who is served over the line."""

    async def will(self) -> Will | None:
        """That of the next CONNECT."""

    def unplaced(self) -> None:
        """That CONNECT never went out."""

    async def serve(self, connection: Connection) -> None:
        """All that is done over one connection. Raises LinkError where it is to end, Done where
        there is to be no other."""

    def heard(self, topic: str, payload: bytes) -> None:
        """A message came."""

    def kept(self, topic: str, payload: bytes) -> None:
        """One that the broker had kept."""

    def leave(self, connection: Connection) -> None:
        """The last word over a connection that may yet take one."""


class Line:
    """Serves one, until that is Done."""

    def __init__(
        self,
        place: Place,
        served: Served,
        down: Name,
        best: MQTTProtocolVersion,
        conditions: Conditions,
        clock: Clock,
        jitter: random.Random,
        known: KnownTime,
    ) -> None:
        """`down` is the condition that holds while there is no connection."""
        self._place = place
        self._served = served
        self._down: Name = down
        self._conditions = conditions
        self._clock = clock
        self._brokers = Brokers(place.urls, clock, best)
        settings = place.settings
        self._backoff = Backoff(settings.backoff_s_min, settings.backoff_s_max, jitter)
        self._known = known
        self._caller = Caller(settings, clock, known)

    async def run(self) -> None:
        """Serve, for ever, or until it is Done."""
        self._tell(LinkError("not connected yet"))
        while True:
            task = asyncio.create_task(self._live())
            try:
                await asyncio.wait([task])
            finally:
                task.cancel()
                await asyncio.wait([task])
            fault = task.exception()
            if fault is None:
                self._conditions.clear(self._down, self._place.subject)
                return
            log.error("%s: a fault in the agent", self._place.section, exc_info=fault)
            remedy = "report it, with `holdfast logs`; it begins anew by itself"
            self._tell(LinkError(f"a fault in the agent: {fault!r}", remedy))
            await asyncio.sleep(FAULT_S)

    async def _live(self) -> None:
        while True:
            began = self._clock.monotonic()
            fault, accepted = await self._one_connection()
            if isinstance(fault, Done):
                return
            if not isinstance(fault, Elsewhere):
                self._tell(fault)
            if accepted:
                lasted = self._clock.monotonic() - began > STABLE_S
                if lasted:
                    self._backoff.begin_anew()
                self._brokers.lost(fault, lasted=lasted and not isinstance(fault, Elsewhere))
            elif not self._brokers.failed(fault):
                continue
            await asyncio.sleep(self._backoff.wait_s())

    async def _one_connection(self) -> tuple[LinkError, bool]:
        """Why it ended, and whether the broker had accepted it."""
        accepted, broker, placed = False, self._brokers.current, self._caller.placed
        will = await self._served.will()
        if will and not broker.retains:
            will = replace(will, retain=False)
        call = Call(broker.url, self._place.client_id, broker.version, will)
        try:
            async with self._connection(call) as connection:
                accepted = True
                await self._serve(connection)
        except LinkError as error:
            # One that took too long may yet go out, from the thread that was left to it.
            if self._caller.placed == placed and not isinstance(error.__cause__, TimeoutError):
                self._served.unplaced()
            return error, accepted
        return LinkError("closed"), accepted

    def _connection(self, call: Call) -> Connection:
        return Connection(
            *(self._place.settings, self._clock, self._caller, call),
            *(self._came, self._answered, self._known),
        )

    def _came(self, message: Message) -> None:
        hear = self._served.kept if message.retained else self._served.heard
        hear(message.topic, message.payload)
        message.taken()

    async def _serve(self, connection: Connection) -> None:
        self._conditions.clear(self._down, self._place.subject)
        log.info("%s: connected to %s", self._place.section, self._brokers.current.url)
        serving = asyncio.create_task(self._served.serve(connection))
        try:
            either: list[asyncio.Future[Any]] = [serving, connection.ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            self._served.leave(connection)
        fault = None if serving.cancelled() else serving.exception()
        if fault and not isinstance(fault, LinkError):
            raise fault
        if connection.ended.done():
            reason = connection.ended.result()
            raise LinkError(f"the connection ended: {reason}", connection.remedy)
        raise fault or LinkError("closed")

    def _answered(self, topic: str, code: ReasonCode) -> None:
        if not code.is_failure:
            self._conditions.clear("broker_refused", topic)
            return
        cause = f"the broker refused a message: {code}"
        remedy = f"allow {self._place.client_id} to use {topic} on the broker"
        self._conditions.hold("broker_refused", topic, "warning", cause, remedy)

    def _tell(self, fault: LinkError) -> None:
        named, subject = self._place.named, self._place.subject
        remedy = named(fault.hint) or "check the network and the broker; it is tried again"
        self._conditions.hold(self._down, subject, "warning", named(str(fault)), remedy)
