"""A repository behind the broker: the device asks for stretches of a file, and pieces come.

Limits  : SPAN_PIECES pieces are asked for at once, and no more of them than that are kept; those
          that nobody asked for are dropped.
Recovery: nothing is kept. A piece that is lost is asked for again, from the first byte missing.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Self

from agent.errors import LinkError, ProtocolError
from agent.protocol import content
from agent.protocol.content import Ask, Header
from agent.updates.source import Absent, Away
from agent.words import quoted

SPAN_PIECES = 16
ASKS = 3  # in `stall_s`: whoever had one may be gone
PAYLOAD_BYTES_MAX = 512 << 10  # the link takes no packet of more than 1 MiB
ROOM_BYTES = 2048  # of a payload, for all but the piece
Publish = Callable[[bytes], Awaitable[object]]


class Chunks:
    """The device's end of `content-ask` and `content`; one for the life of the agent."""

    name = "mqtt:"

    def __init__(self, publish: Publish, payload_bytes_max: int, stall_s: float) -> None:
        """`publish` sends an ask, and raises LinkError while there is no connection."""
        self._publish = publish
        payload_bytes_max = min(payload_bytes_max, PAYLOAD_BYTES_MAX)
        self._piece_bytes = payload_bytes_max - ROOM_BYTES
        self._answer_s = stall_s / ASKS
        self._wanted = ""  # the path of which pieces are wanted now
        self._come: deque[tuple[Header, bytes]] = deque(maxlen=SPAN_PIECES)
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._wanted = ""
        self._come.clear()

    def heard(self, payload: bytes) -> None:
        """A piece came, or the word that there is none."""
        try:
            header, data = content.decode(payload)
        except ProtocolError:
            return  # damaged on the way, or foreign: it is asked for again
        if header.path == self._wanted:
            self._come.append((header, data))
            self._more.set()

    async def pieces(self, path: str, start: int, span_bytes: int) -> AsyncGenerator[bytes, None]:
        """As Source has it."""
        self._wanted, end = path, start + span_bytes
        self._come.clear()
        while start < end:
            asked = min(end - start, SPAN_PIECES * self._piece_bytes)
            begun, size = start, None
            async for header, data in self._span(path, start, asked):
                size = header.size
                if data:
                    start += len(data)
                    yield data
            if size is None or start >= size or start == begun:
                return

    async def _span(
        self, path: str, start: int, span_bytes: int
    ) -> AsyncGenerator[tuple[Header, bytes], None]:
        """What comes of one stretch, in its order, without what is known. Raises Absent, Away."""
        end, silent = start + span_bytes, 0
        while start < end:
            if silent == ASKS:
                raise Away(
                    f"no piece of {path} came in {ASKS * self._answer_s:.0f} s",
                    "check that a controller answers content-ask, and what the broker lets it read",
                )
            ask = Ask(
                path=path,
                start=start,
                span_bytes=end - start,
                piece_bytes_max=self._piece_bytes,
            )
            try:
                await self._publish(content.encode_ask(ask))
            except LinkError as error:
                raise Away(f"the link: {error}", error.hint) from error
            silent += 1
            while await self._another():
                header, data = self._come.popleft()
                self._judge(header)
                known = start - header.start
                if known < 0 or (known >= len(data) and start < header.size):
                    continue  # one is missing before it, or it came twice
                silent = 0
                fresh = data[known:][: end - start]
                start += len(fresh)
                yield header, fresh
                if start >= min(end, header.size):
                    return

    async def _another(self) -> bool:
        """Whether there is a piece, within the time for an answer."""
        if not self._come:
            self._more.clear()
            try:
                async with asyncio.timeout(self._answer_s):
                    await self._more.wait()
            except TimeoutError:
                return False
        return True

    def _judge(self, header: Header) -> None:
        if header.absent:
            raise Absent(f"the controller has no {header.path}")
        if header.refused:
            raise Away(
                f"the controller refused {header.path}: {quoted(header.refused)}",
                "look into the controller's log",
            )
