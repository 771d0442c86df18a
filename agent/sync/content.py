"""Content over the link: asks go out, and pieces come in (updates/chunks.py)."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from agent.errors import LinkError
from agent.protocol.topics import Topics
from agent.updates.chunks import Chunks


class Way(Protocol):
    """A connection, as far as it is needed."""

    async def publish(self, topic: str, payload: bytes) -> object:
        """Send with QoS 1. Raises LinkError."""


class Came(Protocol):
    """A message."""

    @property
    def payload(self) -> bytes:
        """What it says."""

    def taken(self) -> None:
        """The broker need not keep it."""


class ContentTalk:
    """One for all connections, one after the other; `chunks` is the source behind them."""

    def __init__(self, topics: Topics, payload_bytes_max: int, stall_s: float) -> None:
        self.topics: Sequence[str] = (topics.content,)
        self.chunks = Chunks(self._publish, payload_bytes_max, stall_s)
        self._asks = topics.content_ask
        self._way: Way | None = None

    def heard(self, message: Came) -> None:
        """A piece came; one that is lost is asked for again."""
        self.chunks.heard(message.payload)
        message.taken()

    async def run(self, connection: Way) -> None:
        """As long as this connection lasts; then it is cancelled."""
        self._way = connection
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._way = None

    async def _publish(self, ask: bytes) -> None:
        if self._way is None:
            raise LinkError("not connected", "see `holdfast sync status`")
        await self._way.publish(self._asks, ask)
