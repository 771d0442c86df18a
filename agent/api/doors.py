"""How many may stand in a door at once, and for how long without a request.

aiohttp limits neither: connections that bring no request would, one by one, take every file
descriptor that the store and the domains need. So each of its protocols stands behind a Visitor,
which takes a place and watches the clock.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, cast

from aiohttp import web


class Limits(NamedTuple):
    """What the doors allow; seconds count until a whole request header is there."""

    tcp_places: int = 64  # monitoring takes one or two; a descriptor each, of the usual 1024
    socket_places: int = 16  # its own, so that the command gets in however full the other door is
    first_request_s: float = 10.0  # from this machine a request takes milliseconds
    next_request_s: float = 15.0  # from the last answer on, which has to be taken within it too


LIMITS = Limits()


class Door:
    """Makes the protocols of one listening socket, as `loop.create_server` wants it."""

    def __init__(self, inside: Callable[[], asyncio.Protocol], places: int, limits: Limits) -> None:
        """`inside` makes the protocols that serve; at most `places` of them are connected."""
        self.inside = inside
        self.places_free = places
        self.limits = limits

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return Visitor(self)


class Visitor(asyncio.Protocol):
    """One connection: turned away at once when there is no place, ended when it says nothing."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._serving: asyncio.Protocol | None = None  # while it has a place
        self._transport: asyncio.Transport
        self._end: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, if there is one."""
        self._transport = cast(asyncio.Transport, transport)
        if self._door.places_free == 0:
            self._transport.abort()
            return
        self._door.places_free -= 1
        self._serving = self._door.inside()
        self._serving.connection_made(transport)
        self._wait(self._door.limits.first_request_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        if self._serving:
            self._end.cancel()
            self._door.places_free += 1
            self._serving.connection_lost(exc)
            self._serving = None

    def data_received(self, data: bytes) -> None:
        """Hand on."""
        if self._serving:
            self._serving.data_received(data)

    def eof_received(self) -> bool | None:
        """Hand on."""
        return self._serving.eof_received() if self._serving else None

    def pause_writing(self) -> None:
        """Hand on."""
        if self._serving:
            self._serving.pause_writing()

    def resume_writing(self) -> None:
        """Hand on."""
        if self._serving:
            self._serving.resume_writing()

    @contextmanager
    def served(self) -> Iterator[None]:
        """No limit while a request is being worked on; a new one from then on."""
        self._end.cancel()
        try:
            yield
        finally:
            if self._serving:
                self._wait(self._door.limits.next_request_s)

    def _wait(self, seconds: float) -> None:
        # Aborted, not closed: a client that does not read would keep its place until it did.
        self._end = asyncio.get_running_loop().call_later(seconds, self._transport.abort)


def served(request: web.Request) -> AbstractContextManager[None]:
    """The time in which a request is worked on, for the connection it came by."""
    visitor = request.transport.get_protocol() if request.transport else None
    return visitor.served() if isinstance(visitor, Visitor) else nullcontext()
