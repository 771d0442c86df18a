"""The twin's door at the link: what is wanted comes in, what is goes out, both retained."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from agent.commands.trust import Refused
from agent.commands.twin import Twin
from agent.errors import LinkError, ProtocolError, StoreError
from agent.health.conditions import Conditions
from agent.protocol.topics import Topics
from agent.protocol.twin import decode
from agent.sync.mqtt.connection import Connection, Message
from agent.tasks import Crew

log = logging.getLogger("twin")


class Twins:
    """One for all connections, one after the other."""

    def __init__(self, twin: Twin, topics: Topics, conditions: Conditions) -> None:
        self.topics: Sequence[str] = (topics.desired,)
        self._reported = topics.reported
        self._twin = twin
        self._conditions = conditions
        self._crew = Crew()

    def heard(self, message: Message) -> None:
        """A desired document came; none, as a broker keeps of one that was taken away, is none."""
        if message.payload:
            self._crew.begin(self._take(message))
        else:
            message.taken()

    async def run(self, connection: Connection) -> None:
        """Tell what is, at each change, as long as this connection lasts."""
        try:
            seen = -1
            while True:
                number = self._twin.changes.number
                if number != seen and self._twin.reported is not None:
                    payload = msgspec.json.encode(self._twin.reported)
                    answer = await connection.publish(self._reported, payload, retain=True)
                    await self._heard(connection, answer)
                    seen = number
                await self._twin.changes.after(number)
        finally:
            await self._crew.end()

    async def _heard(self, connection: Connection, answer: "asyncio.Future[int]") -> None:
        try:
            await answer
        except LinkError:
            if connection.ended.done():
                raise  # else the broker lets us tell nothing there: a condition says so

    async def _take(self, message: Message) -> None:
        try:
            await self._twin.want(decode(message.payload))
        except StoreError:
            return  # it is retained: it comes with the next connection
        except (ProtocolError, Refused) as error:
            log.warning("what the cloud wants is refused: %s", error)
            self._conditions.hold(
                *("twin_refused", "twin", "warning", str(error)),
                error.hint or "send a document that this device can believe (docs/twin.md)",
            )
        else:
            self._conditions.clear("twin_refused", "twin")
        message.taken()
