"""Acks on their way back: who was touched, and what the database holds of them.

At most one document for a device each `ack_s`, and always one after the last change. What the
broker did not answer before the connection ended is told anew over the next.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial

from agent.errors import StoreError
from agent.protocol import ack
from agent.protocol.topics import Topics
from fleet.mqtt.connection import Connection
from fleet.mqtt.metrics import Metrics
from fleet.store.cloud import Cloud

log = logging.getLogger("ingest")
AT_ONCE = 200  # devices that are asked for in one transaction
RETRY_S = 1.0  # while the database is away


class Replies:
    """Outlives connections; `run` one at a time over each."""

    def __init__(self, cloud: Cloud, metrics: Metrics, ack_s: float) -> None:
        self._cloud = cloud
        self._metrics = metrics
        self._ack_s = ack_s
        self._touched: dict[str, None] = {}  # in the order of their touch
        self._more = asyncio.Event()

    def touch(self, devices: Iterable[str]) -> None:
        """Tell these devices what is stored of them, soon."""
        self._touched |= dict.fromkeys(devices)
        if self._touched:
            self._more.set()

    async def run(self, connection: Connection) -> None:
        """For as long as the connection lives. Raises LinkError."""
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                await self.publish(connection)
            except StoreError as error:
                self._metrics.faults.inc()
                log.error("%s (%s); the acks wait", error, error.hint)
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(self._ack_s)

    async def publish(self, connection: Connection) -> None:
        """One document for each touched device, now. Raises LinkError, StoreError."""
        while self._touched:
            devices = [device for device, _ in zip(self._touched, range(AT_ONCE), strict=False)]
            for device in devices:
                del self._touched[device]
            try:
                words = await self._cloud.acks(devices)
                for device, word in words.items():
                    topic = Topics(self._cloud.prefix, device).ack
                    answer = await connection.publish(topic, ack.encode(word))
                    answer.add_done_callback(partial(self._answered, connection, device))
            except BaseException:  # some are told twice then, which changes nothing
                self.touch(devices)
                raise

    def _answered(
        self, connection: Connection, device: str, answer: "asyncio.Future[None]"
    ) -> None:
        if answer.cancelled():
            return
        if answer.exception() is None:
            self._metrics.acks.inc()
        elif connection.ended.done():
            self.touch([device])
        else:
            self._metrics.acks_failed.inc()
            log.warning("the ack of %s: %s", device, answer.exception())
