"""Messages come out as they went in, however the stream is cut; nonsense ends the connection."""

import random
import socket
import threading
from array import array
from typing import cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from agent.inference import wire
from agent.inference.domains.process import READ_BYTES, Frames
from agent.inference.wire import INBOX_BYTES, PREFIX_BYTES, Closed, Failure, Inbox

Message = tuple[bytes, bytes]
few = settings(max_examples=60)

lengths = some.one_of(
    some.integers(0, 300),
    some.sampled_from([READ_BYTES, INBOX_BYTES]).flatmap(
        lambda size: some.integers(size - 40, size + 40)
    ),
    some.just(3 * INBOX_BYTES + 1),
)
messages = some.lists(some.tuples(some.integers(0, 200), lengths), min_size=1, max_size=6)
cuts = some.lists(some.integers(1, 2 * INBOX_BYTES), max_size=12)


def made(sizes: list[tuple[int, int]]) -> list[Message]:
    """Messages with random content: what each head says, and its body."""
    source = random.Random(1)
    return [(source.randbytes(head).hex().encode(), source.randbytes(b)) for head, b in sizes]


def packed(sent: list[Message]) -> bytes:
    return b"".join(b"".join(wire.pack(Failure(head.decode()), [body])) for head, body in sent)


def read(head: bytes | memoryview, body: memoryview) -> Message:
    return msgspec.msgpack.decode(head, type=Failure).message.encode(), bytes(body)


def pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream, cut after each of these sizes, over and over."""
    found, at, sizes = list[bytes](), 0, sizes or [len(stream)]
    if sum(sizes) / len(sizes) < 64 and len(stream) > 1 << 16:
        sizes = [*sizes, 1 << 14]
    while at < len(stream):
        size = sizes[len(found) % len(sizes)]
        found.append(stream[at : at + size])
        at += size
    return found


class Wire:
    """What the agent's side is fed with, in the place of a transport."""

    def __init__(self) -> None:
        self.heard = list[Message]()
        self.aborted = False
        self.frames = Frames(self._hear, lambda *_: None)
        self.frames.connection_made(cast("wire.Any", self))

    def _hear(self, head: bytes, body: memoryview) -> None:
        self.heard.append((bytes(head), cast(bytes, body)))

    def abort(self) -> None:
        self.aborted = True

    def feed(self, piece: bytes) -> None:
        """As an event loop does: no more at once than there is room for."""
        while piece and not self.aborted:
            room = self.frames.get_buffer(-1)
            assert len(room) > 0
            size = min(len(piece), len(room))
            room[:size] = piece[:size]
            self.frames.buffer_updated(size)
            piece = piece[size:]


@few
@given(messages, cuts)
def test_the_agent_reads_what_was_sent(sizes: list[tuple[int, int]], at: list[int]) -> None:
    sent, side = made(sizes), Wire()
    for piece in pieces(packed(sent), at):
        side.feed(piece)
    # Only now: what was handed on must not change under those who have it.
    assert [read(head, memoryview(body)) for head, body in side.heard] == sent


@few
@given(messages, cuts)
def test_the_worker_reads_what_was_sent(sizes: list[tuple[int, int]], at: list[int]) -> None:
    sent = made(sizes)
    ours, theirs = socket.socketpair()

    def send() -> None:
        with ours:
            for piece in pieces(packed(sent), at):
                ours.sendall(piece)

    sender = threading.Thread(target=send)
    sender.start()
    with theirs:
        inbox = Inbox(theirs)
        assert [read(*inbox.receive()) for _ in sent] == sent
        with pytest.raises(Closed):
            inbox.receive()
    sender.join()


@few
@given(some.lists(some.integers(0, 3000), max_size=600), some.booleans())
def test_a_message_of_many_buffers_is_sent_whole(sizes: list[int], small: bool) -> None:
    ours, theirs = socket.socketpair()
    if small:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = [array("f", [float(i)] * size) for i, size in enumerate(sizes)]
    views = [memoryview(one) for one in body]
    sender = threading.Thread(target=wire.send, args=(ours, Failure("x"), views))
    sender.start()
    with ours, theirs:
        head, found = Inbox(theirs).receive()
        assert msgspec.msgpack.decode(head, type=Failure) == Failure("x")
        assert bytes(found) == b"".join(one.tobytes() for one in body)
        sender.join()


@few
@given(some.binary(max_size=4096), cuts)
def test_garbage_is_read_or_ends_the_connection_and_nothing_else(
    stream: bytes, at: list[int]
) -> None:
    side = Wire()
    for piece in pieces(stream, at) if stream else []:
        side.feed(piece)
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(stream)
        inbox, received = Inbox(theirs), list[Message]()
        with pytest.raises(Closed):
            while True:
                head, body = inbox.receive()
                received.append((bytes(head), bytes(body)))
    assert [(head, bytes(body)) for head, body in side.heard] == received


@pytest.mark.parametrize(
    "prefix", [(wire.HEAD_BYTES_MAX + 1, 0), (0, wire.BODY_BYTES_MAX + 1), (0xFFFFFFFF, 0)]
)
def test_what_is_beyond_the_bounds_is_refused_before_it_is_read(prefix: tuple[int, int]) -> None:
    said = b"".join(size.to_bytes(4, "big") for size in prefix)
    assert len(said) == PREFIX_BYTES
    side = Wire()
    side.feed(packed([(b"ab", b"first")]) + said)
    assert side.aborted
    assert len(side.heard) == 1
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(said)
        with pytest.raises(Closed, match="beyond the bounds"):
            Inbox(theirs).receive()


def test_a_cut_message_is_an_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(packed([(b"ab", b"body")])[:-1])
        with pytest.raises(Closed, match="the agent is gone"):
            Inbox(theirs).receive()
