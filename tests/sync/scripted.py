"""A broker with an ingest behind it, in one: it does with each message what a test says.

It speaks as much MQTT 5 as the agent needs, stores what it takes, and acks as DESIGN.md says.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from typing import Literal, Self

from agent.protocol import ack, batch, blob
from agent.records import Range
from tests.outside import free_port
from tests.sync.rig import served

Fate = Literal["take", "kill", "refuse", "swallow", "reject"]
CONNACK = bytes([0x20, 3, 0, 0, 0])
BAD_PAYLOAD = 0x99


class Copy:
    """What is stored of a stream: seqs with their blobs, and ranges told to be gone."""

    def __init__(self) -> None:
        self.records: dict[int, bytes] = {}
        self.sizes: dict[int, int] = {}
        self.blobs: dict[int, dict[int, bytes]] = defaultdict(dict)
        self.told: dict[int, str] = {}
        self.refused: set[int] = set()
        self.times: dict[int, int] = defaultdict(int)  # how often each record came
        self.silent = 0  # an ack does not speak of the seqs up to this one

    def whole(self, seq: int) -> bool:
        return len(self.blob(seq)) == self.sizes[seq]

    def blob(self, seq: int) -> bytes:
        there = b""
        for start, piece in sorted(self.blobs[seq].items()):
            there += piece[len(there) - start :] if start <= len(there) else b""
        return there

    def word(self) -> ack.StreamAck:
        known = {seq for seq in self.records if self.whole(seq)} | set(self.told)
        mark = 0
        while mark + 1 in known:
            mark += 1
        ranges = [Range(seq, seq) for seq in sorted(known) if seq > mark]
        parts = {seq: len(self.blob(seq)) for seq in self.blobs if seq not in known}
        refused = [Range(seq, seq) for seq in sorted(self.refused - known)]
        if not self.silent:
            return ack.StreamAck(mark, ranges, parts, refused, self.dead())
        above = [Range(self.silent + 1, mark), *ranges]
        dead = [one for one in self.dead() if one.first > self.silent]
        rest = Range(self.silent + 1, 2**63 - 1)
        spans = [one for one in above if self.silent < one.first <= one.last]
        return ack.StreamAck(0, spans, parts, refused, dead, listed=[rest])

    def dead(self) -> list[Range]:
        told = {seq for seq, reason in self.told.items() if reason == "dead"}
        there = {seq for seq in self.records if self.whole(seq)}
        return [Range(seq, seq) for seq in sorted(told - there)]


class Scripted:
    """`fate` says of each batch (header, events) what happens to it; pieces are taken."""

    def __init__(self, fate: Callable[[batch.Header, list[batch.Event]], Fate]) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.fate = fate
        self.connects = self.kills = 0
        self.acking = True
        self.bytes_per_s = 0  # how fast it reads; 0: as it comes
        self.came_bytes = 0
        self.lives: Callable[[], float | None] = lambda: None  # seconds, of the next connection
        self.headers: list[batch.Header | blob.Header] = []  # in the order they came
        self.copies: dict[tuple[str, str], Copy] = defaultdict(Copy)

    async def __aenter__(self) -> Self:
        self._server = served(self._serve, self.port)
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.__aexit__(None, None, None)

    def copy(self, stream: str = "x.segments") -> Copy:
        """What is there of a stream, if it has one epoch."""
        return next((of for (_, name), of in self.copies.items() if name == stream), Copy())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        life_s = self.lives()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(life_s):
                while await self._packet(reader, writer):
                    pass
        self.kills += 1
        writer.transport.abort()

    async def _packet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        kind, body = await _read(reader)
        self.came_bytes += len(body)
        if self.bytes_per_s:
            await asyncio.sleep(len(body) / self.bytes_per_s)
        if kind == 0x10:
            self.connects += 1
            writer.write(CONNACK)
        elif kind & 0xF0 == 0x80:
            writer.write(bytes([0x90, 4]) + body[:2] + bytes([0, 1]))
            self._ack(writer)
        elif kind & 0xF0 == 0x30:
            return self._published(kind, body, writer)
        elif kind == 0xC0:
            writer.write(bytes([0xD0, 0]))
        return kind != 0xE0

    def _published(self, kind: int, body: bytes, writer: asyncio.StreamWriter) -> bool:
        size = int.from_bytes(body[:2], "big")
        topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
        mid, payload = (rest[:2], rest[3:]) if kind & 6 else (b"", rest[1:])  # no properties
        fate: Fate = "take"
        if "/up/" in topic:
            fate = self._batch(payload)
        elif "/blob/" in topic:
            header, data = blob.decode(payload)
            self.headers.append(header)
            self.copies[header.epoch, header.stream].blobs[header.seq][header.start] = data
        if fate == "kill":
            return False
        if mid:
            refusal = bytes([BAD_PAYLOAD]) if fate == "refuse" else b""
            writer.write(bytes([0x40, 2 + len(refusal)]) + mid + refusal)
        if "/up/" in topic or "/blob/" in topic:
            self._ack(writer)
        return True

    def _batch(self, payload: bytes) -> Fate:
        header, events = batch.decode(payload)
        self.headers.append(header)
        fate = self.fate(header, events)
        of = self.copies[header.epoch, header.stream]
        if fate == "reject":
            of.refused |= {event.sequence for event in events}
        if fate == "take":
            for event in events:
                of.times[event.sequence] += 1
                of.records[event.sequence] = bytes(event.data)
                of.sizes[event.sequence] = event.blobsize
            for drop in header.dropped:
                of.told |= dict.fromkeys(range(drop.first, drop.last + 1), drop.reason)
        return fate

    def _ack(self, writer: asyncio.StreamWriter) -> None:
        if not self.acking:
            return
        epochs: dict[str, dict[str, ack.StreamAck]] = defaultdict(dict)
        for (epoch, stream), of in self.copies.items():
            epochs[epoch][stream] = of.word()
        topic, payload = b"holdfast/v1/dev/ack", ack.encode(ack.Ack(dict(epochs)))
        body = len(topic).to_bytes(2, "big") + topic + b"\0" + payload
        writer.write(b"\x30" + _varint(len(body)) + body)


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind, size, shift = (await reader.readexactly(1))[0], 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return kind, await reader.readexactly(size)


def _varint(number: int) -> bytes:
    found = b""
    while True:
        number, low = number >> 7, number & 127
        found += bytes([low | (128 if number else 0)])
        if not number:
            return found
