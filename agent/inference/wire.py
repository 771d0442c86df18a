"""Messages between the agent and a worker: length-prefixed, over a socket pair.

    prefix   two big-endian uint32: length of the head, length of the body
    head     MessagePack: one of the structs below
    body     raw bytes: PCM, tensors

A body that is large travels in the arena (arena.py) instead, and the head says where. Beside the
socket pair there is a pipe by which the agent withdraws calls: eight bytes, the call's id.

Limits: HEAD_BYTES_MAX and BODY_BYTES_MAX; a longer message is a broken peer. The worker's side is
blocking; the agent's is in domains/process.py, so that a worker need not load asyncio (7 MiB).
"""

import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

HEAD_BYTES_MAX = 4 << 20
BODY_BYTES_MAX = 256 << 20
_LENGTHS = struct.Struct("!II")
PREFIX_BYTES = _LENGTHS.size
INBOX_BYTES = 1 << 18
BUFFERS_MAX = 256  # of one system call; Linux takes 1024
WITHDRAWAL = struct.Struct("=q")
WORKER = "hf-worker"  # the name of a process, which the agent may look for
PID = struct.Struct("=i")  # what the zygote answers; see zygote.py
ASK_BYTES_MAX = 65_536  # of what it is asked
ASK_DESCRIPTORS = 3  # that come with it

BEGUN, REST = -2, -1  # places in a stream's memory; see engines/speech.py

Buffer = bytes | bytearray | memoryview
NOT_IN_ARENA = -1


class Tensor(Struct, frozen=True, array_like=True):
    """One input or output: name, Open Inference Protocol dtype, shape, and its bytes in the body.

    `json`: the bytes are the JSON of its elements, flat or nested, and not their raw form.
    """

    name: str
    dtype: str
    shape: list[int]
    size_bytes: int = 0
    json: bool = False


class Load(Struct, frozen=True):
    """A model a worker is to load; `options` are its engine's own."""

    name: str
    engine: str
    path: str
    options: dict[str, Any] = {}
    sha256: str = ""  # of all that is loaded, as one; "" where nobody has said
    batching: bool | None = None  # None: whatever its shapes allow
    files: list["File"] = []  # each that counts, as it was verified
    finite: bool = False
    warm_up: int = 0


class File(Struct, frozen=True):
    """A file, its SHA-256, and its stamp when that was made."""

    path: str
    sha256: str
    stamp: tuple[int, ...]


def stamp(path: str | Path) -> tuple[int, ...]:
    """What changes whenever a file is written to, replaced or renamed. Raises OSError."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Setup(Struct, frozen=True):
    """The agent's first message."""

    models: list[Load]
    devices: list[str]  # in order of preference
    threads: int
    gpu_memory_bytes_max: int | None = None


class Loaded(Struct, frozen=True):
    """What the worker read from a model it has loaded."""

    ep: str
    load_s: float
    warm_up_s: float = 0.0  # the median of its warm-up's runs
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    batching: bool = False
    fallback: str = ""  # why it is not on the first of its devices; empty: it is
    memory_size: int = 0  # of a stream of sound, in float32 values


class Hello(Struct, frozen=True, array_like=True, tag=True):
    """The worker's first message: it is ready."""

    models: dict[str, Loaded]


class Failure(Struct, frozen=True, array_like=True, tag=True):
    """The worker's last message: what it could not do."""

    message: str


class Call(Struct, frozen=True, array_like=True):
    """One call: its engine's own head, and where its body is.

    Bodies that are not `at` a place of the arena follow each other in the message's body.
    `deadline_s` is of CLOCK_BOOTTIME: past it, the call is not begun.
    """

    id: int
    head: msgspec.Raw
    size_bytes: int
    deadline_s: float
    at: int = NOT_IN_ARENA


class Batch(Struct, frozen=True, array_like=True):
    """Calls to one model, made together. `room` is a stretch of the arena for the answers.

    Without calls it only asks whether the worker is there: it is answered as any other.
    """

    id: int
    model: str
    calls: list[Call]
    room: tuple[int, int] = (0, 0)  # place and length


Fault = Literal["", "refused", "failed", "expired", "withdrawn"]


class Answer(Struct, frozen=True, array_like=True):
    """What became of one call: its engine's own head and `size_bytes` of body, or a fault.

    refused: the call has not the form that the model asks for; failed: the model erred on it.
    """

    head: msgspec.Raw = msgspec.Raw(b"\xc0")
    size_bytes: Annotated[int, Meta(ge=0)] = 0
    fault: Fault = ""
    message: str = ""


class Answers(Struct, frozen=True, array_like=True, tag=True):
    """The answers to a batch, in its order; bodies in the message, or one after the other `at`."""

    id: int
    answers: list[Answer]
    received_s: float  # CLOCK_BOOTTIME
    began_s: float
    ended_s: float
    at: Annotated[int, Meta(ge=NOT_IN_ARENA)] = NOT_IN_ARENA


class Part(Struct, frozen=True, array_like=True):
    """Head of a call to the speech engine: so many samples; whether the stream ends with them.

    Body: the 16-bit PCM, then the stream's memory (float32).
    """

    samples: int
    end: bool = False


class Heard(Struct, frozen=True, array_like=True):
    """Head of its answer: how many samples are clean, for how many hops there is a probability.

    Body: the clean PCM, the probabilities (float32), the new memory.
    """

    samples: int
    hops: int


class Infer(Struct, frozen=True, array_like=True):
    """Head of a call to the ONNX engine; body: its inputs, one after the other.

    `outputs` are the names asked for, none: all; `json` those that are wanted as JSON, "*": all.
    """

    inputs: list[Tensor]
    outputs: list[str] = []
    json: list[str] = []


class Inferred(Struct, frozen=True, array_like=True):
    """Head of its answer; body: the outputs, one after the other."""

    outputs: list[Tensor]


class Closed(ConnectionError):
    """The peer ended the connection."""


def pack(head: Struct, body: Sequence[Buffer] = ()) -> list[Buffer]:
    """A message as buffers, ready to be sent in one go."""
    encoded = msgspec.msgpack.encode(head)
    size = sum(memoryview(b).nbytes for b in body)
    return [_LENGTHS.pack(len(encoded), size) + encoded, *body]


def lengths(prefix: Buffer) -> tuple[int, int]:
    """Lengths of head and body from a message's first PREFIX_BYTES. Raises Closed beyond bounds."""
    head, body = _LENGTHS.unpack(prefix)
    if head > HEAD_BYTES_MAX or body > BODY_BYTES_MAX:
        raise Closed(f"a message of {head} + {body} bytes is beyond the bounds")
    return head, body


def send(sock: socket.socket, head: Struct, body: Sequence[Buffer] = ()) -> None:
    """Send one message; the worker's side, blocking."""
    buffers = pack(head, body)
    if len(buffers) > BUFFERS_MAX:
        buffers = [b"".join(buffers)]
    sent = sock.sendmsg(buffers)
    for buffer in buffers:
        size = memoryview(buffer).nbytes
        if sent < size:
            sock.sendall(memoryview(buffer).cast("B")[sent:])
        sent = max(0, sent - size)


class Inbox:
    """The worker's side: reads messages, several of them with one system call where they wait."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._room = bytearray(INBOX_BYTES)
        self._view = memoryview(self._room)
        self._at = self._end = 0  # what is read and not yet taken

    def receive(self) -> tuple[memoryview, memoryview]:
        """The next message's head, still encoded, and body: good until the next call.

        Raises Closed at the end.
        """
        self._fill(PREFIX_BYTES)
        head, body = lengths(self._view[self._at : self._at + PREFIX_BYTES])
        self._at += PREFIX_BYTES
        size = head + body
        if size <= INBOX_BYTES:
            self._fill(size)
            whole = self._view[self._at : self._at + size]
            self._at += size
        else:
            whole = self._large(size)
        return whole[:head], whole[head:]

    def _fill(self, size: int) -> None:
        """At least so many bytes are there."""
        if self._end - self._at >= size:
            return
        if self._at + size > INBOX_BYTES or self._at == self._end:
            rest = bytes(self._view[self._at : self._end])
            self._view[: len(rest)] = rest
            self._at, self._end = 0, len(rest)
        while self._end - self._at < size:
            self._end += self._read(self._view[self._end :])

    def _large(self, size: int) -> memoryview:
        """One that has not room here."""
        whole = memoryview(bytearray(size))
        have = self._end - self._at
        whole[:have] = self._view[self._at : self._end]
        self._at = self._end = 0
        while have < size:
            have += self._read(whole[have:])
        return whole

    def _read(self, into: memoryview) -> int:
        got = self._sock.recv_into(into)
        if not got:
            raise Closed("the agent is gone")
        return got
