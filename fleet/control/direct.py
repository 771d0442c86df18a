"""Orders over MQTT at once, without a database: one connection, until the last words came.

What is not answered by then is left: nobody gives it again.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.errors import LinkError, ProtocolError
from agent.protocol.commands import Result
from agent.protocol.envelope import from_json
from agent.protocol.topics import Topics
from agent.words import quoted
from fleet.control.book import MESSAGE_CHARS_MAX, Kept
from fleet.control.orders import Order
from fleet.control.words import is_news
from fleet.mqtt.connection import MQTT5, MQTT311, Broker, Connection, Message, Unspoken


async def given(broker: Broker, orders: Sequence[Order], wait_s: float) -> list[Kept]:
    """Publish these, and take their results for `wait_s` at most. Raises LinkError, ConfigError."""
    direct = _Direct(broker.prefix, orders)
    connection = await _connected(broker, direct)
    try:
        topics = {Topics(broker.prefix, one.device): one for one in orders}
        await connection.subscribe({topic.result: 1 for topic in topics})
        for topic, one in topics.items():
            await (await connection.publish(topic.cmd, one.payload.encode(), retain=False))
        done = asyncio.create_task(direct.done.wait())
        both: list[asyncio.Future[Any]] = [connection.ended, done]
        await asyncio.wait(both, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        if connection.ended.done():
            raise LinkError(f"the connection ended: {connection.ended.result()}")
    finally:
        await connection.__aexit__()
    return direct.kept


async def _connected(broker: Broker, direct: "_Direct") -> Connection:
    client_id = f"holdfast-direct-{secrets.token_hex(8)}"
    try:
        return await Connection(broker, client_id, MQTT5, direct.heard, fresh=True).__aenter__()
    except Unspoken:
        return await Connection(broker, client_id, MQTT311, direct.heard, fresh=True).__aenter__()


def _published(one: Order, now_us: int) -> Kept:
    """As the database would have it, before a word came."""
    return Kept(
        device=one.device,
        id=one.id,
        name=one.name,
        issuer=one.issuer,
        rollout="",
        state="sent",
        made_us=now_us,
        given_us=now_us,
        expires_us=one.expires_us,
        sends=1,
        sent_us=now_us,
        ended_us=None,
        changed_us=now_us,
        progress=None,
        reason="",
        message="",
        result=None,
    )


class _Direct:
    """What came of some orders."""

    def __init__(self, prefix: str, orders: Sequence[Order]) -> None:
        self.done = asyncio.Event()
        now_us = time.time_ns() // 1000
        self._kept = {Topics(prefix, one.device).result: _published(one, now_us) for one in orders}

    @property
    def kept(self) -> list[Kept]:
        """As the database would have them, by device."""
        return sorted(self._kept.values(), key=lambda one: one.device)

    def heard(self, message: Message) -> None:
        """A result came; what is none, or of another order, is somebody else's."""
        was = self._kept.get(message.topic)
        try:
            said = from_json(message.payload, Result)
        except ProtocolError:
            was = None
        message.take()
        if was is None or (said.device, said.id) != (was.device, was.id):
            return
        if is_news(was.state, was.reason, said):
            now_us = time.time_ns() // 1000
            self._kept[message.topic] = msgspec.structs.replace(
                was,
                state=said.state,
                changed_us=now_us,
                ended_us=now_us if said.ended else None,
                progress=said.progress,
                reason=said.reason,
                message=quoted(said.message, MESSAGE_CHARS_MAX),
                result=msgspec.Raw(msgspec.json.encode(said)),
            )
        if all(one.ended_us is not None for one in self._kept.values()):
            self.done.set()
