"""Hands parcels to one connection: the blobs in pieces, then the batch, through pace and gate."""

import asyncio

from agent.errors import ProtocolError
from agent.protocol import batch, blob
from agent.protocol.topics import Topics
from agent.records import Record
from agent.store.outbox import Name, Outbox
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.sync.mqtt.connection import Connection
from agent.sync.mqtt.faults import TooLarge
from agent.sync.up.gate import Gate
from agent.sync.up.parcels import Parcel, Ratio
from agent.sync.up.puts import Puts

PIECE_BYTES_MAX = 64 * 1024
HEADER_ROOM_BYTES = 4096  # an envelope's and MQTT's own bytes, well above what they take
Answers = list[asyncio.Future[int]]


class Parts:
    """How many bytes of each blob that is begun the far side has, by its last ack."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[Name, int], int] = {}

    def learn(self, parts: dict[tuple[Name, int], int]) -> set[Name]:
        """What holds from now on; the streams of which a blob grew."""
        grown = {key[0] for key, size in parts.items() if size > self._bytes.get(key, size)}
        self._bytes = parts
        return grown

    def start(self, name: Name, record: Record) -> int:
        """The byte of the record's blob to go on at."""
        there = self._bytes.get((name, record.seq), 0)
        return there if there <= record.blob_bytes else 0  # the far side is wrong about it


class Sender:
    """For one connection; `unanswered` are the parcels of which a message has no answer yet."""

    def __init__(
        self,
        connection: Connection,
        gate: Gate,
        outbox: Outbox,
        pace: Pace,
        progress: Progress,
        device: str,
        topics: Topics,
        ratio: Ratio,
        parts: Parts,
        puts: Puts | None,
    ) -> None:
        """`puts`: blobs go by PUT, where the cloud grants it."""
        self.gate = gate
        self.unanswered: dict[Parcel, int] = {}
        self._connection = connection
        self._outbox = outbox
        self._pace = pace
        self._progress = progress
        self._device = device
        self._topics = topics
        self._ratio = ratio
        self._parts = parts
        self._puts = puts

    @property
    def payload_bytes_max(self) -> int:
        """Of a batch that others can come before: what the window and the pace give it."""
        window_bytes = self.gate.window.message_bytes
        most = min(self._connection.payload_bytes_max, self._pace.message_bytes_max)
        return min(most, window_bytes + HEADER_ROOM_BYTES)

    @property
    def plain_bytes_max(self) -> int:
        """Of the records of such a batch, before compression."""
        plain_bytes = self._ratio.plain_bytes(self.payload_bytes_max - HEADER_ROOM_BYTES)
        return min(plain_bytes, batch.CONTENT_BYTES_MAX // 2)

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended: a LinkError says no more than that."""
        return self._connection.ended.done()

    @property
    def stands(self) -> bool:
        """Whether a message that may go does not, though nothing is out that it could wait for."""
        return self.gate.waits and self._connection.idle

    @property
    def is_allowed(self) -> bool:
        """Whether the backlog may go, or would but for the rate."""
        return self._pace.allows(live=False)

    def encode(self, parcel: Parcel) -> bytes:
        """A parcel's batch. Raises TooLarge: the broker, or we, would not take it."""
        of, live = (parcel.records, parcel.drops), parcel.live
        try:
            payload = batch.encode(self._device, *parcel.name, *of, live=live, before=parcel.before)
        except ProtocolError as error:
            raise TooLarge(str(error), error.hint) from error
        most = self._connection.payload_bytes_max
        if len(payload) > most:
            raise TooLarge(
                f"it makes a message of {len(payload)} bytes; {most} are the limit",
                "raise link.payload_bytes_max, and the broker's limit where that is lower",
            )
        self._ratio.note(parcel, len(payload))
        return payload

    async def send(self, parcel: Parcel, payload: bytes, *, paid: bool = False) -> Answers:
        """Hand blobs and batch over; the futures of the broker's answers.

        `paid`: the pace was asked before. Raises LinkError when the connection ends.
        """
        answers = []
        for record in parcel.records if parcel.blob_bytes else ():
            if not await self._put(parcel, record):
                answers += await self._send_blob(parcel, record, paid=paid)
        topic = self._topics.up(parcel.name[1])
        return [*answers, await self._publish(parcel, topic, payload, paid=paid)]

    async def _put(self, parcel: Parcel, record: Record) -> bool:
        """Whether the record's blob needs no pieces: it was put, or there is none."""
        if not record.blob_bytes or self._puts is None:
            return not record.blob_bytes
        return await self._puts.put(self._connection, parcel.name, record, live=parcel.live)

    async def pay(self, parcel: Parcel, payload: bytes) -> None:
        """Ask the pace for all of it, so that it need not wait once it is the only one."""
        for record in parcel.records:
            if await self._put(parcel, record):
                continue  # it has paid for itself
            rest = record.blob_bytes - self._parts.start(parcel.name, record)
            for start in range(0, rest, self._piece_bytes):
                await self._pace.take(min(self._piece_bytes, rest - start), live=parcel.live)
        await self._pace.take(len(payload), live=parcel.live)

    @property
    def _piece_bytes(self) -> int:
        most = self._connection.payload_bytes_max - HEADER_ROOM_BYTES
        return min(PIECE_BYTES_MAX, most, self.gate.window.message_bytes)

    async def _send_blob(self, parcel: Parcel, record: Record, *, paid: bool) -> Answers:
        """The pieces of a blob from the byte where the far side's copy ends."""
        topic, of = self._topics.blob(record.stream), (*parcel.name, record.seq)
        answers: Answers = []
        start = self._parts.start(parcel.name, record)
        while start < record.blob_bytes:
            data = await self._outbox.blob(record, start, self._piece_bytes)
            if not data:  # acknowledged and purged meanwhile
                break
            payload = blob.encode(self._device, *of, start, record.blob_bytes, data)
            answers.append(await self._publish(parcel, topic, payload, piece=True, paid=paid))
            start = max(start + len(data), self._parts.start(parcel.name, record))
        return answers

    async def _publish(
        self, parcel: Parcel, topic: str, payload: bytes, *, paid: bool, piece: bool = False
    ) -> asyncio.Future[int]:
        if not paid:
            await self._pace.take(len(payload), live=parcel.live)
        flight = await self.gate.enter(
            len(payload), live=parcel.live, piece=piece, alone=parcel.alone
        )
        answer = await self._connection.publish(topic, payload)
        self.unanswered[parcel] = self.unanswered.get(parcel, 0) + 1
        self._progress.sent(len(payload))

        def answered(answer: asyncio.Future[int]) -> None:
            if answer.cancelled() or (answer.exception() and self.is_over):
                return  # that was no answer
            self.gate.leave(flight)
            self.unanswered[parcel] -= 1
            if not self.unanswered[parcel]:
                del self.unanswered[parcel]

        answer.add_done_callback(answered)
        return answer


async def all_of(answers: Answers) -> None:
    """Wait for every answer. Raises LinkError: one of them was a no."""
    for found in await asyncio.gather(*answers, return_exceptions=True):
        if isinstance(found, BaseException):
            raise found
