"""A load of HTTP requests, far cheaper than any server under it.

It runs in a process of its own: uvloop, one bare protocol for each connection, requests that were
made beforehand. The connections are kept, and each sends its next request when it has the answer to
its last (a closed loop). The requests go round in a ring, so that no cache of results can help.
Every answer must be a 200 with a `Content-Length`, and as long as the first unless it may vary; the
last answer to each request of the ring comes back, so that the caller can check the numbers.

    with Load(port, requests) as load:
        volley = load.run(connections=8, seconds=1.0)

The process reads its orders from stdin and answers on stdout, as MessagePack behind a length.
"""

import asyncio
import gc
import itertools
import subprocess
import sys
import time
from array import array
from typing import IO, Any, TypeVar, cast

import msgspec
from msgspec import Struct

T = TypeVar("T")
LENGTH_BYTES = 4
ANSWER_S_MAX = 60.0  # the longest that any server may take for what was under way at the end
SHOWN_BYTES = 600  # of an answer that was not expected
OK = b"HTTP/1.1 200"


class Target(Struct, frozen=True):
    """Where the requests go; `varies`: the answers are not all of one length."""

    port: int
    requests: list[bytes]
    varies: bool = False


class Order(Struct, frozen=True):
    """One volley: so many connections for so long."""

    connections: int
    seconds: float


class Volley(Struct, frozen=True):
    """What came of it; `bodies` are the last answers, by their request's place in the ring."""

    elapsed_s: float
    latencies: bytes
    bodies: dict[int, bytes]
    fault: str | None = None

    @property
    def latencies_s(self) -> "array[float]":
        """Of each answer, in the order of their coming."""
        return array("f", self.latencies)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / array("f").itemsize / self.elapsed_s


class LoadError(Exception):
    """A server gave an answer that no measurement may count."""


class Load:
    """The process that makes the load; a context."""

    def __init__(self, port: int, requests: list[bytes], *, varies: bool = False) -> None:
        self._target = Target(port, requests, varies)

    def __enter__(self) -> "Load":
        command = [sys.executable, "-m", "bench.load"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send(self._target)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, connections: int, seconds: float) -> Volley:
        """One volley. Raises LoadError if any answer was not as it must be."""
        self._send(Order(connections, seconds))
        volley = _read(cast(IO[bytes], self._process.stdout), Volley)
        if volley is None:
            raise LoadError("the process that makes the load ended")
        if volley.fault is not None:
            raise LoadError(volley.fault)
        return volley

    def _send(self, message: Struct) -> None:
        _write(cast(IO[bytes], self._process.stdin), message)


class Ring:
    """What the connections of one volley share: the requests, the answers, and the end."""

    def __init__(self, target: Target) -> None:
        self.requests = itertools.cycle(enumerate(target.requests))
        self.varies = target.varies
        self.latencies_s: list[float] = []
        self.bodies: dict[int, bytes] = {}
        self.body_bytes: int | None = None
        self.open = 0
        self.over = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, why: str) -> None:
        """The volley counts for nothing."""
        if not self.ended.done():
            self.ended.set_exception(LoadError(why))

    def leave(self) -> None:
        """A connection has its last answer."""
        self.open -= 1
        if self.open == 0 and not self.ended.done():
            self.ended.set_result(None)


class Connection(asyncio.Protocol):
    """Sends a request, waits for its answer, sends the next."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._held = b""  # of an answer that is not complete
        self._index = 0
        self._sent_s = 0.0
        self._left = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the start."""
        self._transport = cast(asyncio.Transport, transport)
        self._ring.open += 1

    def send(self) -> None:
        """The ring's next request."""
        self._index, request = next(self._ring.requests)
        self._sent_s = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """A part of an answer, most often all of it."""
        now_s = time.perf_counter()
        if self._held:
            data = self._held + data
        head_bytes = data.find(b"\r\n\r\n") + 4
        if head_bytes < 4:
            self._held = data
            return
        body_bytes = _content_length(data[:head_bytes])
        if not data.startswith(OK) or body_bytes is None:
            self._ring.fail(f"not a 200 of known length: {data[:SHOWN_BYTES]!r}")
            return
        if len(data) < head_bytes + body_bytes:
            self._held = data
            return
        self._held = b""
        self._take(data[head_bytes:], body_bytes, now_s)

    def _take(self, body: bytes, body_bytes: int, now_s: float) -> None:
        """A complete answer."""
        ring = self._ring
        expected = body_bytes if ring.varies or ring.body_bytes is None else ring.body_bytes
        ring.body_bytes = expected
        if len(body) != expected or body_bytes != expected:
            ring.fail(f"a body of {len(body)} bytes, expected {expected}: {body[:SHOWN_BYTES]!r}")
            return
        ring.latencies_s.append(now_s - self._sent_s)
        ring.bodies[self._index] = body
        if ring.over:
            self._left = True
            ring.leave()
        else:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Only after the end; before it, it is the server's fault."""
        if not self._left:
            self._ring.fail(f"the server closed a connection: {exc!r}")

    def close(self) -> None:
        """Hang up."""
        self._left = True
        self._transport.close()


def _content_length(head: bytes) -> int | None:
    """What the head says of the body's length; None: nothing."""
    head = head.lower()
    at = head.find(b"\r\ncontent-length:")
    return None if at < 0 else int(head[at + 17 : head.find(b"\r\n", at + 2)])


async def _volley(target: Target, order: Order) -> Volley:
    """Open the connections, keep them busy for so long, take the answers that are under way."""
    loop, ring = asyncio.get_running_loop(), Ring(target)
    connections = [
        (await loop.create_connection(lambda: Connection(ring), "127.0.0.1", target.port))[1]
        for _ in range(order.connections)
    ]
    began_s = time.perf_counter()
    for connection in connections:
        connection.send()
    loop.call_later(order.seconds, setattr, ring, "over", True)
    try:
        await asyncio.wait_for(ring.ended, order.seconds + ANSWER_S_MAX)
        elapsed_s = time.perf_counter() - began_s
    finally:
        for connection in connections:
            connection.close()
    return Volley(elapsed_s, array("f", ring.latencies_s).tobytes(), ring.bodies)


def _write(stream: IO[bytes], message: Struct) -> None:
    content = msgspec.msgpack.encode(message)
    stream.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
    stream.flush()


def _read(stream: IO[bytes], kind: type[T]) -> T | None:
    """The next message; None at the stream's end."""
    length = stream.read(LENGTH_BYTES)
    if not length:
        return None
    return msgspec.msgpack.decode(stream.read(int.from_bytes(length, "big")), type=kind)


def main() -> None:
    import uvloop  # here alone: whoever reads a server's memory must not share this with it

    orders = sys.stdin.buffer
    # Not stdout's own: with PYTHONUNBUFFERED that is bare, and writes a part of what it is given.
    answers = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115
    target = _read(orders, Target)
    assert target is not None, "the first message says where the requests go"
    gc.freeze()
    while (order := _read(orders, Order)) is not None:
        answer: Any
        try:
            answer = uvloop.run(_volley(target, order))
        except (LoadError, OSError, TimeoutError) as error:
            answer = Volley(0.0, b"", {}, f"{type(error).__name__}: {error}")
        _write(answers, answer)


if __name__ == "__main__":
    main()
