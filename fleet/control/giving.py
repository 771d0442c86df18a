"""Content for devices that ask for it at `content-ask`, out of a repository's folder.

Orders share the connection, so content goes at a bounded rate, a few pieces at a time.

Limits  : AT_ONCE asks are answered side by side, one of a device; PIECES_OUT pieces are out without
          the broker's word; `bytes_per_s` in all. One ask of a device waits, its newest, and
          ASKS_MAX devices; the one that waits longest gives way.
Recovery: nothing is kept: who got no answer asks again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from msgspec import Struct

from agent.clock import Clock
from agent.errors import ConfigError, ProtocolError
from agent.protocol.content import ASK_BYTES_MAX, METADATA
from agent.protocol.topics import Topics
from agent.words import quoted
from fleet.control.abreast import first_of
from fleet.control.metrics import Metrics
from fleet.mqtt.connection import Message
from fleet.store.arrivals import device_of
from fleet.updates.pieces import Pieces, Publisher

log = logging.getLogger("control")
ASKS_MAX = 10_000
AT_ONCE = 8
PIECES_OUT = 8  # few beside the twenty that many a broker takes at a time


class Content(Struct, frozen=True):
    """The repository, and how fast it is handed out."""

    repository: Path
    bytes_per_s: float

    def check(self) -> None:
        """Raises ConfigError where there is no repository."""
        if not (self.repository / METADATA).is_dir():
            raise ConfigError(
                f"--content {self.repository}: no repository is there",
                "name the folder `repository` that `holdfast-fleet updates init` has made",
            )


class Giving:
    """Outlives connections; `run` one at a time over each."""

    def __init__(
        self,
        content: Content,
        clock: Clock,
        metrics: Metrics,
        prefix: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.topic = Topics(prefix, "+").content_ask
        self._pieces = Pieces(content.repository)
        self._pace = _Pace(clock, sleep, content.bytes_per_s)
        self._metrics = metrics
        self._prefix = prefix
        self._asked: dict[str, bytes] = {}  # by device, the longest waiting first
        self._at: set[str] = set()
        self._more = asyncio.Event()

    def takes(self, message: Message) -> bool:
        """Whether it is an ask; then it is answered by and by."""
        try:
            device = device_of(self._prefix, message.topic)
        except ProtocolError:
            return False
        if message.topic != Topics(self._prefix, device).content_ask:
            return False
        message.take()
        if len(message.payload) > ASK_BYTES_MAX:
            self._metrics.asks.labels("refused").inc()
            return True
        if device not in self._asked and len(self._asked) >= ASKS_MAX:
            del self._asked[next(iter(self._asked))]
            self._metrics.asks.labels("left_out").inc()
        self._asked[device] = message.payload
        self._more.set()
        return True

    def forget(self) -> None:
        """The connection is over: who still wants content asks again."""
        self._asked.clear()
        self._at.clear()

    async def run(self, link: Publisher) -> None:
        """For as long as the connection lives. Raises LinkError."""
        bounded = _Bounded(link, self._pace, self._metrics)
        await first_of(*(self._answer(bounded) for _ in range(AT_ONCE)))

    async def _answer(self, link: "_Bounded") -> None:
        while True:
            device, payload = await self._next()
            try:
                await self._pieces.answer(device, payload, self._prefix, link)
                self._metrics.asks.labels("answered").inc()
            except ProtocolError as error:
                self._metrics.asks.labels("refused").inc()
                log.warning("refused an ask of %s: %s", quoted(device), error)
            except OSError as error:  # in the middle of a file
                self._metrics.asks.labels("failed").inc()
                log.error("the content for %s cannot be read: %s", quoted(device), error)
            finally:
                self._at.discard(device)
                self._more.set()

    async def _next(self) -> tuple[str, bytes]:
        """The ask that waits longest, of a device that is not being answered."""
        while True:
            for device in self._asked:
                if device not in self._at:
                    self._at.add(device)
                    return device, self._asked.pop(device)
            self._more.clear()
            await self._more.wait()


class _Pace:
    """When the next bytes may go, so that `bytes_per_s` is kept."""

    def __init__(
        self, clock: Clock, sleep: Callable[[float], Awaitable[None]], bytes_per_s: float
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._bytes_per_s = bytes_per_s
        self._free_at = clock.monotonic()

    async def turn(self, size_bytes: int) -> None:
        now = self._clock.monotonic()
        wait_s = self._free_at - now
        self._free_at = max(self._free_at, now) + size_bytes / self._bytes_per_s
        if wait_s > 0:
            await self._sleep(wait_s)


class _Bounded:
    """A connection to which content goes at its pace, PIECES_OUT at a time."""

    def __init__(self, link: Publisher, pace: _Pace, metrics: Metrics) -> None:
        self._link = link
        self._pace = pace
        self._metrics = metrics
        self._room = asyncio.Semaphore(PIECES_OUT)

    def room_bytes(self, topic: str) -> int:
        return self._link.room_bytes(topic)

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = True
    ) -> "asyncio.Future[None]":
        await self._room.acquire()
        try:
            await self._pace.turn(len(payload))
            answer = await self._link.publish(topic, payload, retain=retain)
        except BaseException:  # a cancellation too: the place is given back
            self._room.release()
            raise
        answer.add_done_callback(partial(self._done, topic, len(payload)))
        return answer

    def _done(self, topic: str, size_bytes: int, answer: "asyncio.Future[None]") -> None:
        self._room.release()
        if answer.cancelled():
            return
        if answer.exception() is None:
            self._metrics.content.inc(size_bytes)
        else:
            log.warning("%s: %s", topic, answer.exception())
