"""Acks on their way back: who was touched, and what the database holds of them.

At most one document for a device each `ack_s`, and always one after the last change.

Limits  : a document is as large as the broker says it takes. Not every broker says it, and some cut
          the connection at one that is too large: see Recovery.
Recovery: a document that the broker refused, or did not answer before the connection ended, is told
          anew after a rest, which grows, and alone: so it is seen which one ends connections, and
          the others are not held up. If it fails again, it is made half as large, down to
          SMALL_BYTES; and it stays so small as long as this process lives.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from itertools import islice

from msgspec import Struct

from agent.errors import StoreError
from agent.protocol import ack
from agent.protocol.topics import Topics
from fleet.mqtt.connection import Connection
from fleet.mqtt.metrics import Metrics
from fleet.store.acks import ACK_BYTES_MAX
from fleet.store.cloud import Cloud

log = logging.getLogger("ingest")
AT_ONCE = 200  # devices that are asked for in one transaction
RETRY_S = 1.0  # while the database is away
REST_S_MIN, REST_S_MAX = 1.0, 60.0
ALONE_S = 10.0  # how long all wait for the answer to one that is told alone
SMALL_BYTES = 4096  # no broker minds so much
Answers = list[asyncio.Future[None]]


class Doubt(Struct):
    """Of a device whose ack failed, that it is told again at once, and as much."""

    failures: int = 0
    rests: bool = False
    bytes_max: int = ACK_BYTES_MAX


class Replies:
    """Outlives connections; `run` one at a time over each."""

    def __init__(self, cloud: Cloud, metrics: Metrics, ack_s: float) -> None:
        self._cloud = cloud
        self._metrics = metrics
        self._ack_s = ack_s
        self._touched: dict[str, None] = {}  # in the order of their touch; none of them rests
        self._doubts: dict[str, Doubt] = {}
        self._more = asyncio.Event()

    def touch(self, devices: Iterable[str]) -> None:
        """Tell these devices what is stored of them, soon; those that rest, after that."""
        for device in devices:
            doubt = self._doubts.get(device)
            if not (doubt and doubt.rests):
                self._touched[device] = None
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
            unsuspected = (device for device in self._touched if device not in self._doubts)
            if devices := list(islice(unsuspected, AT_ONCE)):
                await self._tell(connection, devices)
            # One after each lot of the others: where these never end, it has its turn all the same.
            doubted = (device for device in self._touched if device in self._doubts)
            if devices := list(islice(doubted, 1)):
                await asyncio.wait(await self._tell(connection, devices), timeout=ALONE_S)

    async def _tell(self, connection: Connection, devices: list[str]) -> Answers:
        """Tell these now; what raises leaves them touched."""
        for device in devices:
            del self._touched[device]
        try:
            return await self._told(connection, devices)
        except BaseException:  # some are told twice then, which changes nothing
            self.touch(devices)
            raise

    async def _told(self, connection: Connection, devices: list[str]) -> Answers:
        """One document for each of these; the broker's answers."""
        topics = {device: Topics(self._cloud.prefix, device).ack for device in devices}
        doubts = [self._doubts[device].bytes_max for device in devices if device in self._doubts]
        bytes_max = min([*map(connection.room_bytes, topics.values()), *doubts])
        answers = []
        for device, word in (await self._cloud.acks(devices, bytes_max)).items():
            payload = ack.encode(word)
            answer = await connection.publish(topics[device], payload)
            answer.add_done_callback(partial(self._answered, connection, device, len(payload)))
            answers.append(answer)
        return answers

    def _answered(
        self,
        connection: Connection,
        device: str,
        size_bytes: int,
        answer: "asyncio.Future[None]",
    ) -> None:
        if answer.cancelled():
            return
        if answer.exception() is None:
            self._metrics.acks.inc()
            self._went_well(device)
            return
        if not connection.ended.done():
            self._metrics.acks_failed.inc()
            log.warning("the ack of %s: %s", device, answer.exception())
        self._failed(device, size_bytes)

    def _went_well(self, device: str) -> None:
        doubt = self._doubts.get(device)
        if doubt and doubt.bytes_max < ACK_BYTES_MAX:
            doubt.failures = 1
        elif doubt:
            del self._doubts[device]

    def _failed(self, device: str, size_bytes: int) -> None:
        """Not again before a rest."""
        doubt = self._doubts.setdefault(device, Doubt())
        if doubt.rests:  # two were on their way
            return
        if doubt.failures and size_bytes > SMALL_BYTES:
            doubt.bytes_max = max(size_bytes // 2, SMALL_BYTES)
            log.warning("the ack of %s has %d bytes at most from now on", device, doubt.bytes_max)
        doubt.failures += 1
        doubt.rests = True
        self._touched.pop(device, None)
        rest_s = min(REST_S_MIN * 2 ** min(doubt.failures - 1, 10), REST_S_MAX)
        asyncio.get_running_loop().call_later(rest_s, self._rested, device)

    def _rested(self, device: str) -> None:
        if doubt := self._doubts.get(device):
            doubt.rests = False
        self.touch([device])
