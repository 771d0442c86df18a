"""Server-sent events (WHATWG): what happens, told to whoever listens.

A listener is asked for nothing but to read. What is to be told comes from a generator, and that is
asked for the next event only when the one before is out: nothing is queued for a listener who is
slow, and a state that changed twice meanwhile is told once.

Limits: so many listeners at once as Bounds says, fewer than the doors have places (doors.py), so
that there is always a way in; and so many of each caller, whatever they listen to, so that none
takes all: a token is one caller, by whichever way and with however many sessions it comes. Who
takes nothing for `patience_s` is let go; until then, some 128 KiB wait for him. A comment each
`heartbeat_s` finds out who is gone without a word.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from agent.api.entry.guard import caller_of
from agent.api.entry.refusals import refusal
from agent.api.entry.visiting import abandonable
from agent.api.form.route import Media
from agent.errors import BusyError, HoldfastError

log = logging.getLogger("api")
KIND = "text/event-stream"
LAST_S = 0.1  # for what was said just before the end
RETRY_S = 2.0  # when a browser comes again after the end of a stream
HEARTBEAT = b":\n\n"
HEADERS = {
    "Content-Type": KIND,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # or nginx keeps what comes until it is much
}


class Bounds(NamedTuple):
    """How many listen at once, and how long they are waited for."""

    tcp_max: int = 32
    socket_max: int = 8
    caller_max: int = 6  # a page has one while somebody looks at it
    heartbeat_s: float = 15.0
    patience_s: float = 15.0
    retry_s: float = 5.0  # nobody knows when a listener leaves


BOUNDS = Bounds()


def events(**forms: Any) -> Media:
    """A stream of events as an answer: what they carry, by their names; `trouble` besides."""
    return Media(KIND, events=forms)


def event(name: str, content: Any, number: int | None = None) -> bytes:
    """One event with a JSON document, which has no line ends; `number` is where it stands."""
    head = f"event: {name}\n" if number is None else f"event: {name}\nid: {number}\n"
    return head.encode() + b"data: " + msgspec.json.encode(content) + b"\n\n"


class Listeners:
    """All of them, at whatever door."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self._bounds = bounds
        self._streams: set[_Stream] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._streams)

    async def serve(
        self, request: web.Request, events: AsyncGenerator[bytes, None]
    ) -> web.StreamResponse:
        """Tell these events until they end, the client leaves, or the agent ends.

        What the generator raises of Holdfast's errors is told as an event `trouble`, the last one.
        429 when this caller has too many already. Raises BusyError when too many listen in all.
        """
        stream = _Stream(request, events, self._bounds)
        try:
            if refused := self._refused(stream):
                return refused
            self._admit(stream)
            with abandonable(request):
                return await stream.run()
        finally:
            self._streams.discard(stream)
            await events.aclose()

    def end(self) -> None:
        """All streams end now, and no other begins."""
        self._ended = True
        for stream in self._streams:
            stream.end()

    def _refused(self, stream: "_Stream") -> web.Response | None:
        """To somebody who has his share already."""
        caller, most = stream.caller, self._bounds.caller_max
        if sum(one.caller.key == caller.key for one in self._streams) < most:
            return None
        return refusal(
            429,
            f"{caller.name} has {most} streams of events open, as many as one caller may",
            "close one (a page, a program that follows), or use another token for this:"
            " holdfast tokens create",
            self._bounds.retry_s,
        )

    def _admit(self, stream: "_Stream") -> None:
        most = self._bounds.socket_max if stream.local else self._bounds.tcp_max
        if self._ended:
            raise BusyError("the agent is ending", "try again when it is back", RETRY_S)
        if sum(one.local == stream.local for one in self._streams) >= most:
            raise BusyError(
                f"{most} listen to events already, as many as may at once",
                "close one, or ask for the document itself now and then",
                self._bounds.retry_s,
            )
        self._streams.add(stream)


class _Stream:
    """One listener's."""

    def __init__(
        self, request: web.Request, events: AsyncGenerator[bytes, None], bounds: Bounds
    ) -> None:
        sock = request.transport.get_extra_info("socket") if request.transport else None
        self.caller = caller_of(request)
        self.local = sock is not None and sock.family == socket.AF_UNIX
        self._request = request
        self._events = events
        self._bounds = bounds
        self._answer = web.StreamResponse(headers=HEADERS)
        self._coming: asyncio.Task[bytes | None] | None = None
        self._ended = False

    @property
    def waits_for_reader(self) -> bool:
        """Whether something is out that he did not take yet."""
        transport = self._request.transport
        return transport is not None and transport.get_write_buffer_size() > 0

    def end(self) -> None:
        """What has been told by now is all; of that the last may be on its way."""
        self._ended = True
        if self._coming:
            asyncio.get_running_loop().call_later(LAST_S, self._coming.cancel)
        if self.waits_for_reader and self._request.transport:
            self._request.transport.abort()  # or he would keep us waiting

    async def run(self) -> web.StreamResponse:
        """Tell all."""
        await self._answer.prepare(self._request)
        if self._request.method == "HEAD":
            return self._answer
        whole = False
        try:
            await self._write(f"retry: {RETRY_S * 1000:.0f}\n\n".encode())
            await self._tell()
            await self._answer.write_eof()
            whole = True
        except TimeoutError:
            log.info("%s: a listener was let go: it does not read", self._request.path)
        except ConnectionError:
            log.debug("%s: a listener is gone", self._request.path)
        finally:
            if not whole and self._request.transport:
                self._request.transport.abort()
        return self._answer

    async def _tell(self) -> None:
        """Raises TimeoutError where nobody reads."""
        try:
            while (content := await self._next()) is not None:
                await self._write(content)
        except HoldfastError as error:
            log.info("%s: %s", self._request.path, error)
            await self._write(event("trouble", {"error": str(error), "hint": error.hint}))

    async def _next(self) -> bytes | None:
        """What is to be told next, with heartbeats until then; None at the end."""
        if self._ended:
            return None
        coming = self._coming = asyncio.create_task(_following(self._events))
        try:
            while not (await asyncio.wait([coming], timeout=self._bounds.heartbeat_s))[0]:
                await self._write(HEARTBEAT)
        finally:
            self._coming = None
            if not coming.done():  # this stream is cancelled; its generator must be at rest
                coming.cancel()
                await asyncio.wait([coming])
        return None if coming.cancelled() else coming.result()

    async def _write(self, content: bytes) -> None:
        async with asyncio.timeout(self._bounds.patience_s):
            await self._answer.write(content)


async def _following(events: AsyncGenerator[bytes, None]) -> bytes | None:
    try:
        return await anext(events)
    except StopAsyncIteration:
        return None
