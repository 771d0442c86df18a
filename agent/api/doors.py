"""How many may stand in a door at once, and for how long without a request.

aiohttp limits neither: connections that bring no request would, one by one, take every file
descriptor that the store and the domains need. So each of its protocols stands behind a Visitor,
which takes a place and watches the clock.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, cast

from aiohttp import web

DOUBT_S = 0.1  # a second look before an end; a timer so late: this process stood still


class Limits(NamedTuple):
    """What the doors allow; seconds count until a whole request header is there."""

    tcp_places: int = 64  # monitoring takes one or two; a descriptor each, of the usual 1024
    socket_places: int = 16  # its own, so that the command gets in however full the other door is
    first_request_s: float = 10.0  # from this machine a request takes milliseconds
    next_request_s: float = 15.0  # from the last answer on, which has to be taken within it too
    body_s: float = 60.0  # from the header of an `infer` to the end of its body


LIMITS = Limits()


class Lane(Protocol):
    """A shorter way for some requests; express.py."""

    @property
    def busy(self) -> bool: ...  # noqa: D102
    def feed(self, data: bytes) -> None: ...  # noqa: D102
    def pause(self) -> None: ...  # noqa: D102
    def resume(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Place(Protocol):
    """What a lane tells of its connection."""

    def receive(self) -> None:
        """A header was there, its body is not yet."""

    def rest(self) -> None:
        """An answer is out."""

    def leave(self, data: bytes) -> None:
        """This is aiohttp's, with all that follows."""


Lanes = Callable[[asyncio.Transport, Place], Lane]


class Door:
    """Makes the protocols of one listening socket, as `loop.create_server` wants it."""

    def __init__(
        self,
        inside: Callable[[], asyncio.Protocol],
        places: int,
        limits: Limits,
        lanes: Lanes | None = None,
    ) -> None:
        """`inside` makes the protocols that serve; at most `places` of them are connected."""
        self.inside = inside
        self.places_free = places
        self.limits = limits
        self.lanes = lanes

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return Visitor(self)


class Visitor(asyncio.Protocol):
    """One connection: turned away at once when there is no place, ended when it says nothing.

    It begins in the express lane, if there is one, and stays there for as long as that takes what
    it asks; then aiohttp serves it.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._lane: Lane | None = None
        self._serving: asyncio.Protocol | None = None
        self._transport: asyncio.Transport
        self._placed = False
        self._task: asyncio.Task[Any] | None = None  # that ends when the visitor leaves
        self._due_s: float | None = None  # when it will have been silent for too long
        self._timer: asyncio.TimerHandle | None = None
        self._look_s = 0.0  # when it comes; uvloop's own does not say so where it comes at once
        self._limit_s = 0.0  # that is due then
        self._doubted = False  # it was due at the last look too

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, if there is one."""
        self._transport = cast(asyncio.Transport, transport)
        if self._door.places_free == 0:
            self._transport.abort()
            return
        self._door.places_free -= 1
        self._placed = True
        self._wait(self._door.limits.first_request_s)
        self._look()
        if self._door.lanes:
            self._lane = self._door.lanes(self._transport, self)
        else:
            self.leave(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        if not self._placed:
            return
        self._placed = False
        self._door.places_free += 1
        if self._timer:
            self._timer.cancel()
        if self._lane:
            self._lane.close()
            self._lane = None
        if self._serving:
            self._serving.connection_lost(exc)
            self._serving = None
        if self._task:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Hand on."""
        if self._lane:
            self._lane.feed(data)
        elif self._serving:
            self._serving.data_received(data)

    def eof_received(self) -> bool | None:
        """Hand on."""
        return self._serving.eof_received() if self._serving else None

    def pause_writing(self) -> None:
        """Hand on."""
        if self._lane:
            self._lane.pause()
        elif self._serving:
            self._serving.pause_writing()

    def resume_writing(self) -> None:
        """Hand on."""
        if self._lane:
            self._lane.resume()
        elif self._serving:
            self._serving.resume_writing()

    @contextmanager
    def served(self) -> Iterator[None]:
        """No limit while a request is being worked on; a new one from then on."""
        self._due_s = None
        try:
            yield
        finally:
            self.rest()

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """The limit for a body."""
        self.receive()
        try:
            yield
        finally:
            self._due_s = None

    def receive(self) -> None:
        """The limit for a body, which ends with a call or an answer."""
        self._wait(self._door.limits.body_s)

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """The work for this request ends when the visitor leaves."""
        self._task = asyncio.current_task()
        try:
            yield
        finally:
            self._task = None

    def leave(self, data: bytes) -> None:
        """From the lane to aiohttp, with what that is to read first."""
        self._lane = None
        self._serving = self._door.inside()
        self._serving.connection_made(self._transport)
        if data:
            self._serving.data_received(data)

    def rest(self) -> None:
        """A new limit, for the next request."""
        self._wait(self._door.limits.next_request_s)

    def _wait(self, seconds: float) -> None:
        self._limit_s, self._doubted = seconds, False
        self._due_s = self._loop.time() + seconds
        if self._timer and self._look_s > self._due_s:
            self._timer.cancel()
            self._look_at(self._due_s)

    def _look(self) -> None:
        """Whether it is due. One timer at a time, for a request must not cost one."""
        now_s, limits = self._loop.time(), self._door.limits
        busy = self._due_s is None or (self._lane is not None and self._lane.busy)
        due_s = now_s + limits.next_request_s if busy or self._due_s is None else self._due_s
        if due_s > now_s:
            self._look_at(due_s)
        elif not self._doubted:  # what it said may lie in the socket, or come as soon as we read
            self._doubted = True
            stood_still = now_s - self._look_s > DOUBT_S
            self._look_at(now_s + (self._limit_s if stood_still else DOUBT_S))
        else:
            # Aborted, not closed: a client that does not read would keep its place until it did.
            self._transport.abort()

    def _look_at(self, when_s: float) -> None:
        self._look_s = when_s
        self._timer = self._loop.call_at(when_s, self._look)


def served(request: web.Request) -> AbstractContextManager[None]:
    """The time in which a request is worked on, for the connection it came by."""
    visitor = request.transport.get_protocol() if request.transport else None
    return visitor.served() if isinstance(visitor, Visitor) else nullcontext()


def receiving(request: web.Request) -> AbstractContextManager[None]:
    """The time in which a request's body comes, for the connection it comes by."""
    visitor = request.transport.get_protocol() if request.transport else None
    return visitor.receiving() if isinstance(visitor, Visitor) else nullcontext()


def abandonable(request: web.Request) -> AbstractContextManager[None]:
    """What of a request's work ends when its client leaves."""
    visitor = request.transport.get_protocol() if request.transport else None
    return visitor.abandonable() if isinstance(visitor, Visitor) else nullcontext()
