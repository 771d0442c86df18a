"""The door of commands at the link: orders in, results out (results.py).

An order is acknowledged to the broker once the journal has it, or has it that it was refused; one
that the store could not take is not, and comes again. A result is told until the broker says that
somebody has it, in this connection or a later one; where nobody reads results, the record in the
stream `commands` tells the cloud.
"""

import asyncio
import base64
import logging
from collections.abc import Sequence

import msgspec

from agent.clock import Clock
from agent.commands.desk import Desk
from agent.errors import StoreError
from agent.protocol.commands import Order, Result, Unread, decode
from agent.protocol.topics import Topics
from agent.store.journal import Journal
from agent.sync.budget.pace import Pace
from agent.sync.mqtt.connection import Connection, Message
from agent.sync.results import Reply, Results
from agent.tasks import Crew
from agent.words import quoted

log = logging.getLogger("commands")
AT_ONCE_MAX = 1000  # orders that the store has not taken yet; of the rest the broker keeps all
RETRY_S = 2.0  # until the store takes an order
REPLY_BYTES_MAX = 1024  # of a response topic, and of correlation data
CORRELATION_BYTES_MAX = 4096
REPLY_LEVELS_MAX = 32  # of a topic; Mosquitto hangs up beyond 200, others sooner


class Orders:
    """One for all connections, one after the other."""

    def __init__(
        self, desk: Desk, journal: Journal, topics: Topics, pace: Pace, clock: Clock
    ) -> None:
        self.topics: Sequence[str] = (topics.cmd,)
        self._desk = desk
        self._results = Results(desk, journal, topics.result, pace, clock)
        self._crew = Crew()
        self._coming = 0

    def heard(self, message: Message) -> None:
        """An order came."""
        if self._coming < AT_ONCE_MAX:  # else it is not taken, and comes with the next connection
            self._coming += 1
            self._crew.begin(self._take(message))

    async def run(self, connection: Connection) -> None:
        """Take and tell, as long as this connection lasts."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._crew.run())
                group.create_task(self._results.run(connection))
        finally:
            await self._crew.end()

    async def _take(self, message: Message) -> None:
        try:
            reply = _reply(message)
            while True:
                try:
                    await self._order(message.payload, reply, again=not message.retained)
                    break
                except StoreError:  # the parts that need the store say so
                    await asyncio.sleep(RETRY_S)
            message.taken()
        finally:
            self._coming -= 1

    async def _order(self, payload: bytes, reply: bytes | None, *, again: bool) -> None:
        """`again`: a known id was ordered once more; what a broker retains comes with each
        connection, and nobody asks. Raises StoreError."""
        try:
            order = decode(payload)
        except Unread as error:
            result = await self._desk.unread(error, "mqtt", reply)
        else:
            result = await self._surely(order, reply, again=again)
        if again or not result.ended:
            self._results.asked(result, elsewhere=reply is not None)

    async def _surely(self, order: Order, reply: bytes | None, *, again: bool) -> Result:
        """Order it. Raises StoreError. What makes the agent stumble would come again and again."""
        try:
            return await self._desk.order(order, "mqtt", reply=reply, again=again)
        except StoreError:
            raise
        except Exception as error:  # whatever it is: the broker would send it again, for ever
            log.exception("an order was refused: a fault in the agent")
            command, fault = order.command, quoted(f"a fault in the agent: {error!r}")
            return await self._desk.unread(
                Unread(fault, "failed", command.id, command.name), "mqtt"
            )


def _reply(message: Message) -> bytes | None:
    """What MQTT 5 says of the answer, to be kept; a topic that cannot be one is not answered."""
    topic, correlation = message.reply, message.correlation or b""
    if not topic or len(topic.encode()) > REPLY_BYTES_MAX or set(topic) & {"+", "#", "\0"}:
        return None
    if topic.count("/") >= REPLY_LEVELS_MAX or len(correlation) > CORRELATION_BYTES_MAX:
        return None
    return msgspec.json.encode(Reply(topic, base64.b64encode(correlation).decode()))
