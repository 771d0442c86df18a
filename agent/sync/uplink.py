"""What goes up: records in batches, blobs in pieces, until somebody who counts has them.

For each leased batch the blobs go first, piece by piece, then the batch itself, many messages in
flight. Who counts is `ack_from`: `broker`, then a batch is done when the broker has taken all of
it; `ingest`, then it is done when the far database says so (ack.py), and the lease runs until then.
What is out without an ack is bounded by `unacked_bytes_max`.
A stream of which nothing is answered in `ack_timeout_s` is sent again, more and more slowly; one
stream's acks do not answer for another.
"""

import asyncio
import logging
from collections import deque

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import LinkError, ProtocolError
from agent.health.conditions import Conditions
from agent.protocol import ack, batch, blob
from agent.protocol.topics import Topics
from agent.records import Range, Record
from agent.store.outbox import Batch, Name, Outbox
from agent.sync.connection import Connection
from agent.sync.pace import Pace
from agent.sync.progress import Progress

log = logging.getLogger("link")
PIECE_BYTES_MAX = 64 * 1024
HEADER_ROOM_BYTES = 4096  # an envelope's and MQTT's own bytes, well above what they take
RETRY_S_MAX = 600.0


class Wait:
    """What is out of a stream, how long it has waited for its next ack, and how long it may."""

    def __init__(self, patience_s: float) -> None:
        self.since: float | None = None  # monotonic; None: nothing is out
        self.patience_s = patience_s
        self.missed = False  # the last patience ended without an ack
        self.bytes = 0
        self._out: deque[tuple[int, int]] = deque()  # of each batch its last seq and its bytes

    def add(self, leased: Batch, now: float) -> None:
        """One more batch goes out."""
        size = sum(len(record.body) + record.blob_bytes for record in leased.records)
        self._out.append((leased.span.last, size))
        self.bytes += size
        self.since = self.since or now

    def settle(self, mark: int) -> None:
        """Everything up to `mark` is known to the far side."""
        while self._out and self._out[0][0] <= mark:
            self.bytes -= self._out.popleft()[1]

    def rewind(self) -> None:
        """Nothing is out any more."""
        self._out.clear()
        self.bytes, self.since = 0, None


class Uplink:
    """Sends what the outbox holds over whatever connection there is."""

    def __init__(
        self,
        settings: Settings,
        device: str,
        outbox: Outbox,
        conditions: Conditions,
        clock: Clock,
        pace: Pace,
        progress: Progress,
    ) -> None:
        self._pace = pace
        self._progress = progress
        self._settings = settings
        self._device = device
        self._topics = Topics(settings.topic_prefix, device)
        self._outbox = outbox
        self._conditions = conditions
        self._clock = clock
        self._parts: dict[tuple[Name, int], int] = {}  # (stream, seq): bytes the far side has
        self._waits: dict[Name, Wait] = {}  # by stream
        self._word: ack.Ack | None = None  # the newest of the ingest, until it is taken
        self._told = asyncio.Event()

    async def run(self, connection: Connection) -> None:
        """Send until the connection ends; whatever was out before it is sent again."""
        try:
            await self._send_all(connection)
        finally:  # nothing is out any more: what is held may be evicted again
            self._outbox.rewind()
            for wait in self._waits.values():
                wait.rewind()
                wait.patience_s = self._settings.ack_timeout_s  # it was the link's fault

    async def _send_all(self, connection: Connection) -> None:
        sent: asyncio.Queue[tuple[Batch, list[asyncio.Future[None]]]] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._impatience())
            group.create_task(self._hear())
            if self._settings.ack_from == "broker":
                group.create_task(self._count(connection, sent))
            while True:
                leased = await self._next(connection)
                pubacks = await self._send(connection, leased)
                if self._settings.ack_from == "broker":
                    sent.put_nowait((leased, pubacks))

    def heard(self, payload: bytes) -> None:
        """An ack came. What it says of an epoch is whole, so the newest of each is enough."""
        try:
            word = ack.decode(payload)
        except ProtocolError as error:
            self._refuse(error)
            return
        self._word = ack.Ack({**self._word.epochs, **word.epochs} if self._word else word.epochs)
        self._told.set()

    async def _next(self, connection: Connection) -> Batch:
        """The next lease; waits until there is one."""
        while True:
            room = self._room(connection)
            self._outbox.more.clear()
            out = sum(wait.bytes for wait in self._waits.values())
            if out < self._settings.unacked_bytes_max:
                leased = await self._outbox.lease(self._settings.batch_records_max, room)
                if leased:
                    wait = self._waits.setdefault(leased.name, Wait(self._settings.ack_timeout_s))
                    wait.add(leased, self._clock.monotonic())
                    return leased
            await self._outbox.more.wait()

    def _room(self, connection: Connection) -> int:
        """Bytes for a message's records, or for a piece of a blob."""
        most = min(connection.payload_bytes_max, self._pace.message_bytes_max)
        return most - HEADER_ROOM_BYTES

    async def _send(self, connection: Connection, leased: Batch) -> list[asyncio.Future[None]]:
        """Hand blobs and batch to the connection; the futures of the broker's answers."""
        pubacks = []
        for record in leased.records:
            if record.blob_bytes:
                pubacks += await self._send_blob(connection, leased.name, record)
        payload = batch.encode(self._device, *leased.name, leased.records, leased.drops)
        pubacks.append(await self._publish(connection, self._topics.up(leased.stream), payload))
        blob_bytes = sum(record.blob_bytes for record in leased.records)
        log.info(
            "%s #%d-%d: sent, %.1f KiB of records, %.0f KiB of audio",
            *(leased.stream, leased.span.first, leased.span.last),
            *(len(payload) / 1024, blob_bytes / 1024),
        )
        return pubacks

    async def _send_blob(
        self, connection: Connection, name: Name, record: Record
    ) -> list[asyncio.Future[None]]:
        """The pieces of a blob from the byte where the far side's copy ends."""
        size = min(PIECE_BYTES_MAX, self._room(connection))
        topic = self._topics.blob(record.stream)
        pubacks = []
        start = self._parts.get((name, record.seq), 0)
        if start > record.blob_bytes:
            start = 0  # the far side is wrong about it
        while start < record.blob_bytes:
            data = await self._outbox.blob(record, start, size)
            if not data:  # acknowledged and purged meanwhile
                break
            piece = blob.encode(self._device, *name, record.seq, start, record.blob_bytes, data)
            pubacks.append(await self._publish(connection, topic, piece))
            start = max(start + len(data), self._parts.get((name, record.seq), 0))
        return pubacks

    async def _publish(
        self, connection: Connection, topic: str, payload: bytes
    ) -> asyncio.Future[None]:
        """Within the line's budget."""
        await self._pace.take(len(payload), live=False)
        self._progress.sent(len(payload))
        return await connection.publish(topic, payload)

    async def _count(
        self,
        connection: Connection,
        sent: asyncio.Queue[tuple[Batch, list[asyncio.Future[None]]]],
    ) -> None:
        """`ack_from: broker`: purge, in order, what the broker has taken all of."""
        while True:
            leased, pubacks = await sent.get()
            try:
                await asyncio.gather(*pubacks)
            except LinkError:
                if connection.ended.done():
                    raise
                continue  # the broker refused it, which is a condition; its time will run out
            await self._acknowledge(leased.name, [leased.span])

    async def _hear(self) -> None:
        """`ack_from: ingest`: purge what the far database holds."""
        while True:
            await self._told.wait()
            self._told.clear()
            word, self._word = self._word, None
            if word is None:
                continue
            streams = {
                (epoch, stream): of
                for epoch, streams in word.epochs.items()
                for stream, of in streams.items()
            }
            self._parts = {
                (name, seq): size for name, of in streams.items() for seq, size in of.parts.items()
            }
            if self._settings.ack_from == "broker":
                continue
            refused: ProtocolError | None = None
            for name, of in streams.items():
                try:
                    await self._acknowledge(name, [Range(1, of.mark), *of.ranges])
                except ProtocolError as error:
                    refused = error
            if refused:
                self._refuse(refused)
            else:
                self._conditions.clear("ack_refused", "link")

    def _refuse(self, error: ProtocolError) -> None:
        self._conditions.hold("ack_refused", "link", "warning", str(error), error.hint)

    async def _acknowledge(self, name: Name, spans: list[Range]) -> None:
        settled = await self._outbox.acknowledge(name, spans)
        wait = self._waits.get(name)
        if wait and settled.moved:  # the rest of it gets its time
            out_bytes = wait.bytes
            wait.settle(settled.mark)
            self._progress.acknowledged(settled.delivered, out_bytes - wait.bytes)
            self._outbox.more.set()  # there is room again
            wait.patience_s, wait.missed = self._settings.ack_timeout_s, False
            wait.since = self._clock.monotonic() if self._outbox.waits(name) else None
            self._tell_missing()
        if settled.delivered:
            word = "%s: %d acknowledged by the %s"
            log.info(word, name[1], settled.delivered, self._settings.ack_from)

    async def _impatience(self) -> None:
        """Send again what nobody answers."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.ack_timeout_s / 4))
            now = self._clock.monotonic()
            for name, wait in self._waits.items():
                if wait.since is None or now - wait.since < wait.patience_s:
                    continue
                if self._outbox.waits(name):
                    wait.missed = True
                    self._tell_missing()
                    wait.patience_s = min(wait.patience_s * 2, RETRY_S_MAX)
                wait.rewind()
                self._outbox.rewind(name)

    def _tell_missing(self) -> None:
        missed = {name[1]: wait.patience_s for name, wait in self._waits.items() if wait.missed}
        if not missed:
            self._conditions.clear("ack_missing", "link")
            return
        self._conditions.hold(
            "ack_missing",
            "link",
            "warning",
            f"no ack from the {self._settings.ack_from} for {', '.join(sorted(missed))} in "
            f"{min(missed.values()):.0f} s",
            "check that the ingest runs and sends acks, or see link.ack_from",
        )
