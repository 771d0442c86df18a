"""What goes up: records in batches, blobs in pieces, until somebody who counts has them.

For each leased batch the blobs go first, piece by piece, then the batch itself, many messages in
flight. Who counts is `ack_from`: `broker`, then a batch is done when the broker has taken all of
it; `ingest`, then it is done when the far database says so (ack.py), and the lease runs until then.
A lease that is not answered in `ack_timeout_s` is sent again, more and more slowly.
"""

import asyncio
import logging
from collections.abc import Callable

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import ProtocolError
from agent.health.conditions import Conditions
from agent.protocol import ack, batch, blob
from agent.protocol.topics import Topics
from agent.records import Range, Record
from agent.store.outbox import Batch, Outbox
from agent.sync.connection import Connection

log = logging.getLogger("link")
PIECE_BYTES_MAX = 64 * 1024
HEADER_ROOM_BYTES = 4096  # an envelope's and MQTT's own bytes, well above what they take
RETRY_S_MAX = 600.0


class Uplink:
    """Sends what the outbox holds over whatever connection there is."""

    def __init__(
        self,
        settings: Settings,
        device: str,
        epoch: Callable[[], str],
        outbox: Outbox,
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        self.acked_at: float | None = None  # monotonic
        self._settings = settings
        self._device = device
        self._epoch = epoch
        self._topics = Topics(settings.topic_prefix, device)
        self._outbox = outbox
        self._conditions = conditions
        self._clock = clock
        self._parts: dict[tuple[str, int], int] = {}  # (stream, seq): bytes the far side has
        self._patience_s = settings.ack_timeout_s
        self._sent_at: float | None = None  # when the oldest unanswered lease went out

    async def run(self, connection: Connection) -> None:
        """Send until the connection ends; whatever was out before it is sent again."""
        self._outbox.rewind()
        self._sent_at = None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._impatience())
            while True:
                leased = await self._next(connection)
                puback = await self._send(connection, leased)
                if self._settings.ack_from == "broker":
                    group.create_task(self._delivered(leased, puback))

    async def _next(self, connection: Connection) -> Batch:
        """The next lease; waits until there is one."""
        room = connection.payload_bytes_max - HEADER_ROOM_BYTES
        while True:
            self._outbox.more.clear()
            leased = await self._outbox.lease(self._settings.batch_records_max, room)
            if leased:
                self._sent_at = self._sent_at or self._clock.monotonic()
                return leased
            await self._outbox.more.wait()

    async def _send(self, connection: Connection, leased: Batch) -> list[asyncio.Future[None]]:
        """Hand blobs and batch to the connection; the futures of the broker's answers."""
        pubacks = []
        for record in leased.records:
            if record.blob_bytes:
                pubacks += await self._send_blob(connection, record)
        payload = batch.encode(
            self._device, self._epoch(), leased.stream, leased.records, leased.drops
        )
        pubacks.append(await connection.publish(self._topics.up(leased.stream), payload))
        blob_bytes = sum(record.blob_bytes for record in leased.records)
        log.info(
            "%s #%d-%d: sent, %.1f KiB of records, %.0f KiB of audio",
            *(leased.stream, leased.span.first, leased.span.last),
            *(len(payload) / 1024, blob_bytes / 1024),
        )
        return pubacks

    async def _send_blob(
        self, connection: Connection, record: Record
    ) -> list[asyncio.Future[None]]:
        """The pieces of a blob from the byte where the far side's copy ends."""
        size = min(PIECE_BYTES_MAX, connection.payload_bytes_max - HEADER_ROOM_BYTES)
        topic = self._topics.blob(record.stream)
        pubacks = []
        start = self._parts.get((record.stream, record.seq), 0)
        while start < record.blob_bytes:
            data = await self._outbox.blob(record, start, size)
            if not data:  # acknowledged and purged meanwhile
                break
            header = blob.Header(
                device=self._device,
                epoch=self._epoch(),
                stream=record.stream,
                seq=record.seq,
                start=start,
                size=record.blob_bytes,
            )
            pubacks.append(await connection.publish(topic, blob.encode(header, data)))
            start = max(start + len(data), self._parts.get((record.stream, record.seq), 0))
        return pubacks

    async def _delivered(self, leased: Batch, pubacks: list[asyncio.Future[None]]) -> None:
        """`ack_from: broker`: purge once the broker has taken all of the batch."""
        await asyncio.gather(*pubacks)
        spans = [Range(record.seq, record.seq) for record in leased.records]
        await self._acknowledge(self._epoch(), leased.stream, spans)

    async def on_ack(self, payload: bytes) -> None:
        """`ack_from: ingest`: purge what the far database holds."""
        try:
            word = ack.decode(payload)
            if word.epoch == self._epoch():
                self._parts = {
                    (stream, seq): size
                    for stream, of in word.streams.items()
                    for seq, size in of.parts.items()
                }
            for stream, of in word.streams.items():
                if self._settings.ack_from == "ingest":
                    await self._acknowledge(word.epoch, stream, [Range(1, of.mark), *of.ranges])
        except ProtocolError as error:
            self._conditions.hold("ack_refused", "link", "warning", str(error), error.hint)
        else:
            self._conditions.clear("ack_refused", "link")

    async def _acknowledge(self, epoch: str, stream: str, spans: list[Range]) -> None:
        delivered = await self._outbox.acknowledge(epoch, stream, spans)
        if not delivered:
            return
        self.acked_at = self._clock.monotonic()
        self._sent_at = self.acked_at  # something moves: the others get their time
        self._patience_s = self._settings.ack_timeout_s
        self._conditions.clear("ack_missing", "link")
        log.info("%s: %d acknowledged by the %s", stream, delivered, self._settings.ack_from)

    async def _impatience(self) -> None:
        """Send again what nobody answers."""
        while True:
            await asyncio.sleep(min(1.0, self._patience_s / 4))
            if not self._outbox.any_out:
                self._sent_at = None
            if self._sent_at is None:
                continue
            waited = self._clock.monotonic() - self._sent_at
            if waited < self._patience_s:
                continue
            self._conditions.hold(
                "ack_missing",
                "link",
                "warning",
                f"no ack from the {self._settings.ack_from} for {self._patience_s:.0f} s",
                "check that the ingest runs and sends acks, or see link.ack_from",
            )
            self._patience_s = min(self._patience_s * 2, RETRY_S_MAX)
            self._sent_at = None
            self._outbox.rewind()
