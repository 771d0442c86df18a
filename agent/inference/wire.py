"""Messages between the agent and a worker: length-prefixed, over a socket pair.

A message is a head (MessagePack) and a body (raw bytes: PCM, tensors), each with its length before
it. Bounds: HEAD_BYTES_MAX and BODY_BYTES_MAX; a longer one is a broken peer. The worker's side is
blocking; the agent's is in domain.py, so that a worker need not load asyncio (7 MiB).
"""

import socket
import struct
from typing import TypeVar

import msgspec
from msgspec import Struct

HEAD_BYTES_MAX = 1 << 20
BODY_BYTES_MAX = 64 << 20
_LENGTHS = struct.Struct("!II")
PREFIX_BYTES = _LENGTHS.size

BEGUN, REST = -2, -1  # places in a stream's memory; see engines/speech.py

T = TypeVar("T")


class Hello(Struct, frozen=True):
    """The worker's first message: its execution provider, and how long a stream's memory is."""

    ep: str
    load_s: float
    memory_size: int


class Failure(Struct, frozen=True, tag=True):
    """The worker's last message: what it could not do."""

    message: str


class Part(Struct, frozen=True, array_like=True):
    """One stream's share of a call: so many samples; whether the stream ends with them."""

    samples: int
    end: bool = False


class Listen(Struct, frozen=True):
    """A call to the speech engine.

    Body: the parts' 16-bit PCM one after the other, then their memories (float32).
    """

    parts: list[Part]


class Heard(Struct, frozen=True, tag=True):
    """Its answer, by part: how many samples are clean, for how many hops there is a probability.

    Body: the clean PCM of all parts, their probabilities (float32), their new memories.
    """

    parts: list[tuple[int, int]]


class Closed(ConnectionError):
    """The peer ended the connection."""


def pack(head: Struct, *body: bytes | memoryview) -> list[bytes | memoryview]:
    """A message as buffers, ready to be sent in one go."""
    encoded = msgspec.msgpack.encode(head)
    return [_LENGTHS.pack(len(encoded), sum(len(b) for b in body)), encoded, *body]


def lengths(prefix: bytes) -> tuple[int, int]:
    """Lengths of head and body from a message's first PREFIX_BYTES. Raises Closed beyond bounds."""
    head, body = _LENGTHS.unpack(prefix)
    if head > HEAD_BYTES_MAX or body > BODY_BYTES_MAX:
        raise Closed(f"a message of {head} + {body} bytes is beyond the bounds")
    return head, body


def send(sock: socket.socket, head: Struct, *body: bytes | memoryview) -> None:
    """Send one message; the worker's side, blocking."""
    sock.sendall(b"".join(pack(head, *body)))


def receive(sock: socket.socket) -> tuple[bytes, bytearray]:
    """The next message's head, still encoded, and body; blocking. Raises Closed at the end."""
    head, body = lengths(bytes(_exactly(sock, PREFIX_BYTES)))
    return bytes(_exactly(sock, head)), _exactly(sock, body)


def _exactly(sock: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise Closed("the agent is gone")
        view = view[got:]
    return buffer
