"""The bodies of requests: how every door reads what it is sent.

A length that is too large is refused before a byte is read; what is long takes its share of the
room for all bodies (room.py), and what comes too slowly is ended (pace.py). Who asks first whether
to send it (`Expect: 100-continue`) is told so when all of that was looked at.

Limits: each door's Bound.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from aiohttp import HttpVersion11, web

from agent.api.entry.http import Handler
from agent.api.entry.limits import LIMITS
from agent.api.entry.pace import BYTES_PER_S
from agent.api.entry.room import Share
from agent.api.entry.visiting import receiving
from agent.errors import TooLarge, TooSlow
from agent.inference.wire import Buffer

INVITATION = b"HTTP/1.1 100 Continue\r\n\r\n"


class Bound(NamedTuple):
    """What a door takes; `whole_s`: in which it comes, None: as the doors have it."""

    bytes_max: int
    hint: str = "send less at once"
    whole_s: float | None = None


class Incoming:
    """A body as it comes."""

    def __init__(self, request: web.Request, bound: Bound) -> None:
        self._request = request
        self._bound = bound
        self._size_bytes = 0
        self._asked_for = "Expect" not in request.headers or request.version < HttpVersion11

    async def piece(self) -> bytes:
        """What has come; b"" at the end. Raises TooLarge, TooSlow."""
        if not self._asked_for:
            self._asked_for = True
            await self._request.writer.write(INVITATION)
            self._request.writer.output_size = 0  # the answer has not begun
        found = await self._request.content.readany()
        self._size_bytes += len(found)
        self.check(self._size_bytes)
        return found

    def check(self, size_bytes: int) -> None:
        """Raises TooLarge where that is above the bound."""
        if size_bytes > self._bound.bytes_max:
            raise TooLarge(
                f"the body of {self._request.path} is above {self._bound.bytes_max} bytes",
                self._bound.hint,
            )

    def end(self) -> None:
        """It comes too slowly: nobody waits for it any longer."""
        protocol = self._request.protocol
        if isinstance(protocol, Handler):
            protocol.hurry()
        error = TooSlow(
            f"the body of {self._request.path} does not come, or comes too slowly",
            f"send it within {self._bound.whole_s or LIMITS.body_s:g} s, at {BYTES_PER_S} bytes/s "
            f"or more, without a pause of {LIMITS.pause_s:g} s",
        )
        self._request.content.set_exception(error)


@contextmanager
def incoming(request: web.Request, bound: Bound) -> Iterator[Incoming]:
    """A request's body, while it is read. Raises TooLarge where its length says so already."""
    found = Incoming(request, bound)
    found.check(request.content_length or 0)
    with receiving(request, bound.whole_s, found.end):
        yield found


async def body_of(request: web.Request, bound: Bound, share: Share | None = None) -> Buffer:
    """The whole body, without the copies that joining its pieces would cost.

    It has room from the start, as far as its length is said; else as it grows. Who may be sent more
    than room.SMALL_BYTES must have a `share`. Raises TooLarge, TooSlow, BusyError.
    """
    with incoming(request, bound) as coming:
        length = request.content_length or 0
        if share:
            share.insist(length)
        piece = await coming.piece()
        if len(piece) == length:
            return piece
        body = bytearray()  # it grows as it comes: a header alone must not take what it announces
        while piece:
            if share:
                share.insist(len(body) + len(piece))
            body += piece
            piece = await coming.piece()
        return body
