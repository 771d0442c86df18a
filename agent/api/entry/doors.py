"""How many may stand in a door at once, and for how long without a request.

aiohttp limits neither: connections that bring no request would, one by one, take every file
descriptor that the store and the domains need. So each of its protocols stands behind a Visitor,
which takes a place, and a Patience, which watches the clock (patience.py).

Where there is TLS, the place is taken before the handshake, and given back if that comes to
nothing.
"""

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from agent.api.entry.limits import Limits
from agent.api.entry.patience import Patience
from agent.api.entry.seats import STAYING, Seats, address
from agent.api.entry.traffic import Gate
from agent.api.entry.turns import Turns

log = logging.getLogger("api")
LINGER_NOT = struct.pack("ii", 1, 0)


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


def _without() -> ssl.SSLContext | None:
    return None


class Door:
    """Makes the protocols of one listening socket, as `loop.create_server` wants it."""

    def __init__(
        self,
        inside: Callable[[], asyncio.Protocol],
        places: int,
        limits: Limits,
        lanes: Lanes | None = None,
        tls: Callable[[], ssl.SSLContext | None] = _without,
        gate: Gate | None = None,
    ) -> None:
        """`inside` makes the protocols that serve; at most `places` of them are connected.

        `tls` is asked at each new connection. `gate` counts them, where somebody looks at it.
        """
        self.inside = inside
        self.limits = limits
        self.lanes = lanes
        self.tls = tls
        self.gate = gate or Gate(places)
        self.seats = Seats(places, self.gate)
        self._handshakes: set[asyncio.Task[None]] = set()

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        context = self.tls()
        return Visitor(self) if context is None else Arrival(self, context)

    def shake(self, sock: socket.socket, context: ssl.SSLContext, seat: str) -> None:
        """Begin with a handshake; whoever asked has a place, and it is the visitor's now."""
        visitor = Visitor(self, seat)
        task = asyncio.get_running_loop().create_task(self._shake(visitor, sock, context))
        self._handshakes.add(task)

        def ended(_: asyncio.Task[None]) -> None:
            self._handshakes.discard(task)
            visitor.stay_out()
            if task.cancelled():  # perhaps before it had begun
                sock.close()

        task.add_done_callback(ended)

    async def close(self) -> None:
        """End the handshakes that are under way."""
        for task in (ending := list(self._handshakes)):
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _shake(
        self, visitor: "Visitor", sock: socket.socket, context: ssl.SSLContext
    ) -> None:
        limit_s = self.limits.handshake_s
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: visitor,
                sock,
                ssl=context,
                ssl_handshake_timeout=limit_s,
                ssl_shutdown_timeout=limit_s,
            )
        except OSError as error:  # garbage, another's certificate, nothing for too long
            log.debug("a handshake came to nothing: %s", error)


class Arrival(asyncio.Protocol):
    """A connection before its handshake, for which its socket is begun with anew.

    `loop.start_tls` would not do: uvloop reads before it can be called, and what came is lost.
    """

    def __init__(self, door: Door, context: ssl.SSLContext) -> None:
        self._door = door
        self._context = context

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, if there is one."""
        seat = address(transport)
        if self._door.seats.take(seat):
            try:
                self._door.shake(transport.get_extra_info("socket").dup(), self._context, seat)
            except OSError as error:  # no descriptor is left
                log.warning("a connection was turned away: %s", error)
                self._door.seats.leave(seat)
        cast(asyncio.Transport, transport).abort()  # of its socket, the copy stays open


class Visitor(asyncio.Protocol):
    """One connection: turned away at once when there is no place, ended when it says nothing.

    It begins in the express lane, if there is one, and stays there for as long as that takes what
    it asks; then aiohttp serves it, until it may go back (turns.py).
    """

    def __init__(self, door: Door, seat: str | None = None) -> None:
        """`seat`: it has a place already, of this address."""
        self._door = door
        self._patience = Patience(self, door.limits)
        self._lane: Lane | None = None
        self._serving: asyncio.Protocol | None = None
        self._turns = Turns()
        self._transport: asyncio.Transport | None = None
        self._seat = seat
        self._task: asyncio.Task[Any] | None = None  # that ends when the visitor leaves

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, if there is one."""
        self._transport = cast(asyncio.Transport, transport)
        if self._seat is None and self._door.seats.take(whose := address(transport)):
            self._seat = whose
        if self._seat is None:
            self._transport.abort()
            return
        self._patience.begin()
        if self._door.lanes:
            self._lane = self._door.lanes(self._transport, self)
        else:
            self.leave(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        if self._seat is None:
            return
        self._door.seats.leave(self._seat)
        self._seat = None
        self._patience.end()
        if self._lane:
            self._lane.close()
            self._lane = None
        if self._serving:
            self._serving.connection_lost(exc)
            self._serving = None
        if self._task:
            self._task.cancel()

    def stay_out(self) -> None:
        """Give the place back, if there never was a connection."""
        if self._transport is None:
            self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        """Hand on."""
        self._door.gate.received_bytes += len(data)
        self._patience.came(len(data))
        if self._lane:
            self._lane.feed(data)
        elif self._serving and self._door.lanes and self._turns.back(self._serving, data):
            assert self._transport is not None
            self._lane = self._door.lanes(self._transport, self)
            self._lane.feed(data)
        elif self._serving:
            self._serve(self._serving, data)

    def eof_received(self) -> bool | None:
        """Hand on."""
        return self._serving.eof_received() if self._serving else None

    def pause_writing(self) -> None:
        """Hand on."""
        self._patience.stick()
        if self._lane:
            self._lane.pause()
        elif self._serving:
            self._serving.pause_writing()

    def resume_writing(self) -> None:
        """Hand on."""
        self._patience.flow()
        if self._lane:
            self._lane.resume()
        elif self._serving:
            self._serving.resume_writing()

    @property
    def busy(self) -> bool:
        """Whether it waits for us, as far as the lane knows."""
        return self._lane is not None and self._lane.busy

    @property
    def read(self) -> bool:
        """Whether what it sends is read now."""
        return self._transport is not None and self._transport.is_reading()

    @property
    def others_find_room(self) -> bool:
        """Whether there are places beyond the last ones."""
        return self._door.seats.free >= self._door.gate.places // STAYING

    @contextmanager
    def served(self) -> Iterator[None]:
        """No limit while a request is being worked on; a new one from then on."""
        self._patience.free()
        try:
            yield
        finally:
            self.rest()

    @contextmanager
    def receiving(self, whole_s: float | None, slow: Callable[[], None]) -> Iterator[None]:
        """The limits for a body, which is to be here in `whole_s`; `slow` is told once it is not,
        or does not keep its pace."""
        self._patience.receive(whole_s, slow)
        try:
            yield
        finally:
            self._patience.free()

    def receive(self) -> None:
        """The limits for a body, which end with a call or an answer."""
        self._patience.receive(None)

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
        assert self._transport is not None
        self._lane = None
        if self._serving is None:
            self._serving = self._door.inside()
            self._serving.connection_made(self._transport)
        if data:
            self._serve(self._serving, data)

    def _serve(self, serving: asyncio.Protocol, data: bytes) -> None:
        self._turns.fed(data)
        serving.data_received(data)

    def rest(self) -> None:
        """A new limit, for the next request."""
        self._patience.rest()

    def turn_out(self) -> None:
        """End the connection. Not closed: a client that does not read would keep its place until it
        did; and reset, or the kernel would keep what was written for it, and it would not know."""
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self._transport.abort()
