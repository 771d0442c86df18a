"""The short way for inference: the same `infer` as in inference.py, without aiohttp in between.

A program that asks a model thousands of times a second sends the same header each time. Such a
header is taken apart once, by aiohttp's own parser, and remembered; the next request with the same
bytes goes from the socket to the scheduler in one step, without a task. That halves what a small
call costs the agent (python -m bench.serving).

A connection begins here. What is not a plain `infer` (another route or method, chunks, compression,
`Expect`, `Origin`, a header in pieces, a name that this agent does not answer to, a body for which
there is no room) goes to aiohttp, and with it all that follows on that connection: there is one
place where requests are refused, and it is not here.

Limits: HEADS_MAX headers of HEAD_BYTES_MAX are remembered; a body has oip.BODY_BYTES_MAX; of a
client that sends ahead, AHEAD_BYTES_MAX are read before its answer is out.
"""

import asyncio
import re
from typing import NamedTuple, Protocol

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError

from agent.api.doors import Place
from agent.api.inference import Call, Inference, Reply
from agent.api.room import SMALL_BYTES, Share
from agent.inference import oip
from agent.inference.domains.work import Result
from agent.inference.wire import Buffer

PATH = re.compile(r"/v2/models/([A-Za-z0-9_.-]+)(?:/versions/([0-9]+))?/infer")
HEADS_MAX = 256
HEAD_BYTES_MAX = 4096
AHEAD_BYTES_MAX = 256 * 1024
END = b"\r\n\r\n"
REHEARSAL = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}
REASONS |= {503: "Service Unavailable", 504: "Gateway Timeout"}
FOREIGN = ("Origin", "Expect", "Transfer-Encoding", "Content-Encoding", "Upgrade")


class Head(NamedTuple):
    """What a header asks."""

    model: str
    version: str | None
    json_bytes: str | None
    body_bytes: int


class Counter(Protocol):
    """Who counts the requests that are under way, and knows this agent's names; guard.py."""

    active_requests: int

    def answers_to(self, host: str) -> bool:
        """Whether this agent is called so."""


class Express:
    """What all connections share."""

    def __init__(self, inference: Inference, counter: Counter) -> None:
        self.inference = inference
        self.counter = counter
        self._heads: dict[bytes, Head | None] = {}
        self._lanes: set[Lane] = set()
        self._fewer = asyncio.Event()

    def head(self, content: bytes) -> Head | None:
        """What a whole header asks; None: it is aiohttp's."""
        try:
            return self._heads[content]
        except KeyError:
            pass
        found = self._read(content)
        if len(self._heads) >= HEADS_MAX:
            del self._heads[next(iter(self._heads))]
        self._heads[content] = found
        return found

    def lane(self, transport: asyncio.Transport, place: Place) -> "Lane":
        """For a new connection."""
        if not self._heads:
            self.head(REHEARSAL)  # the parser's first header costs more, and nobody waits now
        made = Lane(self, transport, place)
        self._lanes.add(made)
        return made

    def gone(self, lane: "Lane") -> None:
        """A connection has ended, or is aiohttp's."""
        self._lanes.discard(lane)
        self._fewer.set()

    async def close(self, patience_s: float) -> None:
        """End all connections; those with a call when it is answered, if that is soon."""
        for lane in list(self._lanes):
            lane.finish()
        try:
            async with asyncio.timeout(patience_s):
                while self._lanes:
                    self._fewer.clear()
                    await self._fewer.wait()
        except TimeoutError:
            for lane in list(self._lanes):
                lane.transport.abort()

    def _read(self, content: bytes) -> Head | None:
        loop = asyncio.get_running_loop()
        parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16)
        try:
            messages, upgraded, _ = parser.feed_data(content)
        except HttpProcessingError:
            return None
        if len(messages) != 1 or upgraded:
            return None
        message = messages[0][0]
        headers = message.headers
        path = PATH.fullmatch(message.path)
        length = headers.getall("Content-Length", [])
        plain = (
            message.method == "POST"
            and message.version == HttpVersion11
            and not message.should_close
            and not any(name in headers for name in FOREIGN)
            and len(headers.getall(oip.HEADER, [])) <= 1
            and self.counter.answers_to(headers.get("Host", ""))
        )
        if not plain or path is None or len(length) != 1:
            return None
        if not length[0].isdigit() or int(length[0]) > oip.BODY_BYTES_MAX:
            return None
        return Head(path[1], path[2], headers.get(oip.HEADER), int(length[0]))


class Lane:
    """One connection, for as long as it brings nothing but plain `infer`s."""

    def __init__(self, express: Express, transport: asyncio.Transport, place: Place) -> None:
        self._express = express
        self.transport = transport
        self._place = place
        self._share = Share(express.inference.room)
        self._held = b""  # what was sent ahead
        self._head: Head | None = None
        self._body: bytearray | None = None
        self._call: Call | None = None
        self._stuck = False  # the client does not take its answers
        self._last = False  # no request follows this one

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._call is not None

    def feed(self, data: bytes) -> None:
        """Take what came."""
        if self._call is not None or self._stuck:
            self._held += data
            if len(self._held) > AHEAD_BYTES_MAX:
                self.transport.pause_reading()
        elif self._body is not None:
            self._more(data)
        else:
            self._begin(data)

    def pause(self) -> None:
        """The client does not take its answers: it gets no more before it does."""
        self._stuck = True

    def resume(self) -> None:
        """It takes them again."""
        self._stuck = False
        if self._call is None:
            self._next()

    def close(self) -> None:
        """The client has gone: nobody waits for the call's answer."""
        self._express.gone(self)
        self._share.leave()
        if self._call is not None:
            self._call.answer.cancel()

    def finish(self) -> None:
        """Take no request any more."""
        self._last = True
        if self._call is None:
            self.transport.close()

    def _begin(self, data: bytes) -> None:
        end = data.find(END) + len(END)
        # A header in pieces is not taken apart here: aiohttp may refuse it before it is whole.
        head = self._express.head(data[:end]) if len(END) <= end <= HEAD_BYTES_MAX else None
        size = head.body_bytes if head else 0
        if head is None or (size > SMALL_BYTES and not self._share.take(size)):
            self._express.gone(self)
            self.transport.resume_reading()
            self._place.leave(data)
            return
        have = min(len(data) - end, size)
        if have == size:
            self._held = data[end + have :]
            self._ask(head, memoryview(data)[end : end + have])
            return
        # It grows as it comes: a header alone must not take what it only announces.
        self._head, self._body = head, bytearray(data[end:])
        self.transport.resume_reading()
        self._place.receive()

    def _more(self, data: bytes) -> None:
        assert self._body is not None
        assert self._head is not None
        missing = self._head.body_bytes - len(self._body)
        self._body += data[:missing]
        if len(data) >= missing:
            body, self._body = self._body, None
            self._held = data[missing:]
            self._ask(self._head, body)

    def _ask(self, head: Head, body: Buffer) -> None:
        self._express.counter.active_requests += 1
        call = self._express.inference.begin(head.model, head.version, head.json_bytes, body)
        self._call = call
        call.answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[Result]) -> None:
        self._express.counter.active_requests -= 1
        call, self._call = self._call, None
        if self._share.held_bytes:
            self._share.leave()
        if call is None or answer.cancelled():
            return
        reply = self._express.inference.reply(call)
        if self.transport.is_closing():
            return
        self._write(reply)
        if self._last:
            self.transport.close()
        else:
            self._next()

    def _next(self) -> None:
        """Go on with what was sent ahead."""
        self._place.rest()
        if self._held and not self._stuck:
            data, self._held = self._held, b""
            if len(data) <= AHEAD_BYTES_MAX:
                self.transport.resume_reading()
            self._begin(data)

    def _write(self, reply: Reply) -> None:
        head = f"HTTP/1.1 {reply.status} {REASONS[reply.status]}\r\nContent-Type: {reply.kind}\r\n"
        if reply.json_bytes is not None:
            head += f"{oip.HEADER}: {reply.json_bytes}\r\n"
        if reply.retry_s is not None:
            head += f"Retry-After: {reply.retry_s}\r\n"
        head += f"Content-Length: {sum(map(len, reply.pieces))}\r\n\r\n"
        self.transport.writelines([head.encode(), *reply.pieces])
