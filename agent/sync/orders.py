"""The door of commands at the link: orders in, results out.

An order is acknowledged to the broker once the journal has it, or has it that it was refused; one
that the store could not take is not, and comes again. A result is told until the broker says that
somebody has it, in this connection or a later one; where nobody reads results, the record in the
stream `commands` tells the cloud.
"""

import asyncio
import base64
import logging
from collections.abc import Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from agent.commands.desk import Desk
from agent.errors import LinkError, StoreError
from agent.protocol.commands import Order, Result, Unread, decode
from agent.protocol.topics import Topics
from agent.store.journal import Entry, Journal, Refusal
from agent.sync.mqtt.connection import Connection, Message
from agent.sync.mqtt.faults import TooLarge
from agent.sync.mqtt.reasons import NOBODY
from agent.tasks import Crew
from agent.words import quoted

log = logging.getLogger("commands")
AT_ONCE_MAX = 1000  # orders that the store has not taken yet; of the rest the broker keeps all
TELL_MAX = 100  # results told in one go
AGAIN_S = 60.0  # after which it is tried again to find somebody who reads results
RETRY_S = 2.0  # until the store takes an order
REPLY_BYTES_MAX = 1024  # of a response topic, and of correlation data
CORRELATION_BYTES_MAX = 4096
REPLY_LEVELS_MAX = 32  # of a topic; Mosquitto hangs up beyond 200, others sooner


class Reply(Struct, frozen=True):
    """Where MQTT 5 wants the answer: a topic, and what it knows the question by (base64)."""

    topic: str
    correlation: str = ""


class Orders:
    """One for all connections, one after the other."""

    def __init__(self, desk: Desk, journal: Journal, topics: Topics) -> None:
        self.topics: Sequence[str] = (topics.cmd,)
        self._topic = topics.result
        self._desk = desk
        self._journal = journal
        self._crew = Crew()
        self._coming = 0
        self._under_way: dict[int, Result] = {}  # to be told, the newest of each alone
        self._ended = False  # there may be results that nobody has
        self._more = asyncio.Event()
        desk.listeners.append(self._listen)

    def heard(self, message: Message) -> None:
        """An order came."""
        if self._coming < AT_ONCE_MAX:  # else it is not taken, and comes with the next connection
            self._coming += 1
            self._crew.begin(self._take(message))

    async def run(self, connection: Connection) -> None:
        """Take and tell, as long as this connection lasts."""
        self._ended = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._crew.run())
                group.create_task(self._speak(connection))
        finally:
            await self._crew.end()
            self._under_way.clear()

    async def _take(self, message: Message) -> None:
        try:
            reply = _reply(message)
            while True:
                try:
                    await self._order(message.payload, reply)
                    break
                except StoreError:  # the parts that need the store say so
                    await asyncio.sleep(RETRY_S)
            message.taken()
        finally:
            self._coming -= 1

    async def _order(self, payload: bytes, reply: bytes | None) -> None:
        """Raises StoreError."""
        try:
            order = decode(payload)
        except Unread as error:
            result = await self._desk.unread(error, "mqtt", reply)
        else:
            result = await self._surely(order, reply)
        if result.ended and result.number:  # long ago: whoever orders it again is answered again
            self._under_way[result.number] = result
            self._more.set()

    async def _surely(self, order: Order, reply: bytes | None) -> Result:
        """Order it. Raises StoreError. What makes the agent stumble would come again and again."""
        try:
            return await self._desk.order(order, "mqtt", reply=reply)
        except StoreError:
            raise
        except Exception as error:  # whatever it is: the broker would send it again, for ever
            log.exception("an order was refused: a fault in the agent")
            command, fault = order.command, quoted(f"a fault in the agent: {error!r}")
            return await self._desk.unread(
                Unread(fault, "failed", command.id, command.name), "mqtt"
            )

    def _listen(self, result: Result) -> None:
        if result.ended:
            self._under_way.pop(result.number, None)
            self._ended = True
        else:
            self._under_way[result.number] = result
        self._more.set()

    async def _speak(self, connection: Connection) -> None:
        while True:
            self._more.clear()
            under_way, self._under_way = self._under_way, {}
            for result in under_way.values():
                await self._publish(connection, self._topic, result)
            if self._ended:
                self._ended = False  # what ends from now on is told next
                with suppress(StoreError):  # the parts that need the store say so
                    await self._tell_ends(connection)
            if not (self._under_way or self._ended):
                await self._something()

    async def _something(self) -> None:
        """Wait for what there is to tell; what nobody read is tried again after AGAIN_S."""
        try:
            async with asyncio.timeout(AGAIN_S):
                await self._more.wait()
        except TimeoutError:
            self._ended = True

    async def _tell_ends(self, connection: Connection) -> None:
        """Tell all results that nobody has, TELL_MAX at a time. Raises LinkError, StoreError."""
        after, after_refusal = 0, 0
        while True:
            entries, refusals = await self._journal.untold(TELL_MAX, after, after_refusal)
            if not entries and not refusals:
                return
            ends: list[Entry | Refusal] = [*entries, *refusals]
            said = [await self._end(connection, one) for one in ends]
            heard = [await self._heard(connection, answers) for answers in said]
            taken, noticed = heard[: len(entries)], heard[len(entries) :]
            if any(heard):
                await self._journal.told(_those(entries, taken), _those(refusals, noticed))
            after = entries[-1].number if entries else after
            after_refusal = refusals[-1].number if refusals else after_refusal

    async def _heard(
        self, connection: Connection, answers: "Sequence[asyncio.Future[int]]"
    ) -> bool:
        """Whether somebody has it, at any of its places. Raises LinkError at the end of the
        connection."""
        had = False
        for answer in answers:
            try:
                had = await answer != NOBODY or had
            except LinkError:  # the broker lets us tell nothing there: a condition says so
                if connection.ended.done():
                    raise
        return had

    async def _end(
        self, connection: Connection, ended: Entry | Refusal
    ) -> "Sequence[asyncio.Future[int]]":
        """Publish a final result, at each of its places; the futures of the broker's word.

        A place that somebody else named is told once, and no more: there are brokers that hang up
        on a topic that they do not like, and would again in each later connection.
        """
        result, said = self._desk.told(ended), []
        if ended.reply:
            reply = msgspec.json.decode(ended.reply, type=Reply)
            correlation = base64.b64decode(reply.correlation)
            await self._journal.answering(ended.number, refusal=isinstance(ended, Refusal))
            said.append(await self._publish(connection, reply.topic, result, correlation))
        return [*said, await self._publish(connection, self._topic, result)]

    async def _publish(
        self, connection: Connection, topic: str, result: Result, answers: bytes | None = None
    ) -> "asyncio.Future[int]":
        """Raises LinkError. A result that the broker does not take goes without its content."""
        payload = msgspec.json.encode(result)
        try:
            return await connection.publish(topic, payload, answers=answers)
        except TooLarge as error:
            short = msgspec.structs.replace(result, result=None, message=str(error))
            return await connection.publish(topic, msgspec.json.encode(short), answers=answers)


def _those(told: Sequence[Entry | Refusal], heard: Sequence[bool]) -> list[int]:
    return [one.number for one, had in zip(told, heard, strict=True) if had]


def _reply(message: Message) -> bytes | None:
    """What MQTT 5 says of the answer, to be kept; a topic that cannot be one is not answered."""
    topic, correlation = message.reply, message.correlation or b""
    if not topic or len(topic.encode()) > REPLY_BYTES_MAX or set(topic) & {"+", "#", "\0"}:
        return None
    if topic.count("/") >= REPLY_LEVELS_MAX or len(correlation) > CORRELATION_BYTES_MAX:
        return None
    return msgspec.json.encode(Reply(topic, base64.b64encode(correlation).decode()))
