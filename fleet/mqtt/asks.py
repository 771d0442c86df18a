"""Devices that ask where to put a blob, each answered in its turn.

What the object store has to say takes its time, and holds up nothing else: asks wait in a queue of
their own, and AT_ONCE are answered at the same time.

Limits  : ASKS_MAX wait; the oldest gives way, for whoever asked it has asked again by then, or has
          gone over to pieces. The same ask twice is one.
Recovery: an ask that got no answer is asked again. `stored` is said after the commit.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from agent.errors import ProtocolError, StoreError
from agent.protocol.grants import Ask
from agent.protocol.topics import Topics
from fleet.mqtt.connection import Connection, Message
from fleet.mqtt.grants import Grants
from fleet.mqtt.metrics import Metrics
from fleet.mqtt.s3 import Bucket
from fleet.store.arrivals import asked, device_of
from fleet.store.cloud import Cloud, Verdict

log = logging.getLogger("ingest")
ASKS_MAX = 1000
AT_ONCE = 8


class Asks:
    """Outlives connections; `run` one at a time over each."""

    def __init__(
        self,
        cloud: Cloud,
        metrics: Metrics,
        bucket: Bucket | None,
        noted: Callable[[str, Verdict], None],
    ) -> None:
        """`noted(device, verdict)` is called once it is committed that a blob was put."""
        self._cloud = cloud
        self._metrics = metrics
        self._noted = noted
        self._grants = Grants(bucket, self._note)
        self._turn = asyncio.Lock()  # one at a time asks the database, which has more to do
        self._waiting: set[tuple[str, bytes]] = set()
        self._queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(ASKS_MAX)

    def takes(self, message: Message) -> bool:
        """Whether it is an ask, in order."""
        if not message.topic.endswith("/blob-ask"):
            return False
        with suppress(ProtocolError):
            asked(self._cloud.prefix, message.topic, message.payload)
            return True
        return False

    def heard(self, message: Message) -> None:
        """Answer an ask when its turn comes."""
        one = (device_of(self._cloud.prefix, message.topic), message.payload)
        if one in self._waiting:
            return
        if self._queue.full():
            self._waiting.discard(self._queue.get_nowait())
            self._metrics.asks.labels("left_out").inc()
        self._waiting.add(one)
        self._queue.put_nowait(one)

    async def run(self, connection: Connection) -> None:
        """For as long as the connection lives. Raises LinkError."""
        tasks = [asyncio.create_task(self._answer(connection)) for _ in range(AT_ONCE)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, connection: Connection) -> None:
        """One ask after the other."""
        while True:
            device, payload = one = await self._queue.get()
            self._waiting.discard(one)
            try:
                word = await self._grants.answer(device, payload)
            except StoreError as error:
                self._metrics.asks.labels("failed").inc()
                self._metrics.faults.inc()
                log.error("%s (%s); %s will ask again", error, error.hint, device)
                continue
            except ProtocolError as error:
                self._metrics.asks.labels("failed").inc()
                log.warning("an ask of %s: %s", device, error)
                continue
            topic = Topics(self._cloud.prefix, device).grant
            answer = await connection.publish(topic, word, retain=False)
            answer.add_done_callback(partial(self._answered, connection, device))

    def _answered(
        self, connection: Connection, device: str, answer: "asyncio.Future[None]"
    ) -> None:
        if answer.cancelled():
            return
        if answer.exception() is None:
            self._metrics.asks.labels("answered").inc()
        elif not connection.ended.done():
            self._metrics.asks.labels("failed").inc()
            log.warning("the grant of %s: %s", device, answer.exception())

    async def _note(self, device: str, ask: Ask, place: str) -> bool:
        async with self._turn:
            verdict = await self._cloud.note_put(device, ask, place)
        self._noted(device, verdict)
        return not verdict.refused
