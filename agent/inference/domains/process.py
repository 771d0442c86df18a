"""One life of a worker process: how it begins, what is sent to it, what it says, how it ends."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import msgspec
from msgspec import Struct

from agent.inference import wire
from agent.inference.arena import Arena

STOP_TIMEOUT_S = 2.0
READ_BYTES = 1 << 16
SOCKET_BYTES = 1 << 20  # the kernel gives what it allows

Heard = Callable[[bytes, memoryview], None]


class Frames(asyncio.BufferedProtocol):
    """Takes messages apart; a body that is not whole yet is read to where it will stay."""

    def __init__(self, heard: Heard, ended: Callable[[], None]) -> None:
        """`heard` gets each message's head and body, `ended` that there will be no more."""
        self.transport: asyncio.Transport
        self._heard = heard
        self._ended = ended
        self._room = bytearray(READ_BYTES)
        self._held = 0  # bytes of `_room` that are not taken apart yet
        self._large: bytearray | None = None  # a message beyond `_room`, without its prefix
        self._filled = 0
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the way back."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell."""
        self._ended()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes belong."""
        if self._large is not None:
            return memoryview(self._large)[self._filled :]
        return memoryview(self._room)[self._held :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take apart what is whole now."""
        if self._large is not None:
            self._filled += nbytes
            if self._filled == len(self._large):
                whole, self._large = memoryview(self._large), None
                self._heard(bytes(whole[: self._head_bytes]), whole[self._head_bytes :])
            return
        self._held += nbytes
        at = self._messages()
        if at:
            self._room[: self._held - at] = self._room[at : self._held]
            self._held -= at

    def _messages(self) -> int:
        """Hand on the whole messages; how many bytes they were."""
        at, room = 0, self._room
        while self._held - at >= wire.PREFIX_BYTES:
            try:
                head, body = wire.lengths(room[at : at + wire.PREFIX_BYTES])
            except wire.Closed:  # no worker of ours says so
                self.transport.abort()
                return self._held
            begin, end = at + wire.PREFIX_BYTES, at + wire.PREFIX_BYTES + head + body
            if end <= self._held:
                split = begin + head
                self._heard(bytes(room[begin:split]), memoryview(room[split:end]))
                at = end
                continue
            if end - at > len(room):
                self._large = bytearray(head + body)
                self._head_bytes = head
                self._filled = self._held - begin
                self._large[: self._filled] = room[begin : self._held]
                return self._held
            break
        return at


class Process:
    """A worker process and the ways to it; `spawned` makes one."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        frames: Frames,
        pipe: int,
        arena: Arena,
    ) -> None:
        self.pid = process.pid
        self.arena = arena
        self._process = process
        self._frames = frames
        self._pipe = pipe

    def send(self, head: Struct, body: Sequence[wire.Buffer] = ()) -> None:
        """Send one message."""
        self._frames.transport.writelines(wire.pack(head, body))

    def withdraw(self, call: int) -> None:
        """Nobody waits for this call any more; it may come to its end all the same."""
        try:
            os.write(self._pipe, wire.WITHDRAWAL.pack(call))
        except (BlockingIOError, BrokenPipeError):
            return  # it is only to save work

    def kill(self) -> None:
        """End it now, whatever it does."""
        if self._process.returncode is None:
            self._process.kill()

    async def ended(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        return await self._process.wait()

    async def end(self) -> None:
        """Close the socket, which ends a healthy worker; kill one that does not follow."""
        self._frames.transport.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self.release()

    def release(self) -> None:
        """Give back what the agent holds of it, once it has ended; may be called again."""
        self._frames.transport.close()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
            self.arena.close()


async def spawned(
    heard: Heard, ended: Callable[[], None], arena_bytes: int, environment: Mapping[str, str]
) -> Process:
    """Start a worker; `environment` is added to the agent's own. Raises OSError."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    read, write = os.pipe()
    os.set_blocking(write, False)
    arena = Arena(arena_bytes)
    process: asyncio.subprocess.Process | None = None
    try:
        passed = (theirs.fileno(), read, arena.fd)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "agent.inference.worker"),
            *(str(fd) for fd in passed),
            str(os.getpid()),
            pass_fds=passed,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.DEVNULL,
        )
        loop = asyncio.get_running_loop()
        _, frames = await loop.create_unix_connection(lambda: Frames(heard, ended), sock=ours)
    except (OSError, asyncio.CancelledError):
        ours.close()
        os.close(write)
        arena.close()
        if process:
            process.kill()
            await process.wait()
        raise
    finally:
        theirs.close()
        os.close(read)
    return Process(process, frames, write, arena)


def decoded_hello(head: bytes) -> wire.Hello | wire.Failure:
    """A worker's first or last message. Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(head, type=wire.Hello | wire.Failure)


def named(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"
