"""A line between two parties that can be made as bad as any network, while it is in use.

TCP on both sides, in a thread with a loop of its own. Each way has its own latency and its own
token bucket, and holds little: who sends faster than the line carries is held up, as by a modem.

    cut()              every connection is reset, now
    refusing           new connections are reset at once
    swallow()          the connections that are now open go half-open: both ways swallow, silently
    black_hole         new connections are accepted and nothing ever comes back
    reset_after(n)     the connection that carries the n-th byte up from now is reset there
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self

from tests.outside import free_port

CHUNK_BYTES = 1024
SOCKET_BYTES = 8192  # what the kernel may hold of a connection, on each side
UNDERWAY_BYTES = 1 << 18  # what may be on its way: 200 kB/s over 1.2 s there and back
RST = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Way:
    """One direction of the line: how slow and how narrow it is, and what it has carried."""

    def __init__(self) -> None:
        self.latency_s = 0.0
        self.rate_bytes_per_s: float | None = None
        self.carried_bytes = 0
        self.reset_at: int | None = None  # of `carried_bytes`
        self._free_at = 0.0  # loop time at which the bucket is empty again

    async def admit(self, size: int) -> None:
        """Wait until the line has room for so many bytes more; all connections share it."""
        if self.rate_bytes_per_s is None:
            return
        now = asyncio.get_running_loop().time()
        begin = max(now, self._free_at)
        self._free_at = begin + size / self.rate_bytes_per_s
        await asyncio.sleep(begin - now)


class Proxy:
    """Listens on `port` and carries to `target`; use it with `with`, or start and kill it."""

    def __init__(self, target: int, host: str = "127.0.0.1", *, listen: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.url = f"mqtt://{listen}:{self.port}"
        self.up, self.down = Way(), Way()
        self.refusing = False
        self.black_hole = False
        self.accepted = 0
        self._listen = listen
        self._target = (host, target)
        self._pairs: set[Pair] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._server: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen; returns once it does."""
        self._thread.start()
        self._call(self._begin())

    def kill(self) -> None:
        """Reset everything and end."""
        if self._thread.is_alive():
            self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def slow(self, latency_s: float = 0.0, rate_bytes_per_s: float | None = None) -> None:
        """Make both ways this slow (`latency_s` each way) and this narrow."""
        for way in (self.up, self.down):
            way.latency_s, way.rate_bytes_per_s = latency_s, rate_bytes_per_s

    def cut(self) -> None:
        """Reset every connection."""
        self._call(self._cut())

    def swallow(self) -> None:
        """From now on, what the open connections carry comes to nobody, and nobody is told."""
        self._call(self._swallow())

    def reset_after(self, size: int) -> None:
        """Reset the connection that carries the byte after `size` more, right there."""
        self.up.reset_at = self.up.carried_bytes + size

    def heal(self) -> None:
        """A good line; connections that are half-open stay so."""
        self.slow()
        self.refusing = self.black_hole = False
        self.up.reset_at = None

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._pairs)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _begin(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)  # inherited
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        listener.bind((self._listen, self.port))
        listener.listen(1024)
        listener.setblocking(False)
        self._server = self._loop.create_task(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                near, _ = await self._loop.sock_accept(listener)
                near.setblocking(False)
                self.accepted += 1
                if self.refusing:
                    reset(near)
                    continue
                pair = Pair(self, near, self._target)
                self._pairs.add(pair)
                task = self._loop.create_task(pair.run(hole=self.black_hole))
                task.add_done_callback(lambda _, pair=pair: self._pairs.discard(pair))

    async def _cut(self) -> None:
        for pair in list(self._pairs):
            pair.reset()

    async def _swallow(self) -> None:
        for pair in self._pairs:
            pair.swallowing = True

    async def _end(self) -> None:
        assert self._server is not None
        self._server.cancel()
        await self._cut()
        others = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
        await asyncio.gather(*others, return_exceptions=True)


class Pair:
    """One connection: the near socket, the far one, and what flows between."""

    def __init__(self, proxy: Proxy, near: socket.socket, target: tuple[str, int]) -> None:
        self.swallowing = False
        self._proxy = proxy
        self._target = target
        self._sockets = [near]
        self._over = asyncio.Event()

    def reset(self) -> None:
        """Both sides see a reset."""
        self._over.set()

    async def run(self, *, hole: bool) -> None:
        """Carry until one side ends or it is reset; then both are reset."""
        tasks: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        try:
            if hole:
                await self._over.wait()
                return
            far = socket.socket()
            self._sockets.append(far)
            far.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                far.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
            await loop.sock_connect(far, self._target)
            near = self._sockets[0]
            for source, sink, way in (
                (near, far, self._proxy.up),
                (far, near, self._proxy.down),
            ):
                tasks.append(loop.create_task(self._flow(source, sink, way)))
            await self._over.wait()
        except OSError:
            pass  # the far side is not there
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for one in self._sockets:
                reset(one)

    async def _flow(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        """One direction: read in, let it travel, write out."""
        loop = asyncio.get_running_loop()
        underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDERWAY_BYTES // CHUNK_BYTES)
        carrier = loop.create_task(self._carry(underway, sink, way))
        try:
            while chunk := await loop.sock_recv(source, CHUNK_BYTES):
                await way.admit(len(chunk))
                await underway.put((loop.time() + way.latency_s, chunk))
            if not self.swallowing:
                await underway.put((loop.time() + way.latency_s, b""))
                await carrier
        except OSError:
            pass  # a reset by one side is passed on to the other
        finally:
            carrier.cancel()
            if not self.swallowing:
                self._over.set()

    async def _carry(
        self, underway: asyncio.Queue[tuple[float, bytes]], sink: socket.socket, way: Way
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                due, chunk = await underway.get()
                await asyncio.sleep(due - loop.time())
                if not chunk:
                    break
                if self.swallowing:
                    continue
                left = None if way.reset_at is None else way.reset_at - way.carried_bytes
                if left is not None and left < len(chunk):
                    way.reset_at = None
                    await loop.sock_sendall(sink, chunk[:left])
                    break
                await loop.sock_sendall(sink, chunk)
                way.carried_bytes += len(chunk)
        self._over.set()


def reset(one: socket.socket) -> None:
    """Close with RST in place of FIN."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    one.close()
