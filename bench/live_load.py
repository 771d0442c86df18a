"""Live streams over WebSockets, far cheaper than any server under them, in a process of their own.

Bare protocols under uvloop; each stream sends a hop (256 samples, 16 ms) when it is due, at its own
phase: the phases are spread evenly. A denoised sample can be made once the hop behind its own is
there, so a hop's latency runs from the moment that one is handed to the socket to the moment its
own denoised samples are read from it.

    python -m bench.live_load \\
        '{"port": 8080, "streams": 20, "warm_s": 2, "run_s": 8, "keep": true, "into": "found.json"}'

says when it begins to count, and when it is over; what came of it lies in the file then.
"""

import asyncio
import json
import struct
import sys
import time
from pathlib import Path
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

from agent.records import RATE_HZ
from bench.hops import Case, Sound

HOP_SAMPLES = 256
HOP_BYTES = 2 * HOP_SAMPLES
HOP_S = HOP_SAMPLES / RATE_HZ
READ_S = 0.002
END_S_MAX = 30.0  # for what is under way at the end
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
HOP_HEAD = struct.pack("!BBH4x", 0x80 | BINARY, 0x80 | 126, HOP_BYTES)  # the mask is zero
END = b'{"event":"end"}'
END_FRAME = bytes([0x80 | TEXT, 0x80 | len(END)]) + bytes(4) + END


class Order(Struct, frozen=True):
    """So many streams for so long, after a while that does not count."""

    port: int
    streams: int
    warm_s: float
    run_s: float
    keep: bool
    into: str


class Found(Struct, frozen=True):
    """What came of it: latencies, and how late hops were sent, in seconds; samples of each stream
    sent and answered; events that no stream should be told."""

    latencies_s: list[float]
    late_s: list[float]
    sent: list[int]
    answered: list[int]
    troubles: list[str]


class Stream(asyncio.Protocol):
    """One client."""

    def __init__(self, number: int, order: Order) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent_s: list[float] = []
        self.back_s: list[float] = []  # of each hop
        self.answered = 0  # samples
        self.troubles: list[str] = []
        self._query = f"source=s{number}&keep={'true' if order.keep else 'false'}"
        self._held = b""
        self._open = False

    def itself(self) -> "Stream":
        """As `loop.create_connection` wants it."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a WebSocket."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(
            f"GET /api/v1/audio/stream?{self._query} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        for future in (self.ready, self.over):
            if not future.done():
                future.set_exception(exc or ConnectionError(self._held[:300]))

    def data_received(self, data: bytes) -> None:
        """Frames, whole or not."""
        now_s = time.perf_counter()
        self._held += data
        if not self._open:
            head, _, rest = self._held.partition(b"\r\n\r\n")
            if not _ or not head.startswith(b"HTTP/1.1 101"):
                return
            self._open, self._held = True, rest
        while (frame := self._frame()) is not None:
            self._take(*frame, now_s)

    def send(self, pcm: bytes) -> None:
        """A hop."""
        self.sent_s.append(time.perf_counter())
        self._transport.write(HOP_HEAD + pcm)

    def end(self) -> None:
        """There is no more."""
        self._transport.write(END_FRAME)

    def _frame(self) -> tuple[int, bytes] | None:
        held = self._held
        if len(held) < 2:
            return None
        size, at = held[1], 2
        if size == 126:
            if len(held) < 4:
                return None
            size, at = int.from_bytes(held[2:4]), 4
        elif size == 127:
            if len(held) < 10:
                return None
            size, at = int.from_bytes(held[2:10]), 10
        if len(held) < at + size:
            return None
        self._held = held[at + size :]
        return held[0] & 15, held[at : at + size]

    def _take(self, kind: int, content: bytes, now_s: float) -> None:
        if kind == BINARY:
            before = self.answered // HOP_SAMPLES
            self.answered += len(content) // 2
            self.back_s += [now_s] * (self.answered // HOP_SAMPLES - before)
        elif kind == PING:
            self._transport.write(bytes([0x8A, 0x80 | len(content)]) + bytes(4) + content)
        elif kind == TEXT:
            event = json.loads(content)
            if event["event"] == "ready" and not self.ready.done():
                self.ready.set_result(None)
            elif event["event"] in ("ready", "error"):
                self.troubles.append(content.decode())
            elif event["event"] == "end":
                self.over.set_result(None)
        elif kind == CLOSE:
            self._transport.close()


async def talk(streams: list[Stream], sound: Sound, run_s: float) -> list[float]:
    """Send the hops of all streams in turn, when they are due; how late each was."""
    began_s, given = time.perf_counter(), 0
    late_s: list[float] = []
    while (now_s := time.perf_counter() - began_s) < run_s:
        while (due_s := HOP_S * given / len(streams)) <= now_s:
            index = given % len(streams)
            streams[index].send(sound.next(index))
            late_s.append(now_s - due_s)
            given += 1
        await asyncio.sleep(READ_S - (time.perf_counter() - began_s) % READ_S)
    return late_s


async def run(order: Order) -> Found:
    """All of it."""
    sound = Sound(Case("live", order.streams, HOP_SAMPLES))
    loop, streams = asyncio.get_running_loop(), [Stream(i, order) for i in range(order.streams)]
    for one in streams:
        await loop.create_connection(one.itself, "127.0.0.1", order.port)
    await asyncio.wait_for(asyncio.gather(*(one.ready for one in streams)), END_S_MAX)
    await talk(streams, sound, order.warm_s)
    warm = [len(one.sent_s) for one in streams]
    print("warm", flush=True)
    late_s = await talk(streams, sound, order.run_s)
    print("done", flush=True)
    for one in streams:
        one.end()
    await asyncio.wait_for(asyncio.gather(*(one.over for one in streams)), END_S_MAX)
    latencies_s = [
        back_s - sent_s
        for one, at in zip(streams, warm, strict=True)
        for back_s, sent_s in list(zip(one.back_s, one.sent_s[1:], strict=False))[at:]
    ]
    return Found(
        latencies_s,
        late_s,
        [HOP_SAMPLES * len(one.sent_s) for one in streams],
        [one.answered for one in streams],
        [trouble for one in streams for trouble in one.troubles],
    )


def main() -> None:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    found = uvloop.run(run(order))
    Path(order.into).write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
