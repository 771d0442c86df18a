"""The short way for inference: the same `infer` as in inference.py, without aiohttp in between.

A program that asks a model thousands of times a second sends the same header each time. Such a
header is taken apart once, by aiohttp's own parser, and remembered; the next request with the same
bytes goes from the socket to the scheduler in one step, without a task. That halves what a small
call costs the agent (python -m bench.serving). What it shows of a token is remembered with it, and
all is forgotten when the tokens change.

A connection begins here. What is not a plain `infer` (another route or method, chunks, compression,
`Expect`, `Prefer`, `Origin`, a cookie, a header in pieces, a name that this agent does not answer
to, a caller who may not, or not so often, a body for which there is no room) goes to aiohttp, and
with it all that follows on that connection: there is one place where requests are refused, and it
is not here.

Limits: HEADS_MAX headers of HEAD_BYTES_MAX are remembered; a body has oip.BODY_BYTES_MAX, one that
is all JSON oip_asked.JSON_BYTES_MAX; of a client that sends ahead, AHEAD_BYTES_MAX are read before
its answer is out.
"""

import asyncio
import logging
import re
from typing import NamedTuple

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError

from agent import logs
from agent.api.entry.access import Caller, address_of, forwarded
from agent.api.entry.coding import accepted
from agent.api.entry.doors import Place
from agent.api.entry.guard import REQUEST_ID, Guard, request_id
from agent.api.entry.room import SMALL_BYTES, Share
from agent.api.entry.traffic import LEFT, Tally, Traffic
from agent.api.routes.inference import Call, Inference, Reply, ending, refused
from agent.forms import Scope
from agent.inference import oip, oip_asked
from agent.inference.domains.work import Result
from agent.inference.wire import Buffer

log = logging.getLogger("api")
PATH = re.compile(r"/v2/models/([A-Za-z0-9_.-]+)(?:/versions/([0-9]+))?/infer")
ROUTES = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
INFER: tuple[Scope, ...] = ("infer",)
FAULT = "an answer could not be given"
HEADS_MAX = 256
HEAD_BYTES_MAX = 4096
AHEAD_BYTES_MAX = 256 * 1024
END = b"\r\n\r\n"
REHEARSAL = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}
REASONS |= {413: "Content Too Large", 503: "Service Unavailable", 504: "Gateway Timeout"}
CODED = ("Transfer-Encoding", "Content-Encoding")
FOREIGN = (*CODED, "Cookie", "Origin", "Expect", "Prefer", "Upgrade")


class Head(NamedTuple):
    """What a header asks; `caller`: whose token it shows, `name`: what it calls itself."""

    tally: Tally
    model: str
    version: str | None
    json_bytes: str | None
    body_bytes: int
    packs: str | None  # how its answer may be packed
    caller: Caller | None
    name: str | None


class Express:
    """What all connections share."""

    def __init__(self, inference: Inference, guard: Guard, traffic: Traffic) -> None:
        self.inference = inference
        self.guard = guard
        self.traffic = traffic
        self._heads: dict[bytes, Head | None] = {}
        self._lanes: set[Lane] = set()
        self._fewer = asyncio.Event()
        if guard.access.tokens:
            guard.access.tokens.changed.append(self._look)

    def _look(self) -> None:
        """Tokens have changed: whose calls are no longer his to make loses his connection."""
        self._heads.clear()
        for lane in list(self._lanes):
            if lane.caller and not self.guard.access.holds(lane.caller):
                lane.transport.abort()

    def head(self, content: bytes) -> Head | None:
        """What a whole header asks; None: it is aiohttp's."""
        try:
            return self._heads[content]
        except KeyError:
            pass
        found = self._read(content)
        if found and found.name:  # it will hardly come again, and would take another's place
            return found
        if len(self._heads) >= HEADS_MAX:
            del self._heads[next(iter(self._heads))]
        self._heads[content] = found
        return found

    def forget(self) -> None:
        """This agent has other names now."""
        self._heads.clear()

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
                lane.give_up()

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
            and not forwarded(headers)
            and len(headers.getall(oip_asked.HEADER, [])) <= 1
            and self.guard.answers_to(headers.get("Host", ""))
        )
        if not plain or path is None or len(length) != 1:
            return None
        json_bytes = headers.get(oip_asked.HEADER)
        most = oip.BODY_BYTES_MAX if json_bytes else oip_asked.JSON_BYTES_MAX
        if not length[0].isdigit() or int(length[0]) > most:
            return None
        shown = headers.getall("Authorization", [])
        return Head(
            self.traffic.tally(ROUTES[path[2] is not None], "POST"),
            path[1],
            path[2],
            json_bytes,
            int(length[0]),
            accepted(",".join(headers.getall("Accept-Encoding", []))),
            self.guard.access.bearer(shown) if shown else None,
            request_id(headers),
        )


class Lane:
    """One connection, for as long as it brings nothing but plain `infer`s."""

    def __init__(self, express: Express, transport: asyncio.Transport, place: Place) -> None:
        self._express = express
        self.transport = transport
        self._place = place
        self._share = Share(express.inference.room)
        self._held = b""  # what was sent ahead
        self._head: Head | None = None
        self._began_s = 0.0
        self._body: bytearray | None = None
        self._call: Call | None = None
        self._packs: str | None = None
        self._packing: asyncio.Future[Reply] | None = None
        self._stuck = False  # the client does not take its answers
        self._last = False  # no request follows this one
        self._arrival = express.guard.access.arrival(transport)
        self.caller: Caller | None = None  # of the request that is read or answered
        self._name = ""  # of that request

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
        if self._packing is not None:
            self._packing.cancel()
        elif self._call is not None:
            self._call.answer.cancel()

    def finish(self) -> None:
        """Take no request any more."""
        self._last = True
        if self._call is None:
            self.transport.close()

    def give_up(self) -> None:
        """As `finish`, but a call that is under way is answered now: there is no more time."""
        self._last = True
        if self._call is None or self._packing is not None:
            self.transport.abort()
            return
        self._call.answer.remove_done_callback(self._answered)
        self._call.answer.cancel()
        self._over(refused(ending()))

    def _begin(self, data: bytes) -> None:
        end = data.find(END) + len(END)
        # A header in pieces is not taken apart here: aiohttp may refuse it before it is whole.
        head = self._express.head(data[:end]) if len(END) <= end <= HEAD_BYTES_MAX else None
        if head is None or not self._admits(head):
            self._share.leave()
            self._express.gone(self)
            self.transport.resume_reading()
            self._place.leave(data)
            return
        self._head, self._began_s = head, self._express.traffic.now_s()
        size = head.body_bytes
        have = min(len(data) - end, size)
        if have == size:
            self._held = data[end + have :]
            self._ask(head, memoryview(data)[end : end + have])
            return
        # It grows as it comes: a header alone must not take what it only announces.
        self._body = bytearray(data[end:])
        self.transport.resume_reading()
        self._place.receive()

    def _admits(self, head: Head) -> bool:
        """Whether it may be asked, now, and has room; else aiohttp says so."""
        self.caller = caller = head.caller or self._arrival
        if head.body_bytes > SMALL_BYTES:
            self._share.caller = caller.token or address_of(self.transport)
        if not caller.may(INFER) or not self._share.take(head.body_bytes):
            return False
        return caller.free or not self._express.guard.wait_s(caller, self.transport)

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
        self._express.guard.active_requests += 1
        self._name = head.name or self._express.guard.fresh_id()
        with logs.naming(self._name):
            call = self._express.inference.begin(head.model, head.version, head.json_bytes, body)
        self._call, self._packs = call, head.packs
        call.answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[Result]) -> None:
        inference, call = self._express.inference, self._call
        reply, packing = None, None
        try:
            if call is not None and not answer.cancelled():
                with logs.naming(self._name):
                    reply = inference.reply(call)
                packing = inference.packing(reply, self._packs) if self._packs else None
        except Exception:  # the border: a fault of ours must not leave the client waiting
            log.exception(FAULT)
            self._fault()
            return
        if packing is None:
            self._over(reply)
        else:
            self._packing = packing
            packing.add_done_callback(self._packed)

    def _packed(self, packing: asyncio.Future[Reply]) -> None:
        self._packing = None
        if not packing.cancelled() and (error := packing.exception()):
            log.error(FAULT, exc_info=error)
            self._fault()
        else:
            self._over(None if packing.cancelled() else packing.result())

    def _fault(self) -> None:
        """There is an answer, and it cannot be given: the client is not to wait for it."""
        self.transport.abort()
        self._over(None)

    def _over(self, reply: Reply | None) -> None:
        """A call has its reply; None: nobody waits for it."""
        self._express.guard.active_requests -= 1
        self._call = None
        if self._share.held_bytes:
            self._share.leave()
        if reply is None or self.transport.is_closing():
            self._count(LEFT)
            return
        self._write(reply)
        self._count(reply.status)
        if self._last:
            self.transport.close()
        else:
            self._next()

    def _count(self, status: int) -> None:
        assert self._head is not None
        self._head.tally.add(status, self._express.traffic.now_s() - self._began_s)

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
        head += f"{REQUEST_ID}: {self._name}\r\n"
        if reply.json_bytes is not None:
            head += f"{oip_asked.HEADER}: {reply.json_bytes}\r\n"
        if reply.retry_s is not None:
            head += f"Retry-After: {reply.retry_s}\r\n"
        if reply.coding is not None:
            head += f"Content-Encoding: {reply.coding}\r\n"
        head += f"Content-Length: {sum(map(len, reply.pieces))}\r\n\r\n"
        self.transport.writelines([head.encode(), *reply.pieces])
